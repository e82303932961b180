"""Logging of a training's numbers, and the check that losses are finite."""

import math
from typing import Any

from sb3_ddpg_scratch import alarms
from sb3_ddpg_scratch.environment_check import checkpoint_hint
from sb3_ddpg_scratch.errors import DivergenceError
from sb3_ddpg_scratch.learning_rates import learning_rates


def check_losses(model: Any) -> None:
    """Raise :class:`DivergenceError` if a loss of the latest update is not finite."""
    for name, loss in model._updater.read_losses().items():
        if not math.isfinite(loss):
            actor_rate, critic_rate = learning_rates(model, model._current_progress_remaining)
            raise DivergenceError(
                f"{name}={loss} in update {model._n_updates}, at environment step {model.num_timesteps}: training has "
                "diverged and the networks are useless. Try a smaller learning rate (now "
                f"learning_rate={actor_rate:g} for the actor and {critic_rate:g} for the critic), a limit for gradients "
                f"(max_grad_norm=1.0; now {model.max_grad_norm}), or smaller rewards and observations (VecNormalize). "
                "What the environment returns was finite." + checkpoint_hint(model.last_checkpoint)
            )


def record_statistics(model: Any) -> None:
    """Log the numbers of the latest training."""
    check_losses(model)
    # That training's learning rates: schedules have moved on since.
    model._logger.record("train/learning_rate", model.actor.optimizer.param_groups[0]["lr"])
    if model.qf_lr_schedule is not None:
        model._logger.record("train/qf_learning_rate", model.critic.optimizer.param_groups[0]["lr"])
    model._logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    statistics = model._updater.read_statistics()
    for name, value in statistics.items():
        model._logger.record(f"train/{name}", value)
    alarms.look(model, statistics)
