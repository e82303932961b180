"""A model's files: saved and loaded like SB3's, but without running code from them."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env.patch_gym import _convert_space
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.alarms import statistics_differ
from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError, warn_user
from sb3_ddpg_scratch.model_file.archive import MAX_BYTES
from sb3_ddpg_scratch.model_file.buffers import checked_buffer
from sb3_ddpg_scratch.model_file.contents import NOT_SAVED, ModelContents, read_model, read_settings
from sb3_ddpg_scratch.model_file.pickles import read_pickle
from sb3_ddpg_scratch.model_file.tensors import check_parameters
from sb3_ddpg_scratch.noise import VectorNoise
from sb3_ddpg_scratch.observations import statistics_id

Model = TypeVar("Model", bound=OffPolicyAlgorithm)
ModelPath = str | Path | io.BufferedIOBase


class SafeFiles(OffPolicyAlgorithm):
    """``save``, ``load``, ``set_parameters`` and ``load_replay_buffer`` of SB3, without running code from a file."""

    # Of a loaded model: identifies the observation statistics that it was saved with.
    statistics_id: str | None = None
    # Whether the environment that it was loaded with has others; None if it was loaded with none.
    _other_statistics: bool | None = None

    @classmethod
    def load(
        cls,
        path: ModelPath,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trusted: bool = False,
        max_bytes: int = MAX_BYTES,
        **kwargs: Any,
    ) -> Self:
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
        read = _read(path, cls, device, custom_objects, print_system_info, trusted, max_bytes)
        data = read.data
        _settle_policy_kwargs(data, kwargs)
        if not (trusted or "tensorboard_log" in {**kwargs, **(custom_objects or {})}):
            data["tensorboard_log"] = folder_within(data.get("tensorboard_log"), path)
        if env is not None:
            env = cls._wrap_env(env, data.get("verbose", 0))
            check_for_correct_spaces(env, data["observation_space"], data["action_space"])
            if force_reset:
                data["_last_obs"] = None
            data["n_envs"] = env.num_envs
        else:
            env = data.get("env")
        # Saved with include=["replay_buffer"].
        buffer = None if trusted else data.pop("replay_buffer", None)
        try:
            model = _built(cls, data, kwargs, env, device)
        except ArgumentError:
            raise
        except Exception as error:
            if trusted or (isinstance(error, MemoryError) and "buffer_size" in kwargs):
                raise
            reason = f"no model can be built from its settings ({type(error).__name__}: {str(error)[:300]})"
            raise ModelFileError(path, reason, "data") from error
        check_parameters(model._parameter_owners(), read.params, path, exact=True)
        OffPolicyAlgorithm.set_parameters(model, read.params, exact_match=True, device=device)
        if buffer is not None:
            model.replay_buffer = checked_buffer(buffer, model, path)
        return model

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: th.device | str = "auto",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """
        Load weights and optimizer states from a model's file, or from the result of :meth:`get_parameters`.

        :param load_path_or_dict: the file (path or open), or the states by name
        :param exact_match: whether every state must be present
        :param device: device to load tensors to
        :param max_bytes: limit for the memory that the unpacked file takes, in bytes
        :raises ModelFileError: for a file that is damaged, or whose weights do not have the policy's shapes and dtypes
        """
        states = load_path_or_dict
        if not isinstance(states, dict):
            states = read_model(load_path_or_dict, type(self), device, load_data=False, max_bytes=max_bytes).params
            check_parameters(self._parameter_owners(), states, load_path_or_dict, exact_match)
        super().set_parameters(states, exact_match, device)

    def save(self, path: ModelPath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the model as a zip file that SB3 and RL Zoo can also read. It is written to a temporary file first, so that the
        file is never incomplete. A warning says if loading will need ``trusted=True``, since the file contains code.

        :param path: the file, to which ``.zip`` is added if it has no suffix, or an open file
        :param exclude: attributes to leave out in addition to the usual ones
        :param include: attributes to save that would otherwise be left out
        :raises OSError: if it cannot be written; an existing file is not changed
        """
        noise, loaded_id = self.action_noise, self.statistics_id
        try:
            self.statistics_id = loaded_id or statistics_id(self.get_vec_normalize_env())
            if isinstance(noise, VectorNoise):
                # SB3 copies it for each environment; ours adapts itself.
                self.action_noise = noise.of_one_env()
            if isinstance(path, (str, Path)):
                target = Path(path) if Path(path).suffix else Path(f"{path}.zip")
                # For a folder, SB3 appends this too.
                target = Path(f"{target}_2") if target.is_dir() else target
                with whole_file(target) as file:
                    super().save(cast("io.BufferedIOBase", file), exclude, include)
            else:
                super().save(path, exclude, include)
                return
        finally:
            self.action_noise, self.statistics_id = noise, loaded_id
        try:
            read_settings(target, type(self))
        except ModelFileError as error:
            reason = f"{error.key} {error.reason[3:]}" if error.key and error.reason.startswith("it ") else error.reason
            given = f"custom_objects={{{error.key!r}: ...}}" if error.key else "custom_objects"
            warn_user(f"{target} cannot be loaded without trusted=True or {given}: {reason}.")

    def load_replay_buffer(self, path: ModelPath, truncate_last_traj: bool = True, trusted: bool = False) -> None:
        """
        Load a replay buffer saved by ``save_replay_buffer``, without running code from the file.

        :param path: the file, with or without ``.pkl``, or an open one
        :param truncate_last_traj: whether the next ``learn`` ends the episode under way; ``False`` to continue it
        :param trusted: read anything that the file contains, as SB3 does, which runs code from it
        :raises UnsafeFileError: for a file that would run code
        :raises ModelFileError: for a file that is damaged, or a buffer that is not one for this model; the model keeps its own
        """
        buffer = read_pickle(path, self.verbose, trusted)
        if not trusted:
            buffer = checked_buffer(buffer, self, path)
        if isinstance(buffer, HerReplayBuffer):
            assert self.env is not None, "You must pass an environment at load time when using `HerReplayBuffer`"
            buffer.set_env(self.env)
            if truncate_last_traj:
                buffer.truncate_last_trajectory()
        buffer.device = self.device
        self.replay_buffer = buffer
        self._buffer_loaded = truncate_last_traj

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *NOT_SAVED]

    def _parameter_owners(self) -> dict[str, Any]:
        return {name: recursive_getattr(self, name) for name in self._get_torch_save_params()[0]}


def _built(model_class: type[Model], data: dict[str, Any], changes: dict[str, Any], env: Any, device: Any) -> Model:
    model = model_class(policy=data["policy_class"], env=env, device=device, _init_setup_model=False)  # type: ignore[call-arg]
    vars(model).update(data)
    vars(model).update(changes)
    model._setup_model()
    vars(model)["_other_statistics"] = None if model.env is None else statistics_differ(model)
    return model


def _read(
    path: Any,
    model_class: type,
    device: Any,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    trusted: bool,
    max_bytes: int,
) -> ModelContents:
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
    if not trusted:
        return read_model(path, model_class, device, custom_objects, print_system_info, max_bytes=max_bytes)
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
    warn_user(f"{path} was logged to a folder outside of the current one, which loading does not adopt. {advice}")
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
