"""The learning rates of actor and critic, which may follow schedules."""

from typing import Any

from stable_baselines3.common.utils import ConstantSchedule


def learning_rates(model: Any, progress_remaining: float) -> tuple[float, float]:
    """For actor and critic, when this share of training (1 to 0) remains."""
    actor_rate = model.lr_schedule(progress_remaining)
    return actor_rate, actor_rate if model.qf_lr_schedule is None else model.qf_lr_schedule(progress_remaining)


def set_learning_rates(model: Any) -> bool:
    """Set both optimizers to their current learning rates; returns whether any changed."""
    changed = False
    rates = learning_rates(model, model._current_progress_remaining)
    for optimizer, rate in zip((model.actor.optimizer, model.critic.optimizer), rates, strict=True):
        for group in optimizer.param_groups:
            changed = changed or group["lr"] != rate
            group["lr"] = rate
    return changed


def set_learning_rates_of(model: Any, optimizers: Any) -> list[Any]:
    """:func:`set_learning_rates`; returns those of the given optimizers that are neither actor's nor critic's."""
    set_learning_rates(model)
    given = optimizers if isinstance(optimizers, list) else [optimizers]
    return [optimizer for optimizer in given if optimizer not in (model.actor.optimizer, model.critic.optimizer)]


def are_constant(model: Any) -> bool:
    schedules = [schedule for schedule in (model.lr_schedule, model.qf_lr_schedule) if schedule is not None]
    return all(isinstance(getattr(schedule, "value_schedule", None), ConstantSchedule) for schedule in schedules)
