"""ScratchDDPG: Deep Deterministic Policy Gradient inside Stable-Baselines3's API."""

import io
import math
import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TrainFreq
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch import export
from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.environment_check import checked_outputs, checkpoint_hint, with_checked_first_step
from sb3_ddpg_scratch.errors import ArgumentError, DivergenceError
from sb3_ddpg_scratch.interruption import InterruptedLearn
from sb3_ddpg_scratch.model_file import SafeLoading
from sb3_ddpg_scratch.noise import NoiseSpec, VectorNoise, make_noise
from sb3_ddpg_scratch.policies import Actor, CnnPolicy, Critic, MlpPolicy, MultiInputPolicy, ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer, packable
from sb3_ddpg_scratch.rollout import DeterministicRollout
from sb3_ddpg_scratch.updates import UPDATERS, Networks, UpdaterChoice, UpdateSettings
from sb3_ddpg_scratch.validation import (
    check_action_space,
    check_choice,
    check_learning_rate,
    check_number,
    check_train_freq,
    check_whole_number,
)

SelfScratchDDPG = TypeVar("SelfScratchDDPG", bound="ScratchDDPG")


class ScratchDDPG(SafeLoading, DeterministicRollout):
    """
    Deep Deterministic Policy Gradient (Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971), written by hand.

    The arguments up to ``_init_setup_model`` are those of SB3's ``DDPG``, with the same order and defaults; only
    ``action_noise`` differs, since a deterministic policy without noise never explores. With ``policy_delay=2``,
    ``target_policy_noise=0.2`` and ``policy_kwargs=dict(n_critics=2)`` it is TD3 (Fujimoto et al. 2018,
    https://arxiv.org/abs/1802.09477). Actions are normalised to [-1, 1] everywhere but at the environment.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, or a class derived from
        :class:`~sb3_ddpg_scratch.policies.ScratchDDPGPolicy`
    :param env: the environment to learn from (if registered in Gymnasium, its id); bounded ``Box`` actions
    :param learning_rate: learning rate of the actor (and the critic, see ``qf_learning_rate``), a number or a function
        of the progress remaining (from 1 to 0)
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: environment steps before the first update
    :param batch_size: transitions per update
    :param tau: share of the trained networks in the target networks' soft update, in [0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: environment steps between trainings, or a pair of a number and ``"step"`` or ``"episode"``
    :param gradient_steps: updates per training; -1 for as many as there were environment steps since the last one
    :param action_noise: exploration noise in normalised action units: an SB3 ``ActionNoise``, ``None`` for none, or
        a name or dict for :func:`~sb3_ddpg_scratch.noise.make_noise`, as in ``{"type": "gaussian", "sigma": 0.1}``
    :param replay_buffer_class: class of the replay buffer; ``None`` to choose by observation space and ``n_steps``
    :param replay_buffer_kwargs: its further arguments
    :param optimize_memory_usage: store each observation once
    :param n_steps: length of the n-step return, when ``replay_buffer_class`` is ``None``
    :param tensorboard_log: folder for TensorBoard; ``None`` for none
    :param policy_kwargs: arguments of the policy, see :class:`~sb3_ddpg_scratch.policies.ScratchDDPGPolicy`
    :param verbose: 0 for no output, 1 for information, 2 for debugging
    :param seed: seed of all random generators, the noise's included
    :param device: device of the networks; ``"auto"`` for a GPU where there is one
    :param _init_setup_model: whether to build the networks at once
    :param stats_window_size: episodes over which logged returns and lengths are averaged
    :param qf_learning_rate: learning rate of the critic, a number or a function of the progress remaining;
        ``None`` for the actor's
    :param max_grad_norm: largest global norm of a gradient, for actor and critic each by itself; ``None`` for no limit
    :param random_steps: environment steps with random actions at the beginning; ``None`` for ``learning_starts``
    :param policy_delay: updates of the critic for each update of the actor and the target networks
    :param target_policy_noise: standard deviation of TD3's target policy smoothing, in normalised units; 0 for none
    :param target_noise_clip: largest size of that noise
    :param updater: how an update is computed: ``"autograd"`` is the reference, for any policy, with SB3's replay buffer and
        SB3's results to the last bit; ``"analytic"`` has gradients by hand for plain MLPs on the CPU; ``"compiled"`` has
        them compiled by Numba; ``"auto"`` takes the fastest that serves the policy
    :raises ArgumentError: for an argument that has a value it may not have
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: ScratchDDPGPolicy
    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    qf_lr_schedule: Schedule | None

    def __init__(
        self,
        policy: str | type[ScratchDDPGPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: NoiseSpec = "ou",
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        stats_window_size: int = 100,
        qf_learning_rate: float | Schedule | None = None,
        max_grad_norm: float | None = None,
        random_steps: int | None = None,
        policy_delay: int = 1,
        target_policy_noise: float = 0.0,
        target_noise_clip: float = 0.5,
        updater: str = "auto",
    ) -> None:
        if env is not None:
            env = maybe_make_env(env, verbose)
            check_action_space(env.action_space)
        check_whole_number("stats_window_size", stats_window_size, 1)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            tuple(train_freq) if isinstance(train_freq, list) else train_freq,
            gradient_steps,
            action_noise=None,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
        )
        self.action_noise = action_noise  # type: ignore[assignment]  # built in _setup_model, once the action space is known
        self.qf_learning_rate = qf_learning_rate
        self.max_grad_norm = max_grad_norm
        self.random_steps = random_steps
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.updater = updater
        self._statistics_unread = False
        # What ``resume`` has read, until the first ``learn`` goes on with it.
        self._interrupted_learn: InterruptedLearn | None = None
        self._resumed_from: Path | None = None
        # What is to be done when ``learn`` ends, however it ends.
        self._after_learn = ExitStack()
        if self._has_sb3_policy():
            # As in SB3's DDPG; the policy class by itself has two.
            self.policy_kwargs = {"n_critics": 1} | self.policy_kwargs

        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------------------------------------- Building the model

    def _setup_model(self) -> None:
        self._adopt_sb3_model()
        self._check_arguments()
        noise = make_noise(self.action_noise, self.action_space.shape or ())
        self.action_noise = None
        packed = self._packs_transitions()
        if packed and self.replay_buffer is None:
            self.replay_buffer = self._make_packed_buffer()
        super()._setup_model()
        if packed:
            # Still our choice to make when the model is loaded.
            self.replay_buffer_class = None
        self.action_noise = noise
        if isinstance(noise, VectorNoise) and self.seed is not None:
            noise.seed_from(self.seed, overwrite=False)

        self.qf_lr_schedule = None if self.qf_learning_rate is None else FloatSchedule(self.qf_learning_rate)
        update_learning_rate(self.policy.critic.optimizer, self._learning_rates(1.0)[1])
        self._create_aliases()
        self._updater = UpdaterChoice(self.updater)
        self._check_updater()

    def _check_updater(self) -> None:
        """Report at once which updater is used, if it is not the one that was asked for."""
        objection = self._updater.objection(self._networks())
        if self.updater == "auto":
            self._updater.expect(objection)
        name = self._updater.pick(self._networks()).name
        if objection is not None and self.verbose >= 1:
            print(f"Using the {name!r} updater, since {objection}.")

    def _packs_transitions(self) -> bool:
        """Whether replay keeps packed rows: where they suit, but for the reference, which samples from SB3's own buffer."""
        return self.replay_buffer_class is None and self.updater != "autograd" and packable(self.observation_space)

    def _make_packed_buffer(self) -> PackedReplayBuffer:
        arguments = (self.buffer_size, self.observation_space, self.action_space, self.device, self.n_envs)
        kwargs = {"optimize_memory_usage": self.optimize_memory_usage} | self.replay_buffer_kwargs
        if self.n_steps > 1:
            return PackedNStepReplayBuffer(*arguments, **kwargs | {"n_steps": self.n_steps, "gamma": self.gamma})
        return PackedReplayBuffer(*arguments, **kwargs)

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.actor_target = self.policy.actor_target
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target

    def _has_sb3_policy(self) -> bool:
        return self.policy_class.__module__ == "stable_baselines3.td3.policies"

    def _adopt_sb3_model(self) -> None:
        """Make what SB3's DDPG or TD3 saved ours: their policy and buffer classes, and no copies of batch-norm statistics."""
        if self._has_sb3_policy():
            # What TD3 does not save.
            self.policy_kwargs = {"n_critics": 2} | self.policy_kwargs
            ours = {"TD3Policy": MlpPolicy, "CnnPolicy": CnnPolicy, "MultiInputPolicy": MultiInputPolicy}
            self.policy_class = ours[self.policy_class.__name__]
            if self.replay_buffer_class in (ReplayBuffer, NStepReplayBuffer):
                # SB3 writes its own choice into the file.
                self.replay_buffer_class = None
        for network in ("actor", "critic"):
            for suffix in ("", "_target"):
                self.__dict__.pop(f"{network}_batch_norm_stats{suffix}", None)

    def _check_arguments(self) -> None:
        check_action_space(self.action_space)
        check_learning_rate("learning_rate", self.learning_rate)
        if self.qf_learning_rate is not None:
            check_learning_rate("qf_learning_rate", self.qf_learning_rate)
        for name, minimum in (("buffer_size", 1), ("batch_size", 1), ("n_steps", 1), ("policy_delay", 1)):
            check_whole_number(name, getattr(self, name), minimum)
        check_whole_number("learning_starts", self.learning_starts, 0)
        check_whole_number("gradient_steps", self.gradient_steps, -1)
        if self.random_steps is not None:
            check_whole_number("random_steps", self.random_steps, 0)
        check_train_freq(self.train_freq)
        check_number("tau", self.tau, 0, 1)
        check_number("gamma", self.gamma, 0, 1)
        check_number("target_policy_noise", self.target_policy_noise, 0)
        check_number("target_noise_clip", self.target_noise_clip, 0)
        if self.max_grad_norm is not None:
            check_number("max_grad_norm", self.max_grad_norm, 0, low_allowed=False)
        check_choice("updater", self.updater, UPDATERS)
        if not isinstance(self.policy_class, type) or not issubclass(self.policy_class, ScratchDDPGPolicy):
            raise ArgumentError("policy", self.policy_class, "a policy's name or a class derived from ScratchDDPGPolicy")
        if self.policy_kwargs.get("norm") == "batch" and self.batch_size < 2:
            raise ArgumentError("batch_size", self.batch_size, "at least 2 with norm='batch', which needs a spread")

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ArgumentError("policy", policy_name, "one of " + ", ".join(map(repr, self.policy_aliases)))
        return self.policy_aliases[policy_name]

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed all random generators: Python's, NumPy's, torch's, the spaces', the environments' and the noise's
        (unless the noise was given a seed of its own).

        :param seed: the seed; ``None`` changes nothing
        """
        super().set_random_seed(seed)
        if seed is not None and isinstance(self.action_noise, VectorNoise):
            self.action_noise.seed_from(seed)

    # -------------------------------------------------------------------------------------------------------- Learning

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update the networks: the inner loop of Algorithm 1 (Lillicrap et al. 2015). What one update does, from TD
        target to soft updates, is in :mod:`sb3_ddpg_scratch.updates.autograd`.

        :param gradient_steps: number of updates
        :param batch_size: transitions in each
        :raises DivergenceError: if a loss is no longer finite
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        self._statistics_unread = True
        if gradient_steps <= 0:
            return
        settings = UpdateSettings(
            self.gamma,
            self.tau,
            self.max_grad_norm,
            self.policy_delay,
            self.target_policy_noise,
            self.target_noise_clip,
        )
        updates_before = self._n_updates
        self._n_updates += gradient_steps
        env = self._vec_normalize_env
        self._updater.train(self._networks(), self.replay_buffer, gradient_steps, batch_size, settings, updates_before, env)
        # Off the CPU, reading a number waits for the device: there losses are looked at when the logger is.
        if self.device.type == "cpu":
            self._check_losses()

    def _networks(self) -> Networks:
        return Networks(self.actor, self.critic, self.actor_target, self.critic_target)

    def _learning_rates(self, progress_remaining: float) -> tuple[float, float]:
        """The learning rates of actor and critic when that share of training (1 to 0) remains."""
        actor_rate = self.lr_schedule(progress_remaining)
        return actor_rate, actor_rate if self.qf_lr_schedule is None else self.qf_lr_schedule(progress_remaining)

    def _set_learning_rates(self) -> None:
        actor_rate, critic_rate = self._learning_rates(self._current_progress_remaining)
        update_learning_rate(self.actor.optimizer, actor_rate)
        update_learning_rate(self.critic.optimizer, critic_rate)

    def _check_losses(self) -> None:
        for name, loss in self._updater.read_losses().items():
            if not math.isfinite(loss):
                actor_rate, critic_rate = self._learning_rates(self._current_progress_remaining)
                raise DivergenceError(
                    f"{name}={loss} in update {self._n_updates}, at environment step {self.num_timesteps}: training has "
                    "diverged and the networks are of no more use. Try a smaller learning rate (now "
                    f"learning_rate={actor_rate:g} for the actor and {critic_rate:g} for the critic), a limit for gradients "
                    f"(max_grad_norm=1.0; now {self.max_grad_norm}), or smaller rewards and observations (VecNormalize). "
                    "What the environment returns was finite." + checkpoint_hint(self.last_checkpoint)
                )

    # --------------------------------------------------------------------------------------------------------- Logging

    @property
    def logger(self) -> Logger:
        """The logger. The numbers of the latest training are read off the device when it is looked at, not before."""
        if self._statistics_unread:
            self._statistics_unread = False
            self._record_statistics()
        return self._logger

    def _record_statistics(self) -> None:
        self._check_losses()
        # Those of the latest training: schedules have moved on since.
        self._logger.record("train/learning_rate", self.actor.optimizer.param_groups[0]["lr"])
        if self.qf_lr_schedule is not None:
            self._logger.record("train/qf_learning_rate", self.critic.optimizer.param_groups[0]["lr"])
        self._logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in self._updater.read_statistics().items():
            self._logger.record(f"train/{name}", value)

    # --------------------------------------------------------------------------------------------- The learning contract

    def learn(
        self: SelfScratchDDPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "ScratchDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfScratchDDPG:
        """
        Train.

        The first ``learn`` of a model that was resumed goes on with the interrupted one: nothing is reset, whatever
        ``reset_num_timesteps`` says, and ``total_timesteps`` is that of the whole, as it was given then.

        :param total_timesteps: environment steps to train for (at least)
        :param callback: callback or callbacks, called in every step
        :param log_interval: episodes between two logs
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: whether to count steps from 0 (and begin the noise process anew) or to go on
        :param progress_bar: whether to show a progress bar
        :return: the trained model
        """
        with self._after_learn:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.env is not None, "no environment: call set_env() before learn()"
        resets = self._last_obs is None or (reset_num_timesteps and self._interrupted_learn is None)
        if resets and isinstance(self.replay_buffer, PackedReplayBuffer):
            self.replay_buffer.truncate_last_trajectory()
        if self._interrupted_learn is not None:
            return self._go_on_learning(self._interrupted_learn, total_timesteps, callback, tb_log_name, progress_bar)
        noise: Any = self.action_noise
        if isinstance(noise, VectorNoise):
            # SB3 resets the noise at every learn() and copies it for each environment; ours needs neither.
            noise.set_n_envs(self.env.num_envs)
            if reset_num_timesteps:
                noise.restart()
            self.action_noise = None
        elif hasattr(noise, "base_noise") and (self.env.num_envs == 1 or noise.n_envs != self.env.num_envs):
            # Vectorised for another number of environments, by an earlier learn(): SB3 vectorises its base anew.
            self.action_noise = noise = noise.base_noise
        self._outputs_checked = False
        try:
            with ExitStack() as stack:
                if resets:
                    stack.enter_context(checked_outputs(self.env, "reset"))
                buffer = self.replay_buffer
                if self.optimize_memory_usage and isinstance(buffer, PackedReplayBuffer) and buffer.handle_timeout_termination:
                    # SB3 warns of what only its own buffer loses.
                    stack.enter_context(warnings.catch_warnings())
                    warnings.filterwarnings("ignore", "The last trajectory in the replay buffer will be truncated")
                return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        finally:
            if isinstance(noise, VectorNoise):
                self.action_noise = noise

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """See SB3's ``OffPolicyAlgorithm``; the outputs of the first step are checked."""
        if not self._outputs_checked:
            env = with_checked_first_step(env)
        # Passing names on would cost a microsecond in every step.
        return super().collect_rollouts(env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval)

    def _go_on_learning(
        self,
        interrupted: InterruptedLearn,
        total_timesteps: int,
        callback: MaybeCallback,
        tb_log_name: str,
        progress_bar: bool,
    ) -> tuple[int, BaseCallback]:
        self._interrupted_learn = None
        noise, self.action_noise = self.action_noise, None
        _, callback = super()._setup_learn(total_timesteps, callback, False, tb_log_name, progress_bar)
        self.action_noise = noise
        self._num_timesteps_at_start = interrupted.first_timestep
        self._total_timesteps = interrupted.first_timestep + total_timesteps
        if self._total_timesteps != interrupted.total_timesteps:
            warnings.warn(
                f"The interrupted learn() was to make {interrupted.total_timesteps - interrupted.first_timestep} steps, "
                f"{self.num_timesteps - interrupted.first_timestep} of which were made. This one, with "
                f"total_timesteps={total_timesteps}, ends after {total_timesteps} of them, and schedules follow that number.",
                stacklevel=4,
            )
        interrupted.restore(callback)
        self.start_time = time.time_ns() - interrupted.elapsed_ns
        return self._total_timesteps, callback

    # ---------------------------------------------------------------------------------------------- Saving and resuming

    @classmethod
    def resume(cls: type[SelfScratchDDPG], path: str | Path, env: GymEnv | str, **settings: Any) -> SelfScratchDDPG:
        """
        Read the newest whole checkpoint of :class:`~sb3_ddpg_scratch.checkpoint.callback.ResumableCheckpoint`. The model's
        next ``learn``, with the same ``total_timesteps``, goes on where the interrupted one was, to the same result bit
        for bit::

            model = ScratchDDPG.resume("runs/pendulum", "Pendulum-v1")
            model.learn(100_000, callback=ResumableCheckpoint("runs/pendulum"))

        :param path: a folder of checkpoints, or one checkpoint
        :param env: environments made as those of the interrupted training
        :param settings: constructor arguments that a checkpoint cannot hold, such as functions; others override its own
        :return: the model
        :raises CheckpointError: if there is no checkpoint that is whole and fits
        :raises ArgumentError: for an argument that the checkpoint cannot hold and that is not given
        """
        # Checkpoints make models of this class, and so stand above it.
        from sb3_ddpg_scratch.checkpoint.resuming import resume

        return resume(cls, path, env, **settings)

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model as a zip file, which SB3 and RL Zoo read as well. The file is whole or absent: it is written aside,
        handed to the disk, and renamed.

        :param path: the file, to which ``.zip`` is added if it has no suffix, or an open file
        :param exclude: attributes to leave out besides those that always are
        :param include: attributes to save though they would be left out
        :raises OSError: if it cannot be written; what was there before is untouched
        """
        if not isinstance(path, (str, Path)):
            super().save(path, exclude, include)
            return
        target = Path(path) if Path(path).suffix else Path(f"{path}.zip")
        if target.is_dir():
            # SB3's way out.
            target = Path(f"{target}_2")
        with whole_file(target) as file:
            super().save(cast("io.BufferedIOBase", file), exclude, include)

    def _excluded_save_params(self) -> list[str]:
        ours = ["actor", "critic", "actor_target", "critic_target", "_updater", "_statistics_unread"]
        ours += ["last_checkpoint", "_outputs_checked"]
        ours += ["_interrupted_learn", "_resumed_from", "_after_learn"]
        return super()._excluded_save_params() + ours

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []

    def export_onnx(self, path: str | Path, vec_normalize: VecNormalize | None = None) -> None:
        """
        Write the policy as ONNX: the environment's observation in, the action in environment units out, with all
        preprocessing and VecNormalize's statistics inside. See :func:`sb3_ddpg_scratch.export.export_onnx`.

        :param path: the file, written whole or not at all
        :param vec_normalize: the statistics to apply; ``None`` for those of the model's own environment, if it has any
        :raises ExportError: for a policy that ONNX cannot express
        """
        export.export_onnx(self, path, vec_normalize)

    def export_torch(self, path: str | Path, vec_normalize: VecNormalize | None = None) -> None:
        """
        Write the policy as a program of ``torch.export``, with the same inputs and output as :meth:`export_onnx`.

        :param path: the file (``.pt2``), written whole or not at all
        :param vec_normalize: the statistics to apply; ``None`` for those of the model's own environment, if it has any
        :raises ExportError: for a policy that torch.export cannot follow
        """
        export.export_torch(self, path, vec_normalize)
