"""RL Zoo's scripts, run with ScratchDDPG registered and as their default."""

import argparse
import importlib
import pickle
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.model_file import read_pickle
from sb3_ddpg_scratch.zoo import diagnose, resume
from sb3_ddpg_scratch.zoo.files import ALGO, near, preset_file, preset_names
from sb3_ddpg_scratch.zoo.reading import safe_reading, trusted
from sb3_ddpg_scratch.zoo.registry import register

DEFAULT_ENV = "Pendulum-v1"
LOG_FOLDER = "logs"

# Each command with the Zoo's module, and the function in it; scripts without one run as `python -m` does.
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
_DRAW = ("plot-train", "plot-from-file", "all-plots")


def run_script(command: str, arguments: Sequence[str]) -> None:
    """
    Run one of RL Zoo's scripts as its own command line would, with all of its options and some of ours.

    ``--algo`` is ``scratch_ddpg`` unless given. With it, ``--env`` is ``Pendulum-v1`` and trained agents are looked for
    where ``train`` puts them. ``train`` takes ``--preset``, ``--diagnostics``, ``--checkpoint-every`` and ``--resume``, and
    what draws takes ``--picture``.

    :param command: one of :data:`SCRIPTS`
    :param arguments: its arguments
    :raises ArgumentError: for an unknown preset, environment, or setting
    :raises SystemExit: for ``--help``, or arguments that the script does not know
    """
    register()
    module, function = SCRIPTS[command]
    parsed: list[argparse.Namespace] = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", [f"sb3-ddpg-scratch {command}", *arguments]))
        stack.enter_context(_parser_of(command, parsed))
        stack.enter_context(_own_subprocesses())
        stack.enter_context(safe_reading(parsed))
        if command == "train":
            stack.enter_context(diagnose.diagnosed(parsed))
            stack.enter_context(resume.checkpointed(parsed))
        if command in _PLAY_BACK:
            stack.enter_context(_small_replay_buffer())
        if command == "push-to-hub":
            stack.enter_context(_hub_metadata())
        if command in _DRAW:
            stack.enter_context(_pictures(parsed))
        if command == "plot-from-file":
            stack.enter_context(_single_runs(parsed))
        if function is None:
            sys.modules.pop(module, None)  # or runpy warns of a module that was imported before it is run
            runpy.run_module(module, run_name="__main__")
        else:
            getattr(importlib.import_module(module), function)()


@contextmanager
def _parser_of(command: str, parsed: list[argparse.Namespace]) -> Iterator[None]:
    # The scripts make their parsers inside of themselves: the first to parse is reached only as it does so.
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if parsed:
            return original(self, args, namespace)
        finish = _extend(command, self)
        parsed.append(original(self, args, namespace))
        finish(parsed[0])
        return parsed[0]

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        yield


def _extend(command: str, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Give a script's parser our defaults and options; returns what completes the arguments that it then parses."""
    actions = {action.dest: action for action in parser._actions}
    ours = parser.add_argument_group("added by sb3-ddpg-scratch")
    ours.description = f"Without --algo it is {ALGO}; its settings are this package's."
    for dest, default in (("algo", ALGO), ("algos", [ALGO])):
        if dest in actions:
            actions[dest].default, actions[dest].required = default, False
    _add_options(command, ours)
    # Defaults that go with our algorithm only, so that they wait until it is known which it is.
    wanted = {"env": DEFAULT_ENV, "folder": LOG_FOLDER}
    later = {
        dest: (actions[dest].default, value)
        for dest, value in wanted.items()
        if dest in actions and not (actions[dest].required or actions[dest].nargs)
    }
    for dest in later:
        actions[dest].default = None

    def finish(arguments: argparse.Namespace) -> None:
        if command == "train":
            resume.adopt_run(arguments, parser)
        for dest, (theirs, value) in later.items():
            if getattr(arguments, dest) is None:
                chosen = value if arguments.algo == ALGO else theirs
                kind = actions[dest].type
                setattr(arguments, dest, kind(chosen) if callable(kind) else chosen)
        if command == "train":
            _finish_train(arguments)
        elif command == "enjoy":
            _finish_enjoy(arguments)

    return finish


def _add_options(command: str, group: argparse._ArgumentGroup) -> None:
    if command == "train":
        help_text = f"Settings of a known DDPG instead of {ALGO}.yml: {', '.join(preset_names())}"
        group.add_argument("--preset", metavar="NAME", help=help_text)
        diagnose.add_option(group)
        resume.add_options(group)
    if command in _DRAW:
        group.add_argument(
            "--picture",
            metavar="FILE",
            help="Save the plot to this file (.png, .svg, .pdf; several get numbers) and show nothing",
        )
    if command in (*_PLAY_BACK, "train", "plot-from-file"):
        group.add_argument("--trusted", action="store_true", help="Read files as the Zoo does, which runs code from them")


def _finish_train(arguments: argparse.Namespace) -> None:
    diagnose.check_option(arguments)
    resume.check_options(arguments)
    if arguments.preset is not None:
        path = preset_file(arguments.preset)
        if arguments.algo != ALGO:
            raise ArgumentError("--preset", arguments.preset, f"left out with --algo {arguments.algo}")
        if arguments.conf_file is not None:
            raise ArgumentError("--preset", arguments.preset, "left out beside --conf-file", "Give one of the two.")
        arguments.conf_file = str(path)
    check_env(arguments.env, arguments.gym_packages)
    agent = Path(arguments.trained_agent)
    if arguments.trained_agent and not (agent.suffix == ".zip" and agent.is_file()):
        raise ArgumentError("--trained-agent", arguments.trained_agent, "the .zip of an agent that was trained")


def _finish_enjoy(arguments: argparse.Namespace) -> None:
    check_env(arguments.env.gym_id, arguments.gym_packages)
    runs = Path(arguments.folder) / arguments.algo
    # The Zoo downloads agents of its own into a folder of that name.
    if "rl-trained-agents" in arguments.folder or runs.is_dir():
        return
    raise ArgumentError("--folder", arguments.folder, f"a folder with trained agents in {runs}", "Train one, or give -f.")


def check_env(env_id: str, gym_packages: Sequence[str] = ()) -> None:
    """
    :param env_id: an environment's name
    :param gym_packages: modules that register further environments
    :raises ArgumentError: if no such environment is registered
    """
    import rl_zoo3.import_envs  # noqa: F401  # registers what the Zoo knows

    for module in gym_packages:
        importlib.import_module(module)
    if env_id not in gym.registry:
        allowed = "a registered environment (--gym-packages imports modules that register theirs)"
        raise ArgumentError("--env", env_id, allowed, near(env_id, gym.registry))


@contextmanager
def _small_replay_buffer() -> Iterator[None]:
    # The Zoo's scripts load their own off-policy algorithms with room for one transition. They know them by name, and
    # would allocate all of ours to play an episode.
    from rl_zoo3.utils import ALGOS

    algorithm: Any = ALGOS[ALGO]

    def load(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        return algorithm.load.__func__(cls, path, *args, **({"buffer_size": 1, "optimize_memory_usage": False} | kwargs))

    played = type(algorithm.__name__, (algorithm,), {"load": classmethod(load), "__module__": algorithm.__module__})
    with mock.patch.dict(ALGOS, {ALGO: played}):
        yield


@contextmanager
def _own_subprocesses() -> Iterator[None]:
    # `benchmark` and `record_training` start the Zoo's scripts anew, where ours would not be registered (and the first
    # looks for enjoy.py in the working folder).
    original = subprocess.call

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        own = [sys.executable, "-m", "sb3_ddpg_scratch"]
        if isinstance(command, list) and command[:2] == ["python", "enjoy.py"]:
            command = [*own, "enjoy", *command[2:]]
        elif isinstance(command, list) and command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [*own, "record-video", *command[3:]]
        return original(command, *args, **kwargs)

    with mock.patch.object(subprocess, "call", call):
        yield


@contextmanager
def _hub_metadata() -> Iterator[None]:
    # rl_zoo3 2.9.2 imports generate_metadata, which its own dependency has since renamed and made return another type.
    hub: types.ModuleType = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(hub, "generate_metadata"):
        yield
        return

    def generate_metadata(model_name: str, env_id: str, mean_reward: float, std_reward: float) -> dict[str, Any]:
        return hub._generate_metadata(model_name, env_id, mean_reward, std_reward).to_dict()

    with mock.patch.object(hub, "generate_metadata", generate_metadata, create=True):
        yield


@contextmanager
def _single_runs(parsed: list[argparse.Namespace]) -> Iterator[None]:
    # all-plots writes the score of a single run as a number, which plot-from-file skips, and then has nothing to draw.
    original = pickle.load

    def load(file: Any) -> Any:
        results = original(file) if trusted(parsed) else read_pickle(file)
        for environment in results.values():
            for entry in environment.values():
                if isinstance(entry, dict) and "last_evals" in entry:
                    entry["last_evals"] = np.atleast_1d(entry["last_evals"])
        return results

    with mock.patch.object(pickle, "load", load):
        yield


@contextmanager
def _pictures(parsed: list[argparse.Namespace]) -> Iterator[None]:
    from matplotlib import pyplot as plt

    def show(*args: Any, **kwargs: Any) -> None:
        if parsed[0].picture is None:
            original(*args, **kwargs)
            return
        path = Path(parsed[0].picture)
        drawn = [plt.figure(number) for number in plt.get_fignums() if number not in before]
        for number, figure in enumerate(drawn, start=1):
            target = path.with_name(f"{path.stem}-{number}{path.suffix}") if len(drawn) > 1 else path
            save_figure(figure, target)
            print(f"Saved the picture to {target}")

    original, before = plt.show, plt.get_fignums()
    try:
        with mock.patch.object(plt, "show", show):
            yield
    finally:
        # Scripts draw on figures by name: a second run in this process would draw on the first one's.
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def save_figure(figure: Any, path: Path) -> None:
    """
    :param figure: a Matplotlib figure
    :param path: file to write, whole or not at all; its suffix is the format
    :raises ArgumentError: for a format that Matplotlib does not know
    """
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ArgumentError("--picture", str(path), f"a file that ends in one of {', '.join('.' + name for name in formats)}")
    with whole_file(path) as file:
        figure.savefig(file, bbox_inches="tight", format=path.suffix.lstrip("."))
