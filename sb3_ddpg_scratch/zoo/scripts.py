"""RL Zoo's scripts, run with ScratchDDPG registered and as their default."""

import argparse
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rl_zoo3.utils import StoreDict

from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError, near, require
from sb3_ddpg_scratch.gym_packages import import_modules
from sb3_ddpg_scratch.zoo import patches
from sb3_ddpg_scratch.zoo.manager import FOLDERS_HELD, check_file
from sb3_ddpg_scratch.zoo.registry import check_env, register
from sb3_ddpg_scratch.zoo.train import (
    KeyValues,
    add_train_options,
    adopt_run,
    check_numbers,
    check_train_options,
    train,
    train_parser,
)
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO

# Defaults that apply with our algorithm only.
OUR_DEFAULTS = {"env": "Pendulum-v1", "folder": "logs"}
# The Zoo's module and function for each command; scripts without a function run like `python -m`. `train` is ours.
SCRIPTS: dict[str, tuple[str, str | None]] = {
    "train": ("rl_zoo3.train", "train"),
    "enjoy": ("rl_zoo3.enjoy", "enjoy"),
    "plot-train": ("rl_zoo3.plots.plot_train", "plot_train"),
    "plot-from-file": ("rl_zoo3.plots.plot_from_file", "plot_from_file"),
    "all-plots": ("rl_zoo3.plots.all_plots", "all_plots"),
    "benchmark": ("rl_zoo3.benchmark", None),
    "record-video": ("rl_zoo3.record_video", None),
    "record-training": ("rl_zoo3.record_training", None),
    "push-to-hub": ("rl_zoo3.push_to_hub", None),
    "load-from-hub": ("rl_zoo3.load_from_hub", None),
}
_PLAY_BACK = ("enjoy", "record-video", "record-training", "push-to-hub")
# The plotting commands, each with the option for what it reads.
_DRAW = {"plot-train": "exp_folder", "plot-from-file": "input", "all-plots": "exp_folders"}


def run_script(command: str, arguments: Sequence[str]) -> None:
    """
    Run one of RL Zoo's scripts as its own command line would, with all of its options and some of ours.

    ``--algo`` is ``scratch_ddpg`` unless given. With it, ``--env`` is ``Pendulum-v1`` and trained agents are looked for
    where ``train`` puts them. ``train`` also takes ``--preset``, ``--diagnostics``, ``--checkpoint-every`` and ``--resume``,
    and the plotting commands take ``--picture``.

    :param command: one of :data:`SCRIPTS`
    :param arguments: its arguments
    :raises ArgumentError: for an unknown preset, environment, setting or option, and for wrong values
    :raises SystemExit: for ``--help``
    """
    register()
    if command in (*_DRAW, "benchmark"):
        require(command, "plots", "pandas", "matplotlib", "seaborn")
    with ExitStack() as stack:

        def parse(parser: argparse.ArgumentParser, parse_args: Callable[..., Any]) -> argparse.Namespace:
            parser.prog = f"sb3-ddpg-scratch {command}"
            finish = _extend(command, parser)
            parsed: argparse.Namespace = parse_args(parser, arguments)
            finish(parsed)
            _enter_patches(command, parsed, stack)
            return parsed

        stack.enter_context(_explained(command))
        stack.enter_context(FOLDERS_HELD)
        if command == "train":
            train(parse(train_parser(), argparse.ArgumentParser.parse_args))
            return
        stack.enter_context(patches.parsed_by(parse))
        module, function = SCRIPTS[command]
        if command == "push-to-hub":  # it imports the name
            stack.enter_context(patches.hub_metadata())
        if function is None:
            sys.modules.pop(module, None)  # runpy warns of a module that was imported before it is run
            runpy.run_module(module, run_name="__main__")
        else:
            getattr(importlib.import_module(module), function)()


@contextmanager
def _explained(command: str) -> Iterator[None]:
    """Name the command in errors that come from options which only an environment or a plot can judge."""
    try:
        yield
    except TypeError as error:
        problem, of_env, _ = str(error).partition(patches.BY_ENV)
        if not of_env:
            raise
        given = "--env-kwargs or a file's env_kwargs"
        raise ArgumentError(given, None, problem=f"do not fit the environment: {problem}") from error
    except (LookupError, ValueError, RuntimeError) as error:
        if command not in _DRAW or isinstance(error, (ArgumentError, ModelFileError)):
            raise
        problem = f"cannot draw this ({type(error).__name__}: {error})"
        raise ArgumentError(command, None, problem=problem, advice="Choose other options.") from error


def _enter_patches(command: str, parsed: argparse.Namespace, stack: ExitStack) -> None:
    trusted = getattr(parsed, "trusted", False)
    if not trusted:
        stack.enter_context(patches.safe_reading())
    model = getattr(parsed, "model_file" if command in _PLAY_BACK else "trained_agent", None)
    if model:
        stack.enter_context(patches.own_statistics(Path(model), trusted))
    small = {"buffer_size": 1, "optimize_memory_usage": False} if command in _PLAY_BACK else {}
    if trusted or small:
        # Agents of SB3's own DDPG and TD3 are played without running code from their files too.
        also = ("ddpg", "td3") if command in ("enjoy", "record-video") and not trusted else ()
        stack.enter_context(patches.loading_with(ALGO, *also, trusted=trusted, **small))
    if command in _PLAY_BACK:
        stack.enter_context(patches.explained(parsed.folder))
    if command in ("benchmark", "record-training"):
        stack.enter_context(patches.own_subprocesses(parsed.gym_packages))
    if command in _DRAW:
        option = _DRAW[command]
        stack.enter_context(patches.shown_in(parsed.picture, f"--{option.replace('_', '-')}", getattr(parsed, option)))
    if command == "plot-from-file":
        stack.enter_context(patches.gathered_results(trusted))


def _extend(command: str, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add our defaults and options to a script's parser; returns a function that completes the parsed arguments."""
    actions = {action.dest: action for action in parser._actions}
    _report_errors(parser)
    for dest, default in (("algo", ALGO), ("algos", [ALGO])):
        if dest in actions:
            actions[dest].default, actions[dest].required = default, False
    ours = parser.add_argument_group("added by sb3-ddpg-scratch")
    ours.description = f"Without --algo it is {ALGO}; its settings are this package's."
    _add_options(command, ours, "gym_packages" in actions)
    theirs = {
        dest: actions[dest].default
        for dest in OUR_DEFAULTS
        if dest in actions and not (actions[dest].required or actions[dest].nargs)
    }
    for dest in theirs:
        actions[dest].default = None  # decided when the algorithm is known

    def finish(arguments: argparse.Namespace) -> None:
        if command == "train":
            adopt_run(arguments, parser)
        for dest, default in theirs.items():
            if getattr(arguments, dest) is None:
                chosen = OUR_DEFAULTS[dest] if arguments.algo == ALGO else default
                kind = actions[dest].type
                setattr(arguments, dest, kind(chosen) if callable(kind) else chosen)
        check_numbers(arguments)
        _settle_env(command, arguments)
        if command == "train":
            check_train_options(arguments)
            check_file(arguments)
        elif command in _DRAW:
            _check_results(command, arguments)
        elif command in _PLAY_BACK:
            arguments.model_file = _check_agent(command, arguments)
        elif command == "benchmark":
            # The hub has no agents of ours.
            arguments.no_hub |= (Path(arguments.log_dir) / ALGO).is_dir()

    return finish


def _report_errors(parser: argparse.ArgumentParser) -> None:
    """Have the parser raise an ArgumentError, in one line, instead of printing all of its usage."""
    for action in parser._actions:
        if isinstance(action, StoreDict):
            action.__class__ = KeyValues

    def error(message: str) -> NoReturn:
        known = [option for action in parser._actions for option in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ").split()[0] if message.startswith("unrecognized") else ""
        raise ArgumentError(f"{parser.prog}:", None, problem=message, advice=near(unknown, known) if unknown else "")

    parser.error = error  # type: ignore[method-assign]


def _add_options(command: str, group: argparse._ArgumentGroup, takes_packages: bool) -> None:
    if command == "train":
        add_train_options(group)
    if command in _DRAW:
        text = "Save the plot to this file (.png, .svg, .pdf; several get numbers) and show nothing"
        group.add_argument("--picture", metavar="FILE", help=text)
    if command in (*_PLAY_BACK, "benchmark") and not takes_packages:
        text = "Modules to import, which register environments"
        group.add_argument("--gym-packages", metavar="MODULE", nargs="+", default=[], help=text)
    if command in (*_PLAY_BACK, "train", "plot-from-file"):
        group.add_argument("--trusted", action="store_true", help="Read files as the Zoo does, which runs code from them")


def _settle_env(command: str, arguments: argparse.Namespace) -> None:
    """Import the modules of environments; ``--env module:Id`` becomes ``--env Id`` with that module."""
    if command in ("train", *_PLAY_BACK):
        env_id = getattr(arguments.env, "gym_id", arguments.env)
        found = check_env(env_id, arguments.gym_packages)
        arguments.env, arguments.gym_packages = type(arguments.env)(found.env_id), list(found.packages)
    elif command == "benchmark":
        import_modules(arguments.gym_packages)
    elif command in ("plot-train", "all-plots"):
        arguments.env = [env_id.rpartition(":")[2] for env_id in arguments.env]


def _check_results(command: str, arguments: argparse.Namespace) -> None:
    if command == "plot-from-file" and not Path(arguments.input).is_file():
        raise ArgumentError("--input", arguments.input, "a file that all-plots has written (-o)")
    if command == "all-plots":
        _tell_unequal_runs(arguments)
    if command != "plot-train":
        return
    runs = Path(arguments.exp_folder) / arguments.algo
    if not runs.is_dir():
        raise ArgumentError("--exp-folder", arguments.exp_folder, f"a folder with runs in {runs}", "Train first, or give -f.")


def _tell_unequal_runs(arguments: argparse.Namespace) -> None:
    for folder, algo, env_id in product(arguments.exp_folders, arguments.algos, arguments.env):
        lengths = set()
        for file in (Path(folder) / algo.lower()).glob(f"*{env_id}*/evaluations.npz"):
            with suppress(OSError, ValueError, LookupError):
                lengths.add(int(np.load(file)["timesteps"][-1]))
        if len(lengths) > 1:
            steps = ", ".join(f"{length:,}" for length in sorted(lengths))
            print(
                f"Runs of {algo} on {env_id} in {folder} have unequal lengths ({steps} steps): those with fewer evaluations "
                "than the longest are left out, the others averaged evaluation by evaluation, whatever their steps."
            )


def _check_agent(command: str, arguments: argparse.Namespace) -> Path | None:
    """Require the run and the model that the Zoo would choose, and return the model, if it is one."""
    if "rl-trained-agents" in arguments.folder:  # the Zoo downloads its own agents into a folder of that name
        return None
    runs, env_id, number = Path(arguments.folder) / arguments.algo, arguments.env, arguments.exp_id
    names = [path.name.removeprefix(f"{env_id}_") for path in runs.glob(f"{env_id}_*")]
    numbers = sorted(int(name) for name in names if name.isdecimal())
    # Without numbered runs the Zoo looks for models beside each other.
    if not runs.is_dir() or not (numbers or number < 0 or any(runs.glob("*.zip"))):
        allowed = f"a folder with trained agents in {runs}, of which some for {env_id}"
        raise ArgumentError("--folder", arguments.folder, allowed, "Train one, or give -f.")
    if number > 0 and number not in numbers:
        raise ArgumentError("--exp-id", number, f"one of the runs in {runs}: {', '.join(map(str, numbers))}")
    if command == "record-training":
        return None
    number = number or max(numbers, default=0)
    return _checked_model(runs / f"{env_id}_{number}" if number > 0 else runs, arguments)


def _checked_model(run: Path, arguments: argparse.Namespace) -> Path:
    steps = sorted(int(path.name.split("_")[-2]) for path in run.glob("rl_model_*_steps.zip"))
    there = f"The checkpoints there: {', '.join(map(str, steps))}." if steps else "Train with --save-freq for checkpoints."
    if arguments.load_best:
        option, name = "--load-best", "best_model.zip"
    elif arguments.load_checkpoint is not None:
        option, name = "--load-checkpoint", f"rl_model_{arguments.load_checkpoint}_steps.zip"
    elif arguments.load_last_checkpoint:
        option, name = "--load-last-checkpoint", f"rl_model_{steps[-1] if steps else '*'}_steps.zip"
    else:
        option, name = "--exp-id", f"{arguments.env}.zip"
    if not (run / name).is_file():
        value = getattr(arguments, option[2:].replace("-", "_"))
        raise ArgumentError(option, value, advice=there, problem=f"chooses {run / name}, which does not exist")
    return run / name
