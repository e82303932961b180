"""RL Zoo's scripts, run with ScratchDDPG registered and as their default."""

import argparse
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.zoo import patches
from sb3_ddpg_scratch.zoo.manager import FOLDERS_HELD
from sb3_ddpg_scratch.zoo.registry import check_env, register
from sb3_ddpg_scratch.zoo.train import train, train_parser
from sb3_ddpg_scratch.zoo.train_options import add_train_options, adopt_run, check_train_options
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO

# Defaults that apply with our algorithm only.
OUR_DEFAULTS = {"env": "Pendulum-v1", "folder": "logs"}
# Each command with the Zoo's module and the function in it; scripts without one run as `python -m` does. `train` is ours.
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
    where ``train`` puts them. ``train`` also takes ``--preset``, ``--diagnostics``, ``--checkpoint-every`` and ``--resume``,
    and the plotting commands take ``--picture``.

    :param command: one of :data:`SCRIPTS`
    :param arguments: its arguments
    :raises ArgumentError: for an unknown preset, environment, or setting
    :raises SystemExit: for ``--help``, or arguments that the script does not know
    """
    register()
    with ExitStack() as stack:

        def parse(parser: argparse.ArgumentParser, parse_args: Callable[..., Any]) -> argparse.Namespace:
            parser.prog = f"sb3-ddpg-scratch {command}"
            finish = _extend(command, parser)
            parsed: argparse.Namespace = parse_args(parser, arguments)
            finish(parsed)
            _enter_patches(command, parsed, stack)
            return parsed

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


def _enter_patches(command: str, parsed: argparse.Namespace, stack: ExitStack) -> None:
    trusted = getattr(parsed, "trusted", False)
    if not trusted:
        stack.enter_context(patches.safe_reading())
    small = {"buffer_size": 1, "optimize_memory_usage": False} if command in _PLAY_BACK else {}
    if trusted or small:
        stack.enter_context(patches.loading_with(trusted=trusted, **small))
    if command in ("benchmark", "record-training"):
        stack.enter_context(patches.own_subprocesses())
    if command in _DRAW:
        stack.enter_context(patches.shown_in(parsed.picture))
    if command == "plot-from-file":
        stack.enter_context(patches.gathered_results(trusted))


def _extend(command: str, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Add our defaults and options to a script's parser; returns what completes the arguments that it then parses."""
    actions = {action.dest: action for action in parser._actions}
    for dest, default in (("algo", ALGO), ("algos", [ALGO])):
        if dest in actions:
            actions[dest].default, actions[dest].required = default, False
    ours = parser.add_argument_group("added by sb3-ddpg-scratch")
    ours.description = f"Without --algo it is {ALGO}; its settings are this package's."
    _add_options(command, ours)
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
        if command == "train":
            check_train_options(arguments)
        elif command == "enjoy":
            _check_enjoy(arguments)
        elif command == "benchmark":
            # The hub has none of ours.
            arguments.no_hub |= (Path(arguments.log_dir) / ALGO).is_dir()

    return finish


def _add_options(command: str, group: argparse._ArgumentGroup) -> None:
    if command == "train":
        add_train_options(group)
    if command in _DRAW:
        text = "Save the plot to this file (.png, .svg, .pdf; several get numbers) and show nothing"
        group.add_argument("--picture", metavar="FILE", help=text)
    if command in (*_PLAY_BACK, "train", "plot-from-file"):
        group.add_argument("--trusted", action="store_true", help="Read files as the Zoo does, which runs code from them")


def _check_enjoy(arguments: argparse.Namespace) -> None:
    check_env(arguments.env.gym_id, arguments.gym_packages)
    runs = Path(arguments.folder) / arguments.algo
    # The Zoo downloads its own agents into a folder of that name.
    if "rl-trained-agents" in arguments.folder or runs.is_dir():
        return
    raise ArgumentError("--folder", arguments.folder, f"a folder with trained agents in {runs}", "Train one, or give -f.")
