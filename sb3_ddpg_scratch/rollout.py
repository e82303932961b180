"""Acting and remembering: what happens between two trainings, inside SB3's ``collect_rollouts``."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ddpg_scratch.environment_check import all_finite, check_outputs, stop_if_not_finite
from sb3_ddpg_scratch.noise import check_noise_sample
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.updates import UpdaterChoice


def _methods(model: Any, policy: Any) -> tuple[Any, ...]:
    """What ``predict`` calls on its way to the actor."""
    return (model.predict, policy.predict, policy._predict, policy.obs_to_tensor, policy.set_training_mode)


# A class that overrides one of them, or was patched, is asked itself.
_METHODS = _methods(BaseAlgorithm, ScratchDDPGPolicy)
_POLICY_METHODS = frozenset({"predict", "_predict", "obs_to_tensor", "set_training_mode"})


class DeterministicRollout(OffPolicyAlgorithm):
    """Rollouts of a deterministic policy with action noise, without detours where packed rows allow it."""

    policy: ScratchDDPGPolicy
    random_steps: int | None
    _updater: UpdaterChoice
    # Where the last good state of training is; whoever saves checkpoints says so here.
    last_checkpoint: str | None = None
    _outputs_checked: bool = False

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Select the next actions: ``a = mu(s) + N`` (Lillicrap et al. 2015, Algorithm 1), or random ones in the warm-up.

        :param learning_starts: length of the warm-up, unless ``random_steps`` says otherwise
        :param action_noise: N, in normalised units
        :param n_envs: number of environments
        :return: actions in environment units, and normalised ones for the replay buffer, both ``(n_envs, *action_shape)``
        """
        random_steps = learning_starts if self.random_steps is None else self.random_steps
        action_shape = self.action_space.shape or ()
        if self.num_timesteps < random_steps:
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            scaled_actions = self.policy.scale_action(actions)
        elif self._acts_compiled():
            assert isinstance(self._last_obs, np.ndarray)
            observations = np.ascontiguousarray(self._last_obs, np.float32).reshape(n_envs, -1)
            scaled_actions = self._updater.compiled_actor(observations).reshape(n_envs, *action_shape)
        else:
            # To environment units and back, as in SB3: that rounding belongs to its results.
            assert self._last_obs is not None, "no observation yet: call learn()"
            actions, _ = self.predict(self._last_obs, deterministic=False)
            scaled_actions = self.policy.scale_action(actions)
        if action_noise is not None:
            noise = action_noise()
            check_noise_sample(noise, action_shape, n_envs)
            scaled_actions = np.maximum(np.minimum(scaled_actions + noise, 1), -1)
        return self.policy.unscale_action(scaled_actions), scaled_actions

    def _acts_compiled(self) -> bool:
        """Whether the compiled actor does what ``predict`` would."""
        policy = self.policy
        return (
            self._updater.may_compile
            and isinstance(self.replay_buffer, PackedReplayBuffer)
            and _methods(type(self), type(policy)) == _METHODS
            and "predict" not in vars(self)
            and _POLICY_METHODS.isdisjoint(vars(policy))
            and self._updater.compiled_actor.objection(policy._modules["actor"]) is None
        )

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store a transition of every environment, with the last observation of an episode that ended.

        :param replay_buffer: where to
        :param buffer_action: normalised actions
        :param new_obs: the next observations, or the first ones of the next episodes
        :param reward: the rewards
        :param dones: whether episodes ended
        :param infos: of each environment; ``terminal_observation`` is an ended episode's last observation
        :raises DivergenceError: if an observation or a reward is not finite
        :raises EnvironmentOutputError: at the first step, if one has the wrong shape or dtype
        """
        if not self._outputs_checked:
            check_outputs(self.observation_space, new_obs, reward, self.n_envs)
            self._outputs_checked = True
        any_done = dones.any()
        # The last observations of ended episodes are looked at one by one.
        if any_done or not all_finite(new_obs, reward):
            stop_if_not_finite(new_obs, reward, infos, self.num_timesteps, self.last_checkpoint)
        if self._vec_normalize_env is not None or not isinstance(replay_buffer, PackedReplayBuffer):
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
            return
        assert isinstance(new_obs, np.ndarray)
        assert isinstance(self._last_obs, np.ndarray)
        next_obs = new_obs
        if any_done:
            next_obs = new_obs.copy()
            for index in np.flatnonzero(dones):
                if infos[index].get("terminal_observation") is not None:
                    next_obs[index] = infos[index]["terminal_observation"]
        replay_buffer.add(self._last_obs, next_obs, buffer_action, reward, dones, infos)
        self._last_original_obs = self._last_obs
        self._last_obs = new_obs
