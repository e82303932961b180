"""Acting and storing, at once."""

from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.alarms import predict
from sb3_ddpg_scratch.environment_check import check_finite, check_outputs
from sb3_ddpg_scratch.goals import check_goal_rewards
from sb3_ddpg_scratch.noise import check_noise_sample
from sb3_ddpg_scratch.observation_statistics import count_observations
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import PackedReplayBuffer

# For all environments, in environment units and normalized.
Actions = tuple[np.ndarray, np.ndarray]


# -------------------------------------------------------------------------------------------------------------- Acting


def _methods(model: Any, policy: Any) -> tuple[Any, ...]:
    """The methods that ``predict`` calls before the actor, and those that scale its actions."""
    own = (policy.predict, policy._predict, policy.obs_to_tensor, policy.set_training_mode)
    return (model.predict, *own, policy.scale_action, policy.unscale_action)


# If a class overrides one of them, or was patched, its own methods are called.
_METHODS = (predict, *_methods(BaseAlgorithm, ScratchDDPGPolicy)[1:])
_POLICY_METHODS = frozenset({"predict", "_predict", "obs_to_tensor", "set_training_mode", "scale_action", "unscale_action"})


def select_actions(model: Any, learning_starts: int, action_noise: ActionNoise | None, n_envs: int) -> Actions:
    """The next actions, ``mu(s) + N`` or random in the warm-up: in environment units, and normalized for the replay buffer."""
    random_steps = learning_starts if model.random_steps is None else model.random_steps
    if model.num_timesteps < random_steps:
        actions = np.array([model.action_space.sample() for _ in range(n_envs)])
    elif not acts_compiled(model):
        assert model._last_obs is not None, "no observation yet: call learn()"
        actions, _ = model.predict(model._last_obs, deterministic=False)
    elif model.action_space.dtype == np.float32:
        return model._updater.compiled_actor.act(model._last_obs, draw_noise(action_noise, model.action_space.shape, n_envs))
    else:
        actions = model.policy.unscale_action(model._updater.compiled_actor.act(model._last_obs, None)[1])
    return explore(model, actions, action_noise)


def explore(model: Any, actions: np.ndarray, action_noise: ActionNoise | None) -> Actions:
    """Add noise to the policy's actions, which are in environment units, and back, as in SB3, whose results are rounded so."""
    scaled_actions = model.policy.scale_action(actions)
    if action_noise is not None:
        noise = draw_noise(action_noise, model.action_space.shape, len(actions))
        scaled_actions = np.maximum(np.minimum(scaled_actions + noise, 1), -1)
    return model.policy.unscale_action(scaled_actions), scaled_actions


def draw_noise(action_noise: ActionNoise | None, action_shape: tuple[int, ...], n_envs: int) -> np.ndarray | None:
    if action_noise is None:
        return None
    noise = action_noise()
    check_noise_sample(noise, action_shape, n_envs)
    return noise


def acts_compiled(model: Any) -> bool:
    """Whether the compiled actor acts as ``predict`` would."""
    policy = model.policy
    return (
        isinstance(model.replay_buffer, PackedReplayBuffer)
        and _methods(type(model), type(policy)) == _METHODS
        and "predict" not in vars(model)
        and vars(policy).keys().isdisjoint(_POLICY_METHODS)
        and model.action_space.dtype.kind == "f"
        and model._updater.may_act(policy._modules["actor"])
    )


# ------------------------------------------------------------------------------------------------------------- Storing


def store_transition(
    model: Any,
    replay_buffer: ReplayBuffer,
    buffer_action: np.ndarray,
    new_obs: Any,
    reward: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> None:
    """Check and store a transition of every environment."""
    if not model._outputs_checked:
        observations, rewards, normalizer = new_obs, reward, model._vec_normalize_env
        if normalizer is not None:
            # Normalized observations are float32, whatever the environment's space.
            observations, rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
        check_outputs(model.observation_space, observations, rewards, model.n_envs)
        if isinstance(replay_buffer, HerReplayBuffer):
            check_goal_rewards(replay_buffer, model.env, observations, infos[0])
        model._outputs_checked = True
    check_step(model, new_obs, reward, dones, infos)
    count_observations(model.policy, new_obs)
    last_obs, next_obs, rewards = original_transition(model, new_obs, reward, dones, infos)
    if next_obs is new_obs and not isinstance(replay_buffer, PackedReplayBuffer):
        # SB3's buffers change the shapes in a dict, and a user's may keep it.
        next_obs = deepcopy(next_obs)
    replay_buffer.add(last_obs, next_obs, buffer_action, rewards, dones, infos)
    advance_observations(model, new_obs)


def check_step(model: Any, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
    """Raise ``DivergenceError`` if a number of the environments is not finite."""
    any_done, normalizer = bool(np.count_nonzero(dones)), model._vec_normalize_env
    told = (model.num_timesteps, model.last_checkpoint, model.observation_names)
    check_finite((new_obs, rewards), infos, any_done, normalizer, *told)


def original_transition(model: Any, new_obs: Any, rewards: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
    """The observations before and after the step, and the rewards: before normalization, as they are stored."""
    normalizer = model._vec_normalize_env
    last_obs, next_obs = model._last_obs, new_obs
    if normalizer is not None:
        last_obs, next_obs, rewards = model._last_original_obs, original_observations(normalizer), normalizer.old_reward
    if np.count_nonzero(dones):
        next_obs = last_observations(next_obs, dones, infos, normalizer)
    return last_obs, next_obs, rewards


def advance_observations(model: Any, new_obs: Any) -> None:
    """Make the new observations the last ones, as SB3 does."""
    normalizer = model._vec_normalize_env
    model._last_original_obs = model._last_obs if normalizer is None else original_observations(normalizer)
    model._last_obs = new_obs


def original_observations(normalizer: VecNormalize) -> Any:
    # SB3's own wrapper makes new arrays in each step; ``get_original_obs`` would copy them.
    return normalizer.old_obs if type(normalizer) is VecNormalize else normalizer.get_original_obs()


def last_observations(
    new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]], normalizer: VecNormalize | None = None
) -> Any:
    """A copy of the new observations, with those of ended episodes replaced by their last, which SB3 normalizes."""
    is_dict = isinstance(new_obs, dict)
    next_obs = {key: part.copy() for key, part in new_obs.items()} if is_dict else new_obs.copy()
    for index in np.flatnonzero(dones):
        last = infos[index].get("terminal_observation")
        if last is not None and is_dict:
            last = last if normalizer is None else normalizer.unnormalize_obs(last)
            for key, part in next_obs.items():
                part[index] = last[key]
        elif last is not None:
            next_obs[index] = last
            if normalizer is not None:
                next_obs[index] = normalizer.unnormalize_obs(next_obs[index])
    return next_obs
