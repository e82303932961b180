"""From a checkpoint back to a model that continues training."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ddpg_scratch.checkpoint.constructor_arguments import settings_from
from sb3_ddpg_scratch.checkpoint.storage import Checkpoint, newest_whole
from sb3_ddpg_scratch.checkpoint.training import restore_training
from sb3_ddpg_scratch.errors import ArgumentError, CheckpointError

Model = TypeVar("Model", bound=OffPolicyAlgorithm)


def read_newest(path: str | Path) -> Checkpoint:
    """The newest whole checkpoint of a folder, with a warning about those that were skipped."""
    checkpoint, problems = newest_whole(Path(path))
    for problem in problems:
        warnings.warn(f"Skipped a checkpoint that is not whole. {problem}", stacklevel=2)
    return checkpoint


def resume_model(model_class: type[Model], path: str | Path, env: GymEnv | str, **settings: Any) -> Model:
    """
    Read the newest whole checkpoint that a :class:`~sb3_ddpg_scratch.ResumableCheckpoint` has written. The model's next
    ``learn``, with the same ``total_timesteps``, continues to the same result bit for bit.

    :param path: a folder of checkpoints, or one checkpoint
    :param env: environments made as those of the interrupted training
    :param settings: constructor arguments that a checkpoint cannot hold, such as functions; others override its own
    :return: the model
    :raises CheckpointError: if there is no checkpoint that is whole and fits
    :raises ArgumentError: for an argument that the checkpoint cannot hold and that is not given
    """
    checkpoint = read_newest(path)
    for name, reason in checkpoint.state["missing_settings"].items():
        if name not in settings:
            advice = f"Its value is not in the checkpoint: {reason}."
            raise ArgumentError(name, None, "given to resume() as it was given to the interrupted training", advice)
    try:
        saved = settings_from(checkpoint.state["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(checkpoint.folder, f"has settings that are not understood ({error})") from error
    model = model_class(env=env, **saved | settings)
    restore_training(model, checkpoint)
    return model
