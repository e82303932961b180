"""``train --diagnostics``: what a training of the Zoo did, recorded and drawn in its own folder."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch.errors import ArgumentError


def add_option(group: argparse._ArgumentGroup) -> None:
    """
    :param group: where ``--diagnostics`` is entered
    """
    text = "Record Q, targets, gradients and probe states (DiagnosticsCallback), and draw them as report.html beside the agent"
    group.add_argument("--diagnostics", action="store_true", help=text)


def check_option(arguments: argparse.Namespace) -> None:
    """
    :param arguments: of ``train``
    :raises ArgumentError: for ``--diagnostics`` where there is no one training to look at
    """
    if arguments.diagnostics and arguments.optimize_hyperparameters:
        raise ArgumentError(
            "--diagnostics", True, "left out beside -optimize", "Train with the best trial's settings, then look."
        )


@contextmanager
def diagnosed(parsed: list[argparse.Namespace]) -> Iterator[None]:
    """
    Have the Zoo's experiments record and draw what they do, if they are asked to.

    :param parsed: will hold the script's arguments once it has parsed them
    """
    create, save = ExperimentManager.create_callbacks, ExperimentManager.save_trained_model

    def create_callbacks(self: ExperimentManager) -> None:
        create(self)
        if parsed and parsed[0].diagnostics:
            # Imported where it is needed: Plotly and the rest take their time.
            from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback

            self.callbacks.append(DiagnosticsCallback(self.save_path))

    def save_trained_model(self: ExperimentManager, model: BaseAlgorithm) -> None:
        save(self, model)
        if parsed and parsed[0].diagnostics:
            from sb3_ddpg_scratch.diagnostics.report import write_report

            result = write_report([Path(self.save_path)], Path(self.save_path) / "report.html")
            print(f"What happened is in {result.path}")

    with (
        mock.patch.object(ExperimentManager, "create_callbacks", create_callbacks),
        mock.patch.object(ExperimentManager, "save_trained_model", save_trained_model),
    ):
        yield
