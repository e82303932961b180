"""Plays one noise-free episode as a small animated GIF, with an actor whose weights are read as data."""

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.diagnostics.recording_reader import Recording
from sb3_ddpg_scratch.diagnostics.recording_writer import STATISTICS, policy_of
from sb3_ddpg_scratch.model_file.archive import read_members
from sb3_ddpg_scratch.model_file.tensors import read_tensors
from sb3_ddpg_scratch.observation_statistics import statistics_of

MOST_FRAMES = 150
LARGEST_SIDE = 320
FRAMES_PER_SECOND = 20
MOST_STEPS = 5000

# SB3's DDPG and TD3 name their actors' parameters as ours does, so ScratchDDPG can play for them.
ALGORITHMS: dict[str, Any] = dict.fromkeys(("ScratchDDPG", "DDPG", "TD3"), ScratchDDPG) | {"SAC": SAC}


class VideoError(RuntimeError):
    """No video can be made; the message says why and what is needed."""


def record_video(recording: Recording, path: Path, model: Path | None = None) -> int:
    """Play one episode with the recording's policy, or the weights of ``model``; returns the number of frames."""
    weights, statistics = _read_weights(recording, model)
    env = _make_env(recording.header)
    try:
        frames = _play(env, _build(recording.header, env, weights), statistics)
    finally:
        env.close()
    write_whole(path, encode_gif(frames))
    return len(frames)


def _read_weights(recording: Recording, model: Path | None) -> tuple[dict[str, th.Tensor], dict[str, Any] | None]:
    path = policy_of(recording.path) if model is None else model
    if not path.is_file():
        need = "DiagnosticsCallback saves it when training ends; for a run that was killed, name a saved model with --model."
        raise VideoError(f"{path} is missing. {need}" if model is None else f"{path}: there is no such file.")
    try:
        if model is None:
            content = th.load(path, map_location="cpu", weights_only=True)
            return dict(content["actor"]), content["normalization"]
        # Only the weights are read from a model's file: the rest may contain code.
        with path.open("rb") as file:
            content = read_members(file, path, lambda name: name == "policy.pth")["policy.pth"]
        policy = read_tensors(content, path, "policy.pth")
    except Exception as error:
        raise VideoError(f"{path}: no weights can be read from it ({type(error).__name__}: {error}).") from error
    if (recording.header.get("normalized") or {}).get("observations"):
        raise VideoError(f"{path} does not hold VecNormalize's statistics, which this run's policy needs: leave --model out.")
    needed = ("actor.", STATISTICS)
    return {name.removeprefix("actor."): tensor for name, tensor in policy.items() if name.startswith(needed)}, None


def _make_env(header: dict[str, Any]) -> gym.Env:
    environment = header.get("environment")
    if not isinstance(environment, dict) or not isinstance(environment.get("id"), str):
        raise VideoError("The recording does not name the environment: it was not made by an id that gymnasium knows.")
    env_id, kwargs = environment["id"], environment.get("kwargs") or {}
    if env_id not in gym.registry:
        # Never "module:Name-v0" either: a recording must not choose what is imported.
        raise VideoError(f"{env_id!r} is not registered with gymnasium here.")
    try:
        return gym.make(env_id, render_mode="rgb_array", **kwargs)
    except Exception as error:
        raise VideoError(f"{env_id} cannot be rendered here ({type(error).__name__}: {error}).") from error


def _build(header: dict[str, Any], env: gym.Env, weights: dict[str, th.Tensor]) -> Any:
    policy, algorithm = header.get("policy"), ALGORITHMS.get(str(header.get("algorithm")))
    if algorithm is None:
        raise VideoError(f"Policies of {header.get('algorithm')} cannot be built from weights alone.")
    if not isinstance(policy, dict):
        raise VideoError("The policy has parts of the user's own, which cannot be built from weights alone.")
    try:
        kwargs = {key: _named(value) for key, value in policy["kwargs"].items()}
        model = algorithm(policy["name"], env, policy_kwargs=kwargs, buffer_size=1, device="cpu")
        own = {name.removeprefix(STATISTICS): weights.pop(name) for name in list(weights) if name.startswith(STATISTICS)}
        model.actor.load_state_dict(weights)
        normalizes = statistics_of(model.policy)
        if normalizes is not None:
            normalizes.load_state_dict(own)
    except Exception as error:
        raise VideoError(f"The weights do not fit the policy that the recording describes ({error}).") from error
    return model


def _named(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"torch.nn"}:
        layer = getattr(th.nn, str(value["torch.nn"]), None)
        if isinstance(layer, type) and issubclass(layer, th.nn.Module):
            return layer
        raise ValueError(f"torch.nn has no layer {value['torch.nn']!r}")
    return value


def _play(env: gym.Env, model: Any, statistics: dict[str, Any] | None) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    vec_env: VecEnv = DummyVecEnv([lambda: env])
    if statistics is not None:
        vec_env = normalizing_env(vec_env, statistics)
    vec_env.seed(0)
    observation = vec_env.reset()
    for _ in range(MOST_STEPS):
        frame = env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise VideoError("The environment renders no pictures (render_mode='rgb_array').")
        frames.append(frame)
        action, _ = model.predict(observation, deterministic=True)
        observation, _, dones, _ = vec_env.step(action)
        if dones[0]:
            break
    return frames


def normalizing_env(env: VecEnv, statistics: dict[str, Any]) -> VecNormalize:
    found: dict[Any, RunningMeanStd] = {}
    for key, part in statistics["parts"].items():
        found[key] = RunningMeanStd(shape=part["mean"].shape)
        found[key].mean, found[key].var = part["mean"].numpy(), part["var"].numpy()
    keys = None if "" in found else list(found)
    limits = {"clip_obs": statistics["limit"], "epsilon": statistics["epsilon"]}
    normalize: Any = VecNormalize(env, training=False, norm_reward=False, norm_obs_keys=keys, **limits)
    normalize.obs_rms = found if keys else found[""]
    return normalize


def encode_gif(frames: list[np.ndarray]) -> bytes:
    """An endlessly repeating animated GIF of at most 150 of the frames, with at most 320 pixels a side."""
    from PIL import Image

    stride = -(-len(frames) // MOST_FRAMES)
    pictures = []
    for frame in frames[::stride]:
        picture = Image.fromarray(frame)
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        pictures.append(picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    content = io.BytesIO()
    duration = 1000 // FRAMES_PER_SECOND
    pictures[0].save(content, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)
    return content.getvalue()
