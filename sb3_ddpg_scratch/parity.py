"""Parity: SB3's DDPG and ScratchDDPG trained with the same seed and noise, then compared entry by entry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.goals import missing_goals
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.validation import check_action_space, check_choice, check_whole_number

Algorithm = Literal["ddpg", "td3"]
Noise = Literal["none", "gaussian", "ou"]
Progress = Callable[[str, int], None]

TD3_SWITCHES: dict[str, Any] = {"policy_delay": 2, "target_policy_noise": 0.2, "target_noise_clip": 0.5}


@dataclass(frozen=True)
class ParityResult:
    """The largest difference of each entry: infinite if one side lacks it, shapes differ, or only one is NaN."""

    settings: dict[str, Any]
    updates: int
    differences: dict[str, float]

    @property
    def largest_difference(self) -> float:
        return max(self.differences.values())

    @property
    def equal(self) -> bool:
        """Whether updates were made and every entry is the same."""
        return self.updates > 0 and self.largest_difference == 0.0

    def by_object(self) -> dict[str, tuple[int, float]]:
        """Number of entries and largest difference, for the policy and each optimizer."""
        groups: dict[str, list[float]] = {}
        for name, difference in self.differences.items():
            groups.setdefault(name.split("/", 1)[0], []).append(difference)
        return {name: (len(values), max(values)) for name, values in groups.items()}

    def write_json(self, path: Path) -> None:
        content = self.settings | {
            "equal": self.equal,
            "updates": self.updates,
            "largest_difference": self.largest_difference,
            "differences": self.differences,
            "versions": {"torch": th.__version__, "stable_baselines3": stable_baselines3.__version__, "numpy": np.__version__},
        }
        write_json(path, content, words=True)


def flatten(state: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts and lists, such as ``get_parameters()`` returns, by its path joined by slashes."""
    if isinstance(state, Mapping):
        items: Any = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {prefix: state}
    leaves: dict[str, Any] = {}
    for key, value in items:
        leaves |= flatten(value, f"{prefix}/{key}" if prefix else str(key))
    return leaves


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference; 0 between NaN and NaN, infinite if the two cannot be subtracted."""
    if isinstance(a, (bool, str, type(None))) or isinstance(b, (bool, str, type(None))):
        return 0.0 if a == b else float("inf")
    first, second = th.as_tensor(a).double(), th.as_tensor(b).double()
    if first.shape != second.shape:
        return float("inf")
    same = (first == second) | (first.isnan() & second.isnan())
    gap = th.where(same, 0.0, (first - second).abs())
    return float(gap.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if gap.numel() else 0.0


def compare_models(a: OffPolicyAlgorithm, b: OffPolicyAlgorithm) -> dict[str, float]:
    """The :func:`difference` of each entry of ``get_parameters()``."""
    first, second = flatten(a.get_parameters()), flatten(b.get_parameters())
    missing = float("inf")
    return {
        name: difference(first[name], second[name]) if name in first and name in second else missing for name in first | second
    }


def run_parity(
    env_id: str,
    steps: int,
    n_envs: int = 1,
    seed: int = 0,
    algorithm: Algorithm = "ddpg",
    noise: Noise = "gaussian",
    net_arch: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> ParityResult:
    """Train SB3's algorithm and our reference alike on the CPU; environments with goals use hindsight replay."""
    check_whole_number("steps", steps, 1)
    check_whole_number("n_envs", n_envs, 1)
    check_choice("algorithm", algorithm, get_args(Algorithm))
    td3 = algorithm == "td3"
    policy_kwargs = {"n_critics": 2 if td3 else 1} | ({} if net_arch is None else {"net_arch": list(net_arch)})
    settings: dict[str, Any] = {
        "seed": seed,
        "device": "cpu",
        "buffer_size": max(steps, n_envs),
        "learning_starts": min(100, steps // 10),
        "gradient_steps": -1 if n_envs > 1 else 1,
    }
    sides: dict[str, tuple[type[OffPolicyAlgorithm], dict[str, Any]]] = {
        "SB3": (TD3 if td3 else DDPG, {}),
        "ScratchDDPG": (ScratchDDPG, {"updater": "autograd"} | (TD3_SWITCHES if td3 else {})),
    }
    models: list[OffPolicyAlgorithm] = []
    for name, (model_class, extra) in sides.items():
        env = make_vec_env(env_id, n_envs=n_envs, seed=seed)
        check_action_space(env.action_space)
        hindsight = not missing_goals(env.observation_space)
        if hindsight:
            # An episode must end before the first update, and a whole one always be in the buffer.
            longest = getattr(env.get_attr("spec")[0], "max_episode_steps", None) or max(steps // 2 // n_envs, 1)
            settings |= {"replay_buffer_class": HerReplayBuffer, "learning_starts": longest * n_envs}
            settings["buffer_size"] = max(steps, 2 * longest * n_envs)
        model = model_class(
            _policy_name(env.observation_space),
            env,
            action_noise=_make_noise(noise, env),
            policy_kwargs=policy_kwargs.copy(),
            **settings,
            **extra,
        )
        model.learn(steps, callback=None if progress is None else _report_to(progress, name, model))
        env.close()
        models.append(model)
    given: dict[str, Any] = {"env": env_id, "steps": steps, "n_envs": n_envs, "seed": seed}
    given |= {
        "hindsight": hindsight,
        "algorithm": algorithm,
        "noise": noise,
        "net_arch": None if net_arch is None else list(net_arch),
    }
    return ParityResult(given, models[0]._n_updates, compare_models(*models))


def _policy_name(observation_space: gym.Space[Any]) -> str:
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def _make_noise(noise: Noise, env: VecEnv) -> ActionNoise | None:
    check_choice("noise", noise, get_args(Noise))
    zeros = np.zeros(env.action_space.shape or ())
    if noise == "none":
        return None
    if noise == "gaussian":
        return NormalActionNoise(zeros, zeros + 0.1)
    return OrnsteinUhlenbeckActionNoise(zeros, zeros + 0.2)


def _report_to(progress: Progress, name: str, model: OffPolicyAlgorithm) -> Callable[..., bool]:
    def after_each_step(*_: Any) -> bool:
        progress(name, model.num_timesteps)
        return True

    return after_each_step
