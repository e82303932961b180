"""A policy at work: one noise-free episode as an animated GIF, from an actor's weights that are read as data."""

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.diagnostics.reading import Recording
from sb3_ddpg_scratch.diagnostics.recording import POLICY_FILE
from sb3_ddpg_scratch.model_file.archive import read_members
from sb3_ddpg_scratch.model_file.tensors import read_tensors

MOST_FRAMES = 150
LARGEST_SIDE = 320
FRAMES_PER_SECOND = 20
MOST_STEPS = 5000

# SB3's DDPG and TD3 name their actors' parameters as ours does: ScratchDDPG can play for them.
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {
    "ScratchDDPG": ScratchDDPG,
    "DDPG": ScratchDDPG,
    "TD3": ScratchDDPG,
    "SAC": SAC,
}


class VideoError(RuntimeError):
    """No video can be made; the message says why and what would be needed."""


def record_video(recording: Recording, path: Path, model: Path | None = None, seed: int = 0) -> int:
    """
    Play one episode with a run's policy, without noise, and write it as an animated GIF.

    :param recording: the run's recording, whose header says which environment and which networks
    :param path: the GIF to write
    :param model: a saved model (``.zip``) to take the weights from; ``None`` for the ``policy.pth`` beside the recording
    :param seed: seed of the episode
    :return: the number of frames
    :raises VideoError: if the environment cannot be made or rendered, or the weights are missing or do not fit
    """
    weights, normalization = _read_weights(recording, model)
    env = _make_env(recording.header)
    try:
        frames = _play(env, _build(recording.header, env, weights), normalization, seed)
    finally:
        env.close()
    write_whole(path, encode_gif(frames))
    return len(frames)


def _read_weights(recording: Recording, model: Path | None) -> tuple[dict[str, th.Tensor], dict[str, Any] | None]:
    path = recording.path.with_name(POLICY_FILE) if model is None else model
    if not path.is_file():
        need = "DiagnosticsCallback saves it when training ends; for a run that was killed, name a saved model with --model."
        raise VideoError(f"{path} is missing. {need}" if model is None else f"{path}: there is no such file.")
    try:
        if model is None:
            content = th.load(path, map_location="cpu", weights_only=True)
            return dict(content["actor"]), content["normalization"]
        # Of the model's file only the weights are read: the rest of it may hold code.
        with path.open("rb") as file:
            content = read_members(file, path, lambda name: name == "policy.pth")["policy.pth"]
        policy = read_tensors(content, path, "policy.pth")
    except Exception as error:
        raise VideoError(f"{path}: no weights can be read from it ({type(error).__name__}: {error}).") from error
    if (recording.header.get("normalized") or {}).get("observations"):
        raise VideoError(f"{path} does not hold VecNormalize's statistics, which this run's policy needs: leave --model out.")
    return {name.removeprefix("actor."): tensor for name, tensor in policy.items() if name.startswith("actor.")}, None


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
        model = algorithm(policy["name"], env, policy_kwargs=kwargs, buffer_size=1, device="cpu")  # type: ignore[call-arg]
        model.actor.load_state_dict(weights)
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


def _play(env: gym.Env, model: Any, normalization: dict[str, Any] | None, seed: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    observation, _ = env.reset(seed=seed)
    for _ in range(MOST_STEPS):
        frame = env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise VideoError("The environment renders no pictures (render_mode='rgb_array').")
        frames.append(frame)
        action, _ = model.predict(_normalized(observation, normalization), deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    return frames


def _normalized(observation: Any, normalization: dict[str, Any] | None) -> Any:
    if normalization is None:
        return observation
    parts = normalization["parts"]

    def scaled(value: Any, part: dict[str, th.Tensor]) -> np.ndarray:
        mean, variance = part["mean"].numpy(), part["var"].numpy()
        limit = normalization["limit"]
        return np.clip((value - mean) / np.sqrt(variance + normalization["epsilon"]), -limit, limit).astype(np.float32)

    if isinstance(observation, dict):
        return {key: scaled(value, parts[key]) if key in parts else value for key, value in observation.items()}
    return scaled(observation, parts[""])


def encode_gif(frames: list[np.ndarray]) -> bytes:
    """
    :param frames: pictures of an episode, shape ``(height, width, 3)``, uint8
    :return: at most 150 of them, at most 320 pixels a side, as an animated GIF that repeats
    """
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
