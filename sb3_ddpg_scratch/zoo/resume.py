"""``train --checkpoint-every N`` and ``train --resume RUN_DIR``: trainings of the Zoo that lose nothing when killed."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch.checkpoint.callback import ResumableCheckpoint
from sb3_ddpg_scratch.checkpoint.resuming import read_newest
from sb3_ddpg_scratch.checkpoint.storage import checkpoints_in
from sb3_ddpg_scratch.checkpoint.training import restore_training
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.zoo.files import ALGO
from sb3_ddpg_scratch.zoo.saved_yaml import read_saved

CHECKPOINTS = "checkpoints"
# What may be given beside --resume; everything else is the interrupted run's.
_FREE = ("resume", "checkpoint_every", "keep", "verbose", "progress")


def add_options(group: argparse._ArgumentGroup) -> None:
    """
    :param group: where the options are entered
    """
    group.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        help="Write a checkpoint every N steps, from which --resume goes on to the same result bit for bit",
    )
    group.add_argument("--keep", metavar="K", type=int, help="How many checkpoints to keep (2 if not given)")
    group.add_argument(
        "--resume", metavar="RUN_DIR", help="Go on with a run that was interrupted, in its folder and with its settings"
    )


def adopt_run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """
    Give the arguments of ``train --resume`` the values that they had in the run.

    :param arguments: as they were parsed
    :param parser: the script's
    :raises ArgumentError: for a folder that is no run with checkpoints, or options that would change the run
    """
    if arguments.resume is None:
        return
    run = Path(arguments.resume)
    given = [name for name, value in vars(arguments).items() if name not in _FREE and value != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        advice = "A resumed run has the settings that it began with."
        raise ArgumentError("--resume", arguments.resume, f"given without {names}", advice)
    if not checkpoints_in(run / CHECKPOINTS):
        advice = "Train with --checkpoint-every first."
        raise ArgumentError("--resume", arguments.resume, "the folder of a run with checkpoints", advice)
    for name, value in read_saved(saved_file(run, "args.yml")).items():
        if name not in _FREE or getattr(arguments, name) == parser.get_default(name):
            setattr(arguments, name, value)
    arguments.resume = str(run)


def check_options(arguments: argparse.Namespace) -> None:
    """
    :param arguments: of ``train``, complete
    :raises ArgumentError: for checkpoints where none can be made
    """
    if arguments.checkpoint_every is None:
        if arguments.keep is not None:
            raise ArgumentError("--keep", arguments.keep, "left out without --checkpoint-every")
        return
    for name, value in (("--checkpoint-every", arguments.checkpoint_every), ("--keep", arguments.keep)):
        if value is not None and value < 1:
            raise ArgumentError(name, value, "at least 1")
    if arguments.algo != ALGO:
        raise ArgumentError("--checkpoint-every", arguments.checkpoint_every, f"left out with --algo {arguments.algo}")
    if arguments.optimize_hyperparameters:
        raise ArgumentError("--checkpoint-every", arguments.checkpoint_every, "left out beside -optimize")


@contextmanager
def checkpointed(parsed: list[argparse.Namespace]) -> Iterator[None]:
    """
    Have the Zoo's experiments write checkpoints, and go on from them, if they are asked to. While one trains, no other
    does in its folder.

    :param parsed: will hold the script's arguments once it has parsed them
    """
    set_up, create = ExperimentManager.setup_experiment, ExperimentManager.create_callbacks
    create_folder, held = ExperimentManager.create_log_folder, ExitStack()

    def setup_experiment(self: ExperimentManager) -> Any:
        run = parsed[0].resume if parsed else None
        if run is None:
            return set_up(self)
        self.save_path = run
        self.params_path = str(saved_file(Path(run), "config.yml").parent)
        # Before the checkpoint is read: another process might be about to write the next one.
        held.enter_context(hold_folder(Path(run), "--resume"))
        # Chooses kernels as the run did, before the model is made.
        checkpoint = read_newest(Path(run) / CHECKPOINTS)
        made: Any = set_up(self)
        model: BaseAlgorithm = made[0]
        assert isinstance(model, ScratchDDPG)
        restore_training(model, checkpoint)
        print(f"Going on from {checkpoint.folder}, at step {checkpoint.step}")
        return made

    def create_log_folder(self: ExperimentManager) -> None:
        # Processes that share a study (-optimize) share its folder.
        if parsed and parsed[0].resume is None and not self.optimize_hyperparameters:
            held.enter_context(hold_folder(Path(self.save_path), "--log-folder"))
        create_folder(self)

    def create_callbacks(self: ExperimentManager) -> None:
        create(self)
        if parsed and parsed[0].checkpoint_every is not None:
            folder = Path(self.save_path) / CHECKPOINTS
            self.callbacks.append(ResumableCheckpoint(folder, parsed[0].checkpoint_every, parsed[0].keep or 2))

    with (
        held,
        mock.patch.object(ExperimentManager, "setup_experiment", setup_experiment),
        mock.patch.object(ExperimentManager, "create_callbacks", create_callbacks),
        mock.patch.object(ExperimentManager, "create_log_folder", create_log_folder),
    ):
        yield


def saved_file(run: Path, name: str) -> Path:
    """
    :param run: a run's folder
    :param name: ``args.yml`` or ``config.yml``
    :return: that file, in the folder that is named after the environment
    :raises ArgumentError: if it is not there
    """
    found = sorted(run.glob(f"*/{name}"))
    if not found:
        raise ArgumentError("--resume", str(run), f"a run's folder, with {name} in a folder named after the environment")
    return found[0]
