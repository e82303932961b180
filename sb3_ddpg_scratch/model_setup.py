"""Builds noise, buffer and updater of a ``ScratchDDPG``, and adopts the models of SB3's algorithms."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.errors import ArgumentError, UnknownArgumentError
from sb3_ddpg_scratch.goals import check_goal_env, check_goal_selection, check_holds_an_episode
from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from sb3_ddpg_scratch.learning_rates import learning_rates
from sb3_ddpg_scratch.mixed_replay import replay_of
from sb3_ddpg_scratch.networks import is_plain_sb3, take_over
from sb3_ddpg_scratch.noise import VectorNoise, make_noise
from sb3_ddpg_scratch.observations import packable
from sb3_ddpg_scratch.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, ScratchDDPGPolicy, SimbaPolicy
from sb3_ddpg_scratch.priorities import PrioritizedDictReplayBuffer, PrioritizedReplayBuffer
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from sb3_ddpg_scratch.updates import Networks, UpdaterChoice, UpdateSettings
from sb3_ddpg_scratch.updates.choice import why_not_compiled_with
from sb3_ddpg_scratch.validation import POLICIES_ALLOWED, check_action_space, check_choice, check_keywords

POLICIES: dict[str, type[BasePolicy]] = {"MlpPolicy": MlpPolicy, "CnnPolicy": CnnPolicy, "MultiInputPolicy": MultiInputPolicy}
POLICIES["SimbaPolicy"] = SimbaPolicy
_STATISTICS = tuple(f"{network}_batch_norm_stats{suffix}" for network in ("actor", "critic") for suffix in ("", "_target"))


def make_checked_env(env: Any, verbose: int) -> Any:
    """The environment, created if given by its id, after a check of its action space."""
    if env is not None:
        env = maybe_make_env(env, verbose)
        check_action_space(env.action_space)
    return env


def find_policy(name: str, aliases: dict[str, type[BasePolicy]]) -> type[BasePolicy]:
    """The policy class for a name, which may also be one that a user registered with SB3's DDPG or TD3."""
    td3 = sys.modules.get("stable_baselines3.td3.td3")
    theirs = {} if td3 is None else td3.TD3.policy_aliases
    known = aliases | {key: policy for key, policy in theirs.items() if not is_sb3_policy(policy)}
    check_choice("policy", name, tuple(known))
    return known[name]


def is_sb3_policy(policy_class: type) -> bool:
    """Whether this is one of TD3's three classes, which ours replace; a user's class is left as it is."""
    module, name = (getattr(policy_class, name, "") for name in ("__module__", "__name__"))
    return module == "stable_baselines3.td3.policies" and name in ("TD3Policy", *POLICIES)


def default_to_one_critic(model: Any) -> None:
    """As SB3's DDPG does; policies derived from SB3's have two by default."""
    policy_class = model.policy_class
    if isinstance(policy_class, type) and not issubclass(policy_class, ScratchDDPGPolicy):
        with suppress(UnknownArgumentError):
            check_keywords(policy_class.__init__, ["n_critics"], "policy_kwargs")
            model.policy_kwargs = {"n_critics": 1} | model.policy_kwargs


def name_networks(model: Any) -> None:
    """Give the model its policy's networks as attributes, and check that the policy has them all."""
    networks = {name: getattr(model.policy, name, None) for name in Networks._fields}
    missing = [name for name, network in networks.items() if network is None]
    if missing:
        advice = f"It has no {', '.join(missing)}."
        raise ArgumentError("policy", model.policy_class, POLICIES_ALLOWED, advice)
    vars(model).update(networks)
    if model.updater != "autograd" and all(map(is_plain_sb3, networks.values())):
        # A user's policy with networks of SB3's.
        for network in networks.values():
            take_over(network, model.actor.activation_fn)


def adopt_sb3_model(model: Any) -> None:
    """Replace the policy and buffer classes of SB3's DDPG or TD3 with ours, and drop its copies of batch-norm statistics."""
    if is_sb3_policy(model.policy_class):
        # TD3 does not save this.
        model.policy_kwargs = {"n_critics": 2} | model.policy_kwargs
        model.policy_class = POLICIES.get(model.policy_class.__name__, MlpPolicy)
        if model.replay_buffer_class in (ReplayBuffer, NStepReplayBuffer, DictReplayBuffer):
            # SB3's own choice, which it saves.
            model.replay_buffer_class = None
    if isinstance(model.train_freq, list):
        model.train_freq = tuple(model.train_freq)
    for name in _STATISTICS:
        vars(model).pop(name, None)


@contextmanager
def own_noise_and_buffer(model: Any) -> Iterator[None]:
    """Wrap SB3's ``_setup_model``: make the noise, and a packed replay buffer where one is possible."""
    noise, model.action_noise = make_noise(model.action_noise, model.action_space.shape or ()), None
    # The reference samples from SB3's own buffer.
    packed = model.updater != "autograd" and packable(model.observation_space)
    chosen = packed and model.replay_buffer_class is None
    kind = model.replay_buffer_class if isinstance(model.replay_buffer_class, type) else ReplayBuffer
    if issubclass(kind, HerReplayBuffer):
        _set_up_hindsight(model, packed)
    elif issubclass(kind, PrioritizedReplayBuffer) and model.replay_buffer is None:
        model.replay_buffer = _make_prioritized_buffer(model)
    elif chosen and model.replay_buffer is None:
        model.replay_buffer = _make_packed_buffer(model)
    with ExitStack() as stack:
        if issubclass(kind, PrioritizedReplayBuffer):
            # SB3 says of any class that n_steps is not for it.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "`n_steps=")
        yield
    if chosen:
        # Chosen again when the model is loaded.
        model.replay_buffer_class = None
    model.action_noise = noise
    if isinstance(noise, VectorNoise) and model.seed is not None:
        noise.seed_from(model.seed, overwrite=False)


def set_up_critic_learning_rate(model: Any) -> None:
    """Create the schedule of ``qf_learning_rate``, if given, and set its first value."""
    model.qf_lr_schedule = None if model.qf_learning_rate is None else FloatSchedule(model.qf_learning_rate)
    update_learning_rate(model.policy.critic.optimizer, learning_rates(model, 1.0)[1])


def _set_up_hindsight(model: Any, packed: bool) -> None:
    """Make the buffer even without an environment, which a model that only predicts does not need."""
    check_goal_selection(**model.replay_buffer_kwargs)
    if model.env is not None:
        check_goal_env(model.env, model.observation_space)
        if model.buffer_size > 1:  # else it will only act
            check_holds_an_episode(model.buffer_size, model.env)
    if model.replay_buffer is None:
        chosen = (
            PackedHerReplayBuffer if packed and model.replay_buffer_class is HerReplayBuffer else model.replay_buffer_class
        )
        given = model.replay_buffer_kwargs
        if chosen is HerReplayBuffer and "n_steps" in given:
            problem = "cannot be combined with updater='autograd' or observations that are not vectors: SB3's buffer lacks it"
            raise ArgumentError("replay_buffer_kwargs['n_steps']", given["n_steps"], problem=problem)
        check_keywords(chosen.__init__, given, "replay_buffer_kwargs")
        made_for = {"env": model.env, "device": model.device, "n_envs": model.n_envs}
        if "n_steps" in given:
            made_for["gamma"] = model.gamma
        kwargs = made_for | {"optimize_memory_usage": model.optimize_memory_usage} | given
        model.replay_buffer = chosen(model.buffer_size, model.observation_space, model.action_space, **kwargs)


def _make_prioritized_buffer(model: Any) -> PrioritizedReplayBuffer:
    kind = model.replay_buffer_class
    check_keywords(kind.__init__, model.replay_buffer_kwargs, "replay_buffer_kwargs")
    if kind is PrioritizedReplayBuffer and isinstance(model.observation_space, spaces.Dict):
        kind = PrioritizedDictReplayBuffer
    own = {"optimize_memory_usage": model.optimize_memory_usage, "n_steps": model.n_steps, "gamma": model.gamma}
    arguments = (model.buffer_size, model.observation_space, model.action_space, model.device, model.n_envs)
    return kind(*arguments, **own | model.replay_buffer_kwargs)


def _make_packed_buffer(model: Any) -> PackedReplayBuffer:
    arguments = (model.buffer_size, model.observation_space, model.action_space, model.device, model.n_envs)
    # For n-step returns SB3 adds two of its own.
    given = model.replay_buffer_kwargs.keys() - ({"n_steps", "gamma"} if model.n_steps > 1 else set())
    check_keywords(PackedReplayBuffer.__init__, given, "replay_buffer_kwargs", "For n-step returns give the model n_steps.")
    kwargs = {"optimize_memory_usage": model.optimize_memory_usage} | model.replay_buffer_kwargs
    if isinstance(model.observation_space, spaces.Dict):
        # SB3 does not support n-step returns for these.
        return PackedDictReplayBuffer(*arguments, **kwargs)
    if model.n_steps > 1:
        return PackedNStepReplayBuffer(*arguments, **kwargs | {"n_steps": model.n_steps, "gamma": model.gamma})
    return PackedReplayBuffer(*arguments, **kwargs)


def make_updater(model: Any) -> UpdaterChoice:
    """The model's updater; with ``"auto"``, the networks' configuration is no reason for a warning."""
    choice = UpdaterChoice(model.updater, model.verbose)
    if model.updater == "auto":
        choice.expect(choice.objection(model._networks()))
        choice.expect(_obstacle(model))
    return choice


def update_settings(model: Any) -> UpdateSettings:
    """The numbers of the next update."""
    smoothing = (model.target_policy_noise, model.target_noise_clip)
    settings = UpdateSettings(model.gamma, model.tau, model.max_grad_norm, model.policy_delay, *smoothing, model.action_l2)
    if model.bc_alpha is None:
        return settings
    weight, progress = model.bc_weight, model._current_progress_remaining
    weight = progress if weight is None else weight(progress) if callable(weight) else weight
    return settings._replace(bc_alpha=model.bc_alpha, bc_weight=max(float(weight), 0.0))


def _obstacle(model: Any) -> str | None:
    return why_not_compiled_with(update_settings(model), replay_of(model))


def updater_in_use(model: Any) -> str:
    """The updater for the next update: the fastest that supports the networks as they are now."""
    return model._updater.choose(model._networks(), _obstacle(model))[0].name
