"""Acting and storing: what SB3's ``collect_rollouts`` asks of the algorithm in every environment step."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_ddpg_scratch.environment_check import all_finite, check_outputs, stop_if_not_finite
from sb3_ddpg_scratch.noise import check_noise_sample
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import PackedReplayBuffer

# Of all environments, in environment units and normalized.
Actions = tuple[np.ndarray, np.ndarray]


def _methods(model: Any, policy: Any) -> tuple[Any, ...]:
    """What ``predict`` calls on its way to the actor."""
    return (model.predict, policy.predict, policy._predict, policy.obs_to_tensor, policy.set_training_mode)


# A class that overrides one of them, or was patched, is asked itself.
_METHODS = _methods(BaseAlgorithm, ScratchDDPGPolicy)
_POLICY_METHODS = frozenset({"predict", "_predict", "obs_to_tensor", "set_training_mode"})


def select_actions(model: Any, learning_starts: int, action_noise: ActionNoise | None, n_envs: int) -> Actions:
    """The next actions, ``mu(s) + N`` or random in the warm-up: in environment units and normalized, for the replay buffer."""
    random_steps = learning_starts if model.random_steps is None else model.random_steps
    action_shape = model.action_space.shape or ()
    if model.num_timesteps < random_steps:
        actions = np.array([model.action_space.sample() for _ in range(n_envs)])
        scaled_actions = model.policy.scale_action(actions)
    elif _acts_compiled(model):
        observations = np.ascontiguousarray(model._last_obs, np.float32).reshape(n_envs, -1)
        scaled_actions = model._updater.compiled_actor(observations).reshape(n_envs, *action_shape)
    else:
        # To environment units and back, as in SB3: that rounding belongs to its results.
        assert model._last_obs is not None, "no observation yet: call learn()"
        actions, _ = model.predict(model._last_obs, deterministic=False)
        scaled_actions = model.policy.scale_action(actions)
    if action_noise is not None:
        noise = action_noise()
        check_noise_sample(noise, action_shape, n_envs)
        scaled_actions = np.maximum(np.minimum(scaled_actions + noise, 1), -1)
    return model.policy.unscale_action(scaled_actions), scaled_actions


def _acts_compiled(model: Any) -> bool:
    """Whether the compiled actor does what ``predict`` would."""
    policy = model.policy
    return (
        model._updater.may_compile
        and isinstance(model.replay_buffer, PackedReplayBuffer)
        and _methods(type(model), type(policy)) == _METHODS
        and "predict" not in vars(model)
        and _POLICY_METHODS.isdisjoint(vars(policy))
        and model._updater.compiled_actor.objection(policy._modules["actor"]) is None
    )


def store_packed(
    model: Any,
    replay_buffer: ReplayBuffer,
    buffer_action: np.ndarray,
    new_obs: Any,
    reward: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> bool:
    """
    Check a transition of every environment and store it, with the last observation of an episode that ended.

    Returns whether it was stored. It is not where SB3's way is needed: normalized observations, a buffer of another kind.
    """
    if not model._outputs_checked:
        check_outputs(model.observation_space, new_obs, reward, model.n_envs)
        model._outputs_checked = True
    any_done = dones.any()
    # The last observations of ended episodes are checked one by one.
    if any_done or not all_finite(new_obs, reward):
        stop_if_not_finite(new_obs, reward, infos, model.num_timesteps, model.last_checkpoint)
    if model._vec_normalize_env is not None or not isinstance(replay_buffer, PackedReplayBuffer):
        return False
    next_obs = new_obs
    if any_done:
        next_obs = new_obs.copy()
        for index in np.flatnonzero(dones):
            if infos[index].get("terminal_observation") is not None:
                next_obs[index] = infos[index]["terminal_observation"]
    replay_buffer.add(model._last_obs, next_obs, buffer_action, reward, dones, infos)
    model._last_original_obs = model._last_obs
    model._last_obs = new_obs
    return True
