"""The start of ``learn``: noise, checks of the first outputs, and continuing an interrupted training."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import MaybeCallback, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch import alarms
from sb3_ddpg_scratch.environment_check import checked_outputs
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.goals import check_holds_an_episode
from sb3_ddpg_scratch.noise import VectorNoise
from sb3_ddpg_scratch.observation_statistics import count_observations, statistics_of
from sb3_ddpg_scratch.replay import PackedReplayBuffer

_WHILE_LEARNING = ("_after_learn", "_work", "is_learning", "learns_offline")


class InterruptedLearn(NamedTuple):
    """The ``learn`` that a resumed model continues; ``restore`` undoes the changes made by starting another one."""

    total_timesteps: int
    first_timestep: int
    offline: bool
    elapsed_ns: int
    restore: Callable[[BaseCallback], None]


class WholeProgressBar(ProgressBarCallback):
    """SB3's, but of a resumed training it shows the whole, not only what is left."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        made = self.model.num_timesteps - self.model._num_timesteps_at_start
        self.pbar.total += made
        self.pbar.update(made)


def with_progress_bar(callback: MaybeCallback) -> list[BaseCallback]:
    given = callback if isinstance(callback, list) else [callback]
    return [*(one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given), WholeProgressBar()]


@contextmanager
def prepared_learn(model: Any, reset_num_timesteps: bool) -> Iterator[bool]:
    """Wrap SB3's ``_setup_learn``: restart our noise, check a reset's outputs. Yields whether steps are counted from 0."""
    if model.env is None:
        raise ArgumentError("env", None, "given", "Call set_env(env) before learn().")
    look_at_normalization(model)
    reset_num_timesteps = reset_num_timesteps and model._interrupted_learn is None
    resets = model._last_obs is None or reset_num_timesteps
    buffer, noise = model.replay_buffer, model.action_noise
    if buffer is not None and buffer.n_envs != model.env.num_envs:
        allowed = f"{model.env.num_envs}, the number of environments"
        advice = "Load a buffer that was filled by as many environments, or train in as many as filled this one."
        raise ArgumentError("replay_buffer.n_envs", buffer.n_envs, allowed, advice)
    packed = isinstance(buffer, PackedReplayBuffer)
    if isinstance(buffer, HerReplayBuffer):
        check_holds_an_episode(model.buffer_size, model.env)
        # Also after set_env: rewards of new goals are those of the environment that the model is trained in.
        buffer.env = model.env
    if packed and (resets or model._buffer_loaded):
        # The next transition does not follow the last one in the buffer.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer will be truncated")
            buffer.truncate_last_trajectory()
    model._buffer_loaded = False
    model.action_noise = _noise_for_sb3(model, reset_num_timesteps)
    model._outputs_checked = False
    try:
        with ExitStack() as stack:
            if resets:
                stack.enter_context(checked_outputs(model.env, "reset"))
            if model.optimize_memory_usage and packed:
                _let_sb3_truncate(buffer, stack)
            yield reset_num_timesteps
        if resets:
            count_observations(model.policy, model._last_obs)
    finally:
        if model.action_noise is None:
            model.action_noise = noise


def look_at_normalization(model: Any) -> None:
    statistics = model.get_vec_normalize_env()
    _check_normalization(model, statistics)
    alarms.look_at_statistics(model)
    # Saved with the model: the policy must not be exported without the statistics, or with others.
    model.normalized_within = alarms.normalized_within(statistics)
    model.observations_normalized = bool(model.normalized_within)
    model.statistics_id = None


@contextmanager
def learning(model: Any, offline: bool = False) -> Iterator[None]:
    """While a model learns; ``_after_learn`` is closed at the end, even on an error."""
    with ExitStack() as model._after_learn:
        model._updater.trust(None)
        model.is_learning, model.learns_offline = True, offline
        model._after_learn.callback(_end, model)
        yield


def state_of(self: Any) -> dict[str, Any]:
    """What copies and pickles have of a model: one made while it learns does not."""
    return {name: value for name, value in vars(self).items() if name not in _WHILE_LEARNING}


def _end(model: Any) -> None:
    model.is_learning = model.learns_offline = False
    model._work = None
    model._updater.trust(False)


def _noise_for_sb3(model: Any, restarts: bool) -> Any:
    """What SB3 shall reset and copy for each environment: not our own noise, which needs neither."""
    noise = model.action_noise
    if model._interrupted_learn is not None:
        # The noise continues where it left off.
        return None
    if isinstance(noise, VectorNoise):
        noise.set_n_envs(model.env.num_envs)
        if restarts:
            noise.restart()
        return None
    if hasattr(noise, "base_noise") and (model.env.num_envs == 1 or noise.n_envs != model.env.num_envs):
        # An earlier learn() vectorized it for another number of environments: SB3 vectorizes its base again.
        return noise.base_noise
    return noise


def _let_sb3_truncate(buffer: PackedReplayBuffer, stack: ExitStack) -> None:
    """SB3 marks the last transition as done, in a copy: it already is."""
    buffer.dones_writeable = True
    stack.callback(delattr, buffer, "dones_writeable")
    if buffer.handle_timeout_termination:
        # SB3's warning applies only to its own buffer.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "The last trajectory in the replay buffer will be truncated")


def _check_normalization(model: Any, statistics: VecNormalize | None) -> None:
    """
    Require VecNormalize's original observations, which are stored, to have the shapes that the policy takes; and observations
    to be normalized only once.
    """
    if statistics is None:
        return
    env: VecEnv = model.env
    if statistics.norm_obs and statistics_of(model.policy) is not None:
        problem = "has a VecNormalize that normalizes observations, which the policy does by itself (normalize_observations)"
        raise ArgumentError("env", env, advice="Make it with norm_obs=False.", problem=problem)
    taken, stored = (get_obs_shape(layer.observation_space) for layer in (env, statistics))
    if taken == stored:
        return
    above, layer = [], env
    while isinstance(layer, VecEnvWrapper) and layer is not statistics:
        above.append(type(layer).__name__)
        layer = layer.venv
    changed = f"changes the shape of its observations from {stored} to {taken}"
    problem = f"has VecNormalize below {' and '.join(above)}, which {changed}"
    raise ArgumentError("env", env, advice=f"Wrap the other way around: VecNormalize({above[-1]}(env, ...)).", problem=problem)


def warn_of_settings(model: Any) -> None:
    """Warn of a large sigma, a buffer smaller than a batch, or a ``learn`` that is known to end before ``learning_starts``."""
    alarms.look_at_noise(model)
    if model.buffer_size < model.batch_size:
        problem = f"buffer_size={model.buffer_size} is below batch_size={model.batch_size}"
        warnings.warn(f"{problem}: every batch repeats transitions. Give a larger buffer_size.", stacklevel=5)
    if model.train_freq.unit is not TrainFrequencyUnit.STEP or model.num_timesteps > model.learning_starts:
        return
    chunk = model.train_freq.frequency * model.env.num_envs
    last = model.num_timesteps + math.ceil((model._total_timesteps - model.num_timesteps) / chunk) * chunk
    if last <= model.learning_starts:
        problem = f"No update will be made: learn() ends at step {last}, and updates begin after"
        warnings.warn(f"{problem} learning_starts={model.learning_starts} steps.", stacklevel=5)


def continue_interrupted(model: Any, total_timesteps: int, callback: BaseCallback) -> None:
    """After a resume, continue the interrupted ``learn`` instead of starting a new one."""
    interrupted: InterruptedLearn | None = model._interrupted_learn
    if interrupted is None:
        return
    if interrupted.offline != model.learns_offline:
        name = "learn_offline" if interrupted.offline else "learn"
        raise ArgumentError("resume", None, problem=f"must be followed by {name}(), which was interrupted")
    model._interrupted_learn = None
    model._num_timesteps_at_start = interrupted.first_timestep
    model._total_timesteps = interrupted.first_timestep + total_timesteps
    if model._total_timesteps != interrupted.total_timesteps:
        warnings.warn(
            f"The interrupted training was to make {interrupted.total_timesteps - interrupted.first_timestep} steps, "
            f"{model.num_timesteps - interrupted.first_timestep} of which were made. This one, with "
            f"total_timesteps={total_timesteps}, ends after {total_timesteps} of them, and schedules follow that number.",
            stacklevel=4,
        )
    interrupted.restore(callback)
    model.start_time = time.time_ns() - interrupted.elapsed_ns
