"""Loads a model, its weights or its replay buffer like SB3's algorithms, but without running code from a file."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env.patch_gym import _convert_space
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError
from sb3_ddpg_scratch.model_file.buffers import checked_buffer
from sb3_ddpg_scratch.model_file.contents import ModelContents, read_model, read_settings
from sb3_ddpg_scratch.model_file.pickles import read_pickle
from sb3_ddpg_scratch.model_file.tensors import check_parameters

Model = TypeVar("Model", bound=OffPolicyAlgorithm)
ModelPath = str | Path | io.BufferedIOBase


class LoadOptions(NamedTuple):
    device: th.device | str
    custom_objects: dict[str, Any] | None
    print_system_info: bool
    force_reset: bool
    trusted: bool
    max_bytes: int


def load_model(
    model_class: type[Model], path: ModelPath, env: GymEnv | None, options: LoadOptions, changes: dict[str, Any]
) -> Model:
    """
    Load a model saved by this class, or by SB3's DDPG or TD3. No code from the file is run: it may contain numbers,
    arrays, weights, spaces, the classes of SB3, RL Zoo, this package and torch for schedules, noises, buffers, layers
    and optimizers, and classes of your own that your program has already imported.

    :param path: the file, with or without ``.zip``, or an open one
    :param env: the environment to continue with; ``None`` for a model that only predicts
    :param device: device of the networks
    :param custom_objects: settings to use instead of the file's, which are then not even read
    :param print_system_info: whether to print the file's system and this one
    :param force_reset: whether ``learn`` begins with a reset of the environment
    :param trusted: read anything that the file contains, as SB3 does, which runs code from it
    :param max_bytes: limit for the memory that the unpacked file takes, in bytes
    :param kwargs: arguments of the algorithm to change
    :return: the model
    :raises UnsafeFileError: for a file that would run code, write somewhere, or take more memory than ``max_bytes``
    :raises ModelFileError: for a file that is damaged or inconsistent
    :raises ValueError: if the environment's spaces differ from the model's
    """
    contents = _read_contents(path, model_class, options)
    data = contents.data
    _settle_policy_kwargs(data, changes)
    if not (options.trusted or "tensorboard_log" in {**changes, **(options.custom_objects or {})}):
        data["tensorboard_log"] = folder_within(data.get("tensorboard_log"), path)
    if env is not None:
        env = model_class._wrap_env(env, data.get("verbose", 0))
        check_for_correct_spaces(env, data["observation_space"], data["action_space"])
        if options.force_reset:
            data["_last_obs"] = None
        data["n_envs"] = env.num_envs
    else:
        env = data.get("env")
    # Saved with include=["replay_buffer"].
    buffer = None if options.trusted else data.pop("replay_buffer", None)
    try:
        model = model_class(policy=data["policy_class"], env=env, device=options.device, _init_setup_model=False)  # type: ignore[call-arg,arg-type]
        vars(model).update(data)
        vars(model).update(changes)
        model._setup_model()
    except ArgumentError:
        raise
    except Exception as error:
        if options.trusted or (isinstance(error, MemoryError) and "buffer_size" in changes):
            raise
        reason = f"no model can be built from its settings ({type(error).__name__}: {str(error)[:300]})"
        raise ModelFileError(path, reason, "data") from error
    check_parameters(_parameter_owners(model), contents.params, path, exact=True)
    model.set_parameters(contents.params, exact_match=True, device=options.device)
    if buffer is not None:
        model.replay_buffer = checked_buffer(buffer, model, path)
    return model


def read_parameters(
    model: OffPolicyAlgorithm, load_path_or_dict: Any, exact_match: bool, device: th.device | str, max_bytes: int
) -> dict[str, Any]:
    """
    Load weights and optimizer states from a model's file, or from the result of :meth:`get_parameters`.

    :param load_path_or_dict: the file (path or open), or the states by name
    :param exact_match: whether every state must be present
    :param device: device to load tensors to
    :param max_bytes: limit for the memory that the unpacked file takes, in bytes
    :raises ModelFileError: for a file that is damaged, or whose weights do not have the policy's shapes and dtypes
    """
    if isinstance(load_path_or_dict, dict):
        return load_path_or_dict
    contents = read_model(load_path_or_dict, type(model), device, load_data=False, max_bytes=max_bytes)
    check_parameters(_parameter_owners(model), contents.params, load_path_or_dict, exact_match)
    return contents.params


@contextmanager
def whole_model_file(path: ModelPath, model_class: type) -> Iterator[io.BufferedIOBase]:
    """
    Save the model as a zip file that SB3 and RL Zoo can also read. It is written to a temporary file first, so that the
    file is never incomplete. A warning says if loading will need ``trusted=True``, since the file contains code.

    :param path: the file, to which ``.zip`` is added if it has no suffix, or an open file
    :param exclude: attributes to leave out in addition to the usual ones
    :param include: attributes to save that would otherwise be left out
    :raises OSError: if it cannot be written; an existing file is not changed
    """
    if not isinstance(path, (str, Path)):
        yield path
        return
    target = Path(path) if Path(path).suffix else Path(f"{path}.zip")
    if target.is_dir():
        # As SB3 does.
        target = Path(f"{target}_2")
    with whole_file(target) as file:
        yield cast("io.BufferedIOBase", file)
    try:
        read_settings(target, model_class)
    except ModelFileError as error:
        warnings.warn(f"{target} cannot be loaded without trusted=True or custom_objects: {error.reason}.", stacklevel=5)


def load_replay_buffer(model: Any, path: ModelPath, truncate_last_traj: bool = True, trusted: bool = False) -> None:
    """
    Load a replay buffer saved by ``save_replay_buffer``, without running code from the file.

    :param path: the file, with or without ``.pkl``, or an open one
    :param truncate_last_traj: whether the next ``learn`` ends the episode under way; ``False`` to continue it
    :param trusted: read anything that the file contains, as SB3 does, which runs code from it
    :raises UnsafeFileError: for a file that would run code
    :raises ModelFileError: for a file that is damaged, or a buffer that is not one for this model; the model keeps its own
    """
    buffer = read_pickle(path, model.verbose, trusted)
    if not trusted:
        buffer = checked_buffer(buffer, model, path)
    if isinstance(buffer, HerReplayBuffer):
        assert model.env is not None, "You must pass an environment at load time when using `HerReplayBuffer`"
        buffer.set_env(model.env)
        if truncate_last_traj:
            buffer.truncate_last_trajectory()
    buffer.device = model.device
    model.replay_buffer = buffer
    model._buffer_loaded = truncate_last_traj


def _parameter_owners(model: OffPolicyAlgorithm) -> dict[str, Any]:
    return {name: recursive_getattr(model, name) for name in model._get_torch_save_params()[0]}


def _read_contents(path: Any, model_class: type, options: LoadOptions) -> ModelContents:
    device, custom_objects, print_system_info, _, trusted, max_bytes = options
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
    if not trusted:
        return read_model(path, model_class, device, custom_objects, True, max_bytes, print_system_info)
    data, params, _ = load_from_zip_file(path, True, custom_objects, device, print_system_info=print_system_info)
    if data is None or params is None:
        raise ModelFileError(path, "it has no settings, so it is not a model's file", "data")
    for key in ("observation_space", "action_space"):
        # Written when gymnasium was gym.
        data[key] = _convert_space(data[key])
    return ModelContents(data, params)


def folder_within(folder: Any, path: Any) -> str | None:
    """A folder for TensorBoard that a file names, if it is in the current folder."""
    if folder is None or (isinstance(folder, str) and Path(folder).resolve().is_relative_to(Path.cwd())):
        return folder
    advice = f"To log there again, give tensorboard_log={folder!r}."
    warnings.warn(
        f"{path} was logged to a folder outside of the current one, which loading does not adopt. {advice}", stacklevel=5
    )
    return None


def _settle_policy_kwargs(data: dict[str, Any], kwargs: dict[str, Any]) -> None:
    policy_kwargs = data.setdefault("policy_kwargs", dict(kwargs.get("policy_kwargs") or {}))
    policy_kwargs.pop("device", None)
    net_arch = policy_kwargs.get("net_arch")
    if isinstance(net_arch, list) and net_arch and isinstance(net_arch[0], dict):
        # SB3 before 1.7 put the dict into a list.
        policy_kwargs["net_arch"] = net_arch[0]
    if "policy_kwargs" in kwargs and kwargs["policy_kwargs"] != policy_kwargs:
        raise ValueError(
            "The specified policy kwargs do not equal the stored policy kwargs. "
            f"Stored kwargs: {policy_kwargs}, specified kwargs: {kwargs['policy_kwargs']}"
        )
