"""Reads weights and optimizer states as tensors only, and compares them with the networks before anything is copied."""

import io
import zipfile
from typing import Any

import torch as th
from torch import nn

from sb3_ddpg_scratch.errors import ModelFileError
from sb3_ddpg_scratch.model_file.archive import MAX_BYTES, check_members

_END_OF_ZIP = b"PK\x05\x06"


def read_tensors(content: bytes, path: Any, member: str, device: th.device | str = "cpu", max_bytes: int = MAX_BYTES) -> Any:
    """Tensors, or lists and dicts of them, from the zip format of ``torch.save`` (since torch 1.6)."""
    # If nothing follows the directory, torch and zipfile find the same one.
    if content[-22:-18] != _END_OF_ZIP:
        raise ModelFileError(path, "it is not an archive of tensors as torch.save writes it", member)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
        check_members(members, path, max_bytes, within=member)
        return th.load(io.BytesIO(content), map_location=device, weights_only=True)
    except ModelFileError:
        raise
    # torch raises many kinds of errors for damage, and for anything but tensors.
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ModelFileError(path, f"it does not hold tensors alone ({reason})", member) from error


def check_parameters(owners: dict[str, Any], params: dict[str, Any], path: Any, exact: bool) -> None:
    """Raise :class:`ModelFileError` if the state of a network or optimizer is missing or does not fit."""
    wrong = (set(owners) ^ set(params)) if exact else set(params) - set(owners)
    if wrong:
        reason = f"a model has the members {_names(owners)} and the file has {_names(params)}"
        raise ModelFileError(path, reason, f"{min(wrong)}.pth")
    for name, state in params.items():
        owner, member = owners[name], f"{name}.pth"
        if not isinstance(state, dict):
            raise ModelFileError(path, f"it holds {type(state).__name__} and no state", member)
        if isinstance(owner, th.optim.Optimizer):
            _check_optimizer(owner, state, path, member)
        else:
            check_module(owner, state, path, member, exact)


def _names(names: Any) -> str:
    return ", ".join(f"{name}.pth" for name in sorted(map(str, names))) or "none"


def check_module(module: nn.Module, state: dict[str, Any], path: Any, member: str, exact: bool) -> None:
    """Raise :class:`ModelFileError` if parameters do not have the module's names, shapes and dtypes."""
    expected = module.state_dict()
    for name in {**expected, **state}:
        if name not in expected or (exact and name not in state):
            problem = "it lacks this parameter" if name in expected else "the policy has no such parameter"
            raise ModelFileError(path, problem, member, str(name), "Is it the model of another policy?")
        if name in state:
            _check_tensor(state[name], expected[name], path, member, name)


def _check_tensor(value: Any, expected: th.Tensor, path: Any, member: str, key: str) -> None:
    if not isinstance(value, th.Tensor):
        raise ModelFileError(path, f"it is {type(value).__name__} and not a tensor", member, key)
    if value.layout != th.strided or value.shape != expected.shape:
        reason = f"its shape is {tuple(value.shape)} and the policy's is {tuple(expected.shape)}"
        raise ModelFileError(path, reason, member, key, "Is it the model of another policy?")
    if value.dtype != expected.dtype:
        raise ModelFileError(path, f"its dtype is {value.dtype} and the policy's is {expected.dtype}", member, key)


def _check_optimizer(optimizer: th.optim.Optimizer, state: dict[str, Any], path: Any, member: str) -> None:
    groups, entries = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(entries, dict) or not all(isinstance(group, dict) for group in groups):
        raise ModelFileError(path, "it is not an optimizer's state", member)
    expected = [group["params"] for group in optimizer.param_groups]
    saved = [group.get("params") for group in groups]
    counts = [len(indices) if isinstance(indices, list) else None for indices in saved]
    if counts != [len(parameters) for parameters in expected]:
        reason = f"it is for {counts} parameters and the optimizer has {[len(parameters) for parameters in expected]}"
        raise ModelFileError(path, reason, member, "param_groups")
    parameters = {
        index: one for group, own in zip(saved, expected, strict=True) for index, one in zip(group, own, strict=True)
    }
    for index, values in entries.items():
        if index not in parameters or not isinstance(values, dict):
            raise ModelFileError(path, "there is no such parameter", member, f"state[{index}]")
        for name, value in values.items():
            # The step count is a tensor of one number; everything else has an entry for each weight.
            if isinstance(value, th.Tensor) and value.numel() != 1:
                _check_tensor(value, parameters[index], path, member, f"state[{index}][{name}]")
