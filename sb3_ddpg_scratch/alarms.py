"""Warnings, once each, of what spoils a training: seen for free, or looked for after 200, 400, 800, ... updates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.errors import warn_user
from sb3_ddpg_scratch.names import entry
from sb3_ddpg_scratch.noise import sigma_of
from sb3_ddpg_scratch.observation_statistics import statistics_of
from sb3_ddpg_scratch.observations import statistics_id
from sb3_ddpg_scratch.replay import PackedReplayBuffer

FIRST_LOOK = 200
_STATES = 256
_SATURATED, _ALL = 0.99, 0.99
# Typical sizes of observations: one of the largest is too much by itself, one of the large beside another that is small.
_LARGEST, _LARGE, _SPREAD = 1e4, 10.0, 1e5

_RAW = (
    "predict() got an observation of size {size:.3g}, but the model was trained on VecNormalize's observations, which are "
    "within ±{limit:g}: its actions are meaningless. Give it normalize.normalize_obs(observation), with "
    'normalize = load_vec_normalize("vecnormalize.pkl", None) or the training\'s own VecNormalize.'
)
_OTHER = (
    "The model was trained on observations {before}, and its environment {now}: to its networks they mean something else. "
    "{cure}."
)
_OWN = "Give it the statistics that were saved with it: load_vec_normalize(path, make_vec_env(...))"
_SIGMA = (
    "action_noise has sigma {sigma}, in units in which every action is in [-1, 1]: most actions will be at their bounds. "
    "Give at most 1; a sigma in the environment's units is divided by half the width of the action's range, here {converted}."
)
_SPREAD_OUT = (
    "Observations are not normalized, and {small} is of size {low:.2g} where {large} is of size {high:.2g}: the networks "
    "hardly see the small ones, and the large ones saturate them. Give policy_kwargs={{'normalize_observations': True}}, or "
    "wrap the environment: VecNormalize(make_vec_env(...))."
)
_BOUNDS = (
    "{share:.0%} of the policy's actions are at their bounds, where tanh passes almost no gradient. Unless the best actions "
    "are always there, try normalized observations and rewards (VecNormalize), a smaller learning_rate, action_l2, or a "
    "longer random warm-up (random_steps)."
)
_ZERO = (
    "The {network}'s gradient is exactly 0: it no longer learns. Try normalized observations and rewards (VecNormalize), a "
    "smaller learning_rate, or another seed; DiagnosticsCallback shows since when."
)


@dataclass
class Alarms:
    """What was said, and when to look again."""

    said: set[str] = field(default_factory=set)
    next_look: int = FIRST_LOOK
    was_saturated: bool = False

    def say(self, name: str, text: str) -> None:
        if name not in self.said:
            self.said.add(name)
            warn_user(text)


def look_at_noise(model: Any) -> None:
    """Warn of a sigma above 1, when a training begins."""
    sigma = sigma_of(model.action_noise)
    if sigma is not None and sigma.max() > 1:
        half = (model.action_space.high - model.action_space.low) / 2
        shown, converted = (", ".join(f"{number:.3g}" for number in np.unique(value)) for value in (sigma, sigma / half))
        model._alarms.say("sigma", _SIGMA.format(sigma=shown, converted=converted))


def look(model: Any, statistics: Mapping[str, float]) -> None:
    """Warn of gradients of 0 among an update's numbers and, after few of the updates, of observations and saturation."""
    alarms: Alarms = model._alarms
    for network in ("actor", "critic"):
        if statistics.get(f"{network}_grad_norm") == 0 and any(p.requires_grad for p in getattr(model, network).parameters()):
            alarms.say(network, _ZERO.format(network=network))
    if model._n_updates < alarms.next_look or not statistics:
        return
    alarms.next_look = 2 * model._n_updates
    observations = _stored(model.replay_buffer if model.replay_buffer.size() else model.demonstrations)
    plain_features = type(model.actor.features_extractor) in (FlattenExtractor, CombinedExtractor)
    if observations is None or not plain_features or getattr(model.policy, "norm", None) == "batch":
        return
    normalize = model.get_vec_normalize_env()
    parts, within = observations if isinstance(observations, dict) else {"": observations}, normalized_within(normalize)
    own = statistics_of(model.policy)
    _look_at_sizes(model, {key: part for key, part in parts.items() if key not in within and not (own and key in own.slices)})
    if within:
        observations = normalize.normalize_obs(observations)
    saturated = _saturated(model, observations)
    # Early in a training actions are often at their bounds for a while.
    if saturated >= _ALL and (alarms.was_saturated or model._n_updates >= 5 * FIRST_LOOK):
        alarms.say("saturated", _BOUNDS.format(share=saturated))
    alarms.was_saturated = saturated >= _ALL


def _stored(buffer: Any) -> Any:
    """Some of the first environment's observations, evenly from all of the replay buffer, before normalization."""
    if not (size := buffer.size()):
        return None
    chosen = np.unique(np.linspace(0, size - 1, min(size, _STATES)).astype(int))
    if isinstance(buffer, PackedReplayBuffer) and not isinstance(buffer, HerReplayBuffer):
        return buffer._split(buffer.rows[chosen * buffer.n_envs, buffer.columns.observation])
    stored = getattr(buffer, "observations", None)
    if isinstance(stored, dict):
        return {key: part[chosen, 0] for key, part in stored.items()}
    return stored[chosen, 0] if isinstance(stored, np.ndarray) else None


def _look_at_sizes(model: Any, parts: dict[str, np.ndarray]) -> None:
    sizes: dict[str, float] = {}
    for key, part in parts.items():
        if part.dtype.kind != "f":
            continue
        typical = np.sqrt(np.square(part.reshape(len(part), -1).astype(np.float64)).mean(axis=0))
        names = [entry("observation", key, [index], index, model.observation_names) for index in range(len(typical))]
        sizes |= {name: float(size) for name, size in zip(names, typical, strict=True) if size > 0}
    if sizes:
        small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        low, high = sizes[small], sizes[large]
        if high >= _LARGEST or (high >= _LARGE and high >= _SPREAD * low):
            model._alarms.say("observations", _SPREAD_OUT.format(small=small, low=low, large=large, high=high))


def _saturated(model: Any, observations: Any) -> float:
    """The share of the policy's actions beyond 0.99 of a bound; 0 where a look could be noticed by someone's hook."""
    modules = list(model.actor.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return 0.0
    training = [module for module in modules if module.training]
    devices = [model.device] if model.device.type == "cuda" else []
    for module in training:
        module.training = False
    try:
        with th.no_grad(), th.random.fork_rng(devices):
            actions = model.actor(model.policy.obs_to_tensor(observations)[0])
            return float((actions.abs() > _SATURATED).float().mean())
    finally:
        for module in training:
            module.training = True


def normalized_within(statistics: VecNormalize | None) -> dict[str, float]:
    """VecNormalize's limit for each part of the observations that it normalizes, which a model's file keeps."""
    if statistics is None or not statistics.norm_obs:
        return {}
    return dict.fromkeys(statistics.norm_obs_keys or [""], float(statistics.clip_obs))


def statistics_differ(model: Any) -> bool:
    """Whether its environment normalizes observations in another way than where the model learned, as far as is known."""
    now = statistics_id(model.get_vec_normalize_env())
    if model.statistics_id is not None:
        return bool(now != model.statistics_id)
    # Files of other versions and of SB3 do not say.
    known = model.num_timesteps > 0 and "normalized_within" in vars(model)
    return known and bool(model.normalized_within) != (now is not None)


def look_at_statistics(model: Any) -> None:
    """Warn of statistics that are not the model's own; those that it was loaded with may have changed since."""
    if model._other_statistics is not False and statistics_differ(model):
        was, now = bool(model.normalized_within), statistics_id(model.get_vec_normalize_env()) is not None
        how = ("normalizes them by other statistics" if was else "normalizes them") if now else "does not"
        before = "that VecNormalize normalized" if was else "as they are"
        cure = _OWN if was else "Give VecNormalize norm_obs=False"
        model._alarms.say("statistics", _OTHER.format(before=before, now=how, cure=cure))
    model._other_statistics = None


def predict(
    self: Any,
    observation: np.ndarray | dict[str, np.ndarray],
    state: tuple[np.ndarray, ...] | None = None,
    episode_start: np.ndarray | None = None,
    deterministic: bool = False,
) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
    """
    See SB3. A model that was trained on ``VecNormalize``'s observations warns of one that cannot be one of those, being
    beyond its ``clip_obs``, and one that was loaded with an environment of other statistics warns of that.
    """
    if self._other_statistics:
        look_at_statistics(self)
    for key, limit in self.normalized_within.items():
        part = observation.get(key) if isinstance(observation, dict) else observation
        # Beyond rounding; what is no array, or not finite, is for others to reject.
        if isinstance(part, np.ndarray) and 1.001 * limit < (size := np.abs(part).max(initial=0)) < math.inf:
            self._alarms.say("raw", _RAW.format(size=size, limit=limit))
    return BaseAlgorithm.predict(self, observation, state, episode_start, deterministic)
