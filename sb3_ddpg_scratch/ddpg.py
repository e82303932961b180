"""
Deep Deterministic Policy Gradient in Stable-Baselines3's API: Algorithm 1 of Lillicrap et al. (2015), line by line.

``_setup_model`` makes the networks, target networks and replay buffer. SB3's ``learn`` then alternates between
``collect_rollouts``, which acts (``_sample_action``) and stores transitions (``_store_transition``), and ``train``,
where an updater samples a minibatch for each update. All updaters compute the same; the one to read is
:mod:`sb3_ddpg_scratch.updates.autograd`: ``td_target``, ``critic_loss``, ``actor_loss``, ``soft_update``.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_ddpg_scratch import (
    alarms,
    export,
    learn_setup,
    learning_rates,
    model_setup,
    rollout,
    training_log,
    validation,
)
from sb3_ddpg_scratch.checkpoint.training import resume_model
from sb3_ddpg_scratch.data.adding import add_transitions
from sb3_ddpg_scratch.data.offline import learn_offline
from sb3_ddpg_scratch.mixed_replay import replay_of
from sb3_ddpg_scratch.model_file import SafeFiles
from sb3_ddpg_scratch.names import Names, names_of
from sb3_ddpg_scratch.networks import Actor, Critic
from sb3_ddpg_scratch.noise import NoiseSpec, VectorNoise
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.rollout import Actions, AtOnce, methods_of
from sb3_ddpg_scratch.updates import UPDATERS, Networks


class ScratchDDPG(SafeFiles):
    """
    Deep Deterministic Policy Gradient (Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971), written by hand.

    The arguments up to ``_init_setup_model`` are those of SB3's ``DDPG``, with the same order and defaults; only
    ``action_noise`` differs, since a deterministic policy without noise never explores. With ``policy_delay=2``,
    ``target_policy_noise=0.2`` and ``policy_kwargs=dict(n_critics=2)`` it is TD3 (Fujimoto et al. 2018,
    https://arxiv.org/abs/1802.09477). Actions are normalized to [-1, 1] everywhere except in the environment.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"SimbaPolicy"``, the name of a policy that you
        registered, or a class derived from ``ScratchDDPGPolicy`` or SB3's ``TD3Policy``
    :param env: the environment to learn from, or its Gymnasium id; needs bounded ``Box`` actions
    :param learning_rate: of the actor (and the critic): a number, or a function of the progress remaining (from 1 to 0)
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: environment steps before the first update
    :param batch_size: transitions per update
    :param tau: share of the trained networks in the target networks' soft update, in [0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: environment steps between trainings, or a pair of a number and ``"step"`` or ``"episode"``
    :param gradient_steps: updates per training; -1 for as many as there were environment steps since the last one
    :param action_noise: exploration noise in normalized action units: an SB3 ``ActionNoise``, ``None`` for none, or
        a name or dict for :func:`~sb3_ddpg_scratch.noise.make_noise`, as in ``{"type": "gaussian", "sigma": 0.1}``
    :param replay_buffer_class: class of the replay buffer; ``None`` to choose by observation space and ``n_steps``
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param optimize_memory_usage: store each observation once
    :param n_steps: length of the n-step return, when ``replay_buffer_class`` is ``None``
    :param tensorboard_log: folder for TensorBoard; ``None`` for none
    :param policy_kwargs: arguments of the policy, see :class:`~sb3_ddpg_scratch.policies.ScratchDDPGPolicy`
    :param verbose: 0 for no output, 1 for information, 2 for debugging
    :param seed: seed of all random generators, including the noise's
    :param device: device of the networks; ``"auto"`` for a GPU where there is one
    :param _init_setup_model: whether to build the networks immediately
    :param stats_window_size: episodes over which logged returns and lengths are averaged
    :param qf_learning_rate: learning rate of the critic, a number or a function; ``None`` for the actor's
    :param max_grad_norm: maximum norm of the gradient, for actor and critic separately; ``None`` for no limit
    :param random_steps: environment steps with random actions at the beginning; ``None`` for ``learning_starts``
    :param policy_delay: updates of the critic for each update of the actor and the target networks
    :param target_policy_noise: standard deviation of TD3's target policy smoothing, in normalized units; 0 for none
    :param target_noise_clip: limit for the absolute value of that noise
    :param updater: how an update is computed: ``"autograd"`` is the reference, for any policy, equal to SB3 to the last bit;
        ``"analytic"`` has gradients written by hand for MLPs; ``"compiled"`` has them compiled by Numba; ``"auto"``
        picks the fastest updater that supports the policy
    :param action_l2: weight of the mean squared action in the actor's loss, against saturation (Plappert et al. 2018,
        https://arxiv.org/abs/1802.09464); 0 for none
    :param observation_names: a name with its unit for each number of the observation, as in ``"pressure [Pa]"``, for reports,
        errors and exported policies; a dict of lists for Dict observations; ``None`` for those in the environment's
        ``metadata["observation_names"]``, if any
    :param action_names: the same for actions
    :param bc_alpha: alpha of TD3+BC (Fujimoto and Gu 2021, https://arxiv.org/abs/2106.06860): keeps the policy close to the
        actions in the replay buffer, for :meth:`learn_offline`; 2.5 is theirs, 0 clones alone, ``None`` is off
    :param bc_weight: weight of that cloning, a number or a function of the progress remaining; ``None`` for the progress
        remaining itself, so that cloning is full in :meth:`learn_offline` and fades out during ``learn``
    :param demonstration_share: share of each batch that is drawn from transitions of :meth:`add_transitions`, which are then
        never overwritten; ``None`` to store them among all others
    :raises ArgumentError: for an invalid argument
    """

    policy_aliases = model_setup.POLICIES
    own_methods: tuple[Any, ...] = ()
    updater_in_use = property(model_setup.updater_in_use)
    policy: ScratchDDPGPolicy
    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic
    qf_lr_schedule: Schedule | None
    # The last good checkpoint; set by callbacks that save them.
    last_checkpoint: str | None = None
    _interrupted_learn: learn_setup.InterruptedLearn | None = None
    _resumed_from: Path | None = None
    _outputs_checked = _statistics_unread = observations_normalized = _buffer_loaded = False
    # Closed when ``learn`` ends, even on an error.
    _after_learn: ExitStack
    is_learning = learns_offline = False
    _work: AtOnce | None = None
    normalized_within: dict[str, float] = {}  # noqa: RUF012  # replaced, never changed

    @validation.with_hints_for_keywords
    def __init__(
        self,
        policy: str | type[BasePolicy],
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
        action_l2: float = 0.0,
        observation_names: Names = None,
        action_names: Names = None,
        bc_alpha: float | None = None,
        bc_weight: float | Schedule | None = None,
        demonstration_share: float | None = None,
    ) -> None:
        env = model_setup.make_checked_env(env, verbose)
        updates = (buffer_size, learning_starts, batch_size, tau, gamma, train_freq, gradient_steps)
        replay = (replay_buffer_class, replay_buffer_kwargs, optimize_memory_usage, n_steps)
        general: Any = {"policy_kwargs": policy_kwargs, "verbose": verbose, "seed": seed, "device": device}
        logs: Any = {"stats_window_size": stats_window_size, "tensorboard_log": tensorboard_log}
        fixed: Any = {"support_multi_env": True, "sde_support": False}
        super().__init__(policy, env, learning_rate, *updates, None, *replay, **general, **logs, **fixed)  # type: ignore[misc]
        self.action_noise = action_noise  # type: ignore[assignment]  # built in _setup_model, once the action space is known
        self.qf_learning_rate = qf_learning_rate
        self.max_grad_norm = max_grad_norm
        self.action_l2 = action_l2
        self.random_steps = random_steps
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.updater = updater
        self.observation_names, self.action_names = observation_names, action_names
        self.bc_alpha, self.bc_weight, self.demonstration_share = bc_alpha, bc_weight, demonstration_share
        self.demonstrations: ReplayBuffer | None = None
        model_setup.default_to_one_critic(self)
        if _init_setup_model:
            self._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return model_setup.find_policy(policy_name, self.policy_aliases)

    def _setup_model(self) -> None:
        """Initialize critic, actor, their target networks and the replay buffer."""
        model_setup.adopt_sb3_model(self)
        validation.check_arguments(self, UPDATERS)
        vars(self).update(names_of(self))
        with model_setup.own_noise_and_buffer(self):
            super()._setup_model()
        model_setup.name_networks(self)
        model_setup.set_up_critic_learning_rate(self)
        self._updater = model_setup.make_updater(self)
        self._alarms = alarms.Alarms()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all random generators as in SB3 (``None``: none), and the noise unless it has a seed of its own."""
        super().set_random_seed(seed)
        if seed is not None and isinstance(self.action_noise, VectorNoise):
            self.action_noise.seed_from(seed)

    def _sample_action(self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1) -> Actions:
        """``a = mu(s) + N``, or random actions in the warm-up; in environment units, and normalized for the replay buffer."""
        return rollout.select_actions(self, learning_starts, action_noise, n_envs)

    # Stores ``(s, a, r, s')`` of every environment.
    _store_transition = rollout.store_transition
    predict = alarms.predict
    collect_rollouts = rollout.collect_rollouts

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Sample minibatches and update the networks with each; raises ``DivergenceError`` if a loss is not finite."""
        assert self.replay_buffer is not None
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        self._statistics_unread = True
        if gradient_steps <= 0:
            self.policy.set_training_mode(True)
            return
        settings, updates_before, env = self._update_settings(), self._n_updates, self._vec_normalize_env
        replay = replay_of(self)
        self._n_updates += gradient_steps
        # Samples, and calls td_target, critic_loss, actor_loss and soft_update, or compiled code that does the same.
        arguments = (replay, gradient_steps, batch_size, settings, updates_before, env)
        self._updater.train(self.policy, self._networks(), *arguments)
        # Off the CPU, reading a number waits for the device: losses are then checked when the logger is read.
        if self.device.type == "cpu" and not self._updater.losses_are_finite():
            training_log.check_losses(self)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """Set the learning rates of actor and critic, which may differ, and those of other optimizers to the actor's."""
        if others := learning_rates.set_learning_rates_of(self, optimizers):
            super()._update_learning_rate(others)

    def _networks(self) -> Networks:
        return Networks(self.actor, self.critic, self.actor_target, self.critic_target)

    _update_settings = model_setup.update_settings

    @property
    def logger(self) -> Logger:
        """The logger; accessing it reads the latest training's statistics from the device."""
        if self._statistics_unread:
            self._statistics_unread = False
            training_log.record_statistics(self)
        return self._logger

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "ScratchDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """See SB3. After :meth:`resume`, nothing is reset, and ``total_timesteps`` counts the whole training."""
        with learn_setup.learning(self):
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
            if self._n_updates >= self._alarms.next_look:
                alarms.look(self, self._updater.read_statistics())
            return self

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return super()._init_callback(learn_setup.with_progress_bar(callback) if progress_bar else callback)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        with learn_setup.prepared_learn(self, reset_num_timesteps) as resets:
            _, callback = super()._setup_learn(total_timesteps, callback, resets, tb_log_name, progress_bar)
        learn_setup.continue_interrupted(self, total_timesteps, callback)
        learn_setup.warn_of_settings(self)
        return self._total_timesteps, callback

    @classmethod
    def resume(cls, path: str | Path, env: GymEnv | str, **settings: Any) -> Self:
        """
        Load the newest intact checkpoint of a :class:`~sb3_ddpg_scratch.ResumableCheckpoint`. The model's next
        ``learn``, with the same ``total_timesteps``, continues to the same result bit for bit.

        :param path: a folder of checkpoints, or one checkpoint
        :param env: environments made like those of the interrupted training
        :param settings: constructor arguments: those that a checkpoint cannot hold, such as functions; others replace its own
        :return: the model
        :raises CheckpointError: if no intact checkpoint fits
        :raises ArgumentError: if an argument that the checkpoint cannot hold is missing
        """
        return resume_model(cls, path, env, **settings)

    add_transitions = add_transitions
    learn_offline = learn_offline
    export_onnx = export.export_onnx
    export_torch = export.export_torch
    __getstate__ = learn_setup.state_of

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []


# While these are a model's, its work can be gathered.
ScratchDDPG.own_methods = methods_of(ScratchDDPG)
