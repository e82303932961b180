"""The options that our command ``train`` adds to the Zoo's: presets, diagnostics, checkpoints and resuming."""

import argparse
from pathlib import Path

from sb3_ddpg_scratch.checkpoint.storage import checkpoints_in
from sb3_ddpg_scratch.errors import ArgumentError, require
from sb3_ddpg_scratch.zoo.saved_yaml import CHECKPOINTS, read_saved, saved_file
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, preset_file, preset_names

# What may be given beside --resume; everything else is the interrupted run's.
_FREE = ("resume", "checkpoint_every", "keep", "verbose", "progress")


def add_train_options(group: argparse._ArgumentGroup) -> None:
    presets = f"Settings of a known DDPG instead of {ALGO}.yml: {', '.join(preset_names())}"
    group.add_argument("--preset", metavar="NAME", help=presets)
    recorded = (
        "Record Q, targets, gradients and probe states (DiagnosticsCallback) and draw them as report.html beside the agent"
    )
    group.add_argument("--diagnostics", action="store_true", help=recorded)
    every = "Write a checkpoint every N steps, from which --resume continues to the same result bit for bit"
    group.add_argument("--checkpoint-every", metavar="N", type=int, help=every)
    group.add_argument("--keep", metavar="K", type=int, help="How many checkpoints to keep (2 if not given)")
    resume = "Continue an interrupted run in its folder and with its settings"
    group.add_argument("--resume", metavar="RUN_DIR", help=resume)


def adopt_run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Give the arguments of ``train --resume`` the values that they had in the run; reject others that would change it."""
    if arguments.resume is None:
        return
    run = Path(arguments.resume)
    given = [name for name, value in vars(arguments).items() if name not in _FREE and value != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        advice = "A resumed run keeps the settings that it began with."
        raise ArgumentError("--resume", arguments.resume, f"given without {names}", advice)
    if not checkpoints_in(run / CHECKPOINTS):
        advice = "Train with --checkpoint-every first."
        raise ArgumentError("--resume", arguments.resume, "the folder of a run with checkpoints", advice)
    for name, value in read_saved(saved_file(run, "args.yml")).items():
        if name not in _FREE or getattr(arguments, name) == parser.get_default(name):
            setattr(arguments, name, value)
    arguments.resume = str(run)


def check_train_options(arguments: argparse.Namespace) -> None:
    """Check the complete arguments of ``train`` before anything is made, and choose the preset's file."""
    if arguments.diagnostics and arguments.optimize_hyperparameters:
        advice = "Train with the best trial's settings, then look."
        raise ArgumentError("--diagnostics", True, "left out beside -optimize", advice)
    if arguments.diagnostics:
        require("--diagnostics", "report", "plotly")
    if arguments.tensorboard_log:
        require("--tensorboard-log", "tensorboard", "tensorboard")
    _check_checkpoints(arguments)
    # A resumed run has the preset's file already.
    if arguments.preset is not None and arguments.resume is None:
        path = preset_file(arguments.preset)
        if arguments.algo != ALGO:
            raise ArgumentError("--preset", arguments.preset, f"left out with --algo {arguments.algo}")
        if arguments.conf_file is not None:
            raise ArgumentError("--preset", arguments.preset, "left out beside --conf-file", "Give one of the two.")
        arguments.conf_file = str(path)
    agent = Path(arguments.trained_agent)
    if arguments.trained_agent and not (agent.suffix == ".zip" and agent.is_file()):
        raise ArgumentError("--trained-agent", arguments.trained_agent, "the .zip of a trained agent")


def _check_checkpoints(arguments: argparse.Namespace) -> None:
    every = arguments.checkpoint_every
    if every is None:
        if arguments.keep is not None:
            raise ArgumentError("--keep", arguments.keep, "left out without --checkpoint-every")
        return
    for name, value in (("--checkpoint-every", every), ("--keep", arguments.keep)):
        if value is not None and value < 1:
            raise ArgumentError(name, value, "at least 1")
    if arguments.algo != ALGO:
        raise ArgumentError("--checkpoint-every", every, f"left out with --algo {arguments.algo}")
    if arguments.optimize_hyperparameters:
        raise ArgumentError("--checkpoint-every", every, "left out beside -optimize")
