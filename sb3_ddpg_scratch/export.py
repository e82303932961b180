"""Export of a trained policy to a single file that maps the environment's observations to its actions."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage, is_vecenv_wrapped
from torch import nn

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.errors import ArgumentError, ExportError, require
from sb3_ddpg_scratch.json_values import plain
from sb3_ddpg_scratch.model_file.normalization import load_vec_normalize
from sb3_ddpg_scratch.names import names_of
from sb3_ddpg_scratch.observation_statistics import statistics_of
from sb3_ddpg_scratch.observations import statistics_id

ACTION, OBSERVATION, BATCH = "action", "observation", "batch"
_OPSET = 18
# Policies of these modules predict what their actor does.
_PLAIN_PREDICT = ("sb3_ddpg_scratch.policies", "stable_baselines3.td3.policies")
Statistics = VecNormalize | str | Path | Literal[False] | None


class _Normalization(nn.Module):
    """VecNormalize's ``(x - mean) / sqrt(var + epsilon)``, clipped, in its own float64."""

    mean: th.Tensor
    scale: th.Tensor

    def __init__(self, statistics: Any, epsilon: float, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", th.as_tensor(np.asarray(statistics.mean, np.float64)))
        self.register_buffer("scale", th.as_tensor(np.sqrt(np.asarray(statistics.var, np.float64) + epsilon)))
        self.clip = clip

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.clamp((x.double() - self.mean) / self.scale, -self.clip, self.clip).float()


class ExportedPolicy(nn.Module):
    """Maps the environment's observations to its actions; images may have their channels last."""

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: OffPolicyAlgorithm, vec_normalize: VecNormalize | None, channels_last: bool) -> None:
        super().__init__()
        policy: Any = model.policy
        self.squashed = policy.squash_output
        self.predicts = type(policy)._predict.__module__ not in _PLAIN_PREDICT or "_predict" in vars(policy)
        # Leave out the optimizers, which would be copied too.
        optimizers = {id(network.optimizer): None for network in (policy.actor, policy.critic)}
        self.actor = copy.deepcopy(policy if self.predicts else policy.actor, optimizers)
        # Registered, if the policy normalizes: the actor's own reference is not.
        self.observation_statistics = statistics_of(self.actor)
        self.cpu()
        space = model.observation_space
        self.spaces: dict[str, spaces.Space[Any]] = (
            dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
        )
        self.is_dict = isinstance(space, spaces.Dict)
        self.transposed = {key for key, part in self.spaces.items() if channels_last and is_image_space(part)}
        self.normalizations = nn.ModuleDict(_normalizations(vec_normalize, self.spaces, self.is_dict))
        action_space = model.action_space
        assert isinstance(action_space, spaces.Box)
        self.action_space, self.names = action_space, names_of(model)
        self.register_buffer("low", th.as_tensor(action_space.low))
        self.register_buffer("high", th.as_tensor(action_space.high))

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """Actions in environment units, from a batch of observations for each key of a Dict space, in its order."""
        prepared = {}
        for key, value in zip(self.spaces, observations, strict=True):
            x = self.normalizations[key](value) if key in self.normalizations else value
            prepared[key] = x.permute(0, 3, 1, 2) if key in self.transposed else x
        given = prepared if self.is_dict else prepared[OBSERVATION]
        actions = self.actor._predict(given, deterministic=True) if self.predicts else self.actor(given)
        low, high = self.low, self.high
        actions = actions.reshape(-1, *low.shape)
        if self.squashed:
            actions = low + 0.5 * (actions + 1.0) * (high - low)
        # Rounding can exceed a bound by its last digit.
        actions = th.minimum(th.maximum(actions, low), high)
        for x in observations:
            if x.is_floating_point():
                # Clipping, or a layer, would make a valid action of it.
                finite = th.isfinite(x).flatten(1).all(dim=1).reshape(-1, *[1] * low.ndim)
                actions = th.where(finite, actions, th.full_like(actions, th.nan))
        return actions

    def metadata(self) -> dict[str, str]:
        """What a file says of its inputs and its output, each entry in JSON."""
        from sb3_ddpg_scratch import __version__

        observation_names = self.names["observation_names"]
        own = observation_names if self.is_dict else {OBSERVATION: observation_names}
        inputs = {}
        for (key, space), example in zip(self.spaces.items(), self.example(), strict=True):
            inputs[key] = _described(space, example.shape[1:], (own or {}).get(key))
            clip = getattr(self.normalizations[key], "clip", None) if key in self.normalizations else None
            inputs[key] |= {} if clip is None else {"normalized_inside_to": clip}
        output = _described(self.action_space, self.low.shape, self.names["action_names"])
        entries = {"inputs": inputs, "outputs": {ACTION: output}, "sb3_ddpg_scratch_version": __version__}
        entries["observation_not_finite"] = "every number of its action is NaN"
        return {name: json.dumps(plain(value), allow_nan=False) for name, value in entries.items()}

    def example(self) -> tuple[th.Tensor, ...]:
        made = []
        for key, space in self.spaces.items():
            shape = space.shape or ()
            shape = (*shape[1:], shape[0]) if key in self.transposed else shape
            made.append(th.from_numpy(np.zeros((2, *shape), space.dtype)))
        return tuple(made)


def _described(space: Any, shape: Any, names: Any) -> dict[str, Any]:
    """Shape, dtype, bounds (one number where all are alike) and names of a batch of a space's members."""
    described: dict[str, Any] = {"shape": [BATCH, *shape], "dtype": str(space.dtype)}
    for bound in ("low", "high"):
        values = getattr(space, bound, None)
        if values is not None:
            described[bound] = values.flat[0] if (values == values.flat[0]).all() else values
    return described | ({} if names is None else {"names": names})


def require_onnx() -> None:
    require("An ONNX file", "onnx", "onnx", "onnxscript")


def export_onnx(model: OffPolicyAlgorithm, path: str | Path, vec_normalize: Statistics = None) -> None:
    """
    Write the policy as ONNX, with inputs ``observation`` (or the keys of a Dict space) and the output ``action``. Batches
    may have any size: their axis is named ``batch``. The metadata has JSON entries: ``inputs`` and ``outputs`` with shapes,
    dtypes, bounds and the names of their numbers, and the version of this package. An observation with a number that is NaN
    or infinite gets an action of NaN alone, never one that looks valid.

    :param path: the file, written whole or not at all
    :param vec_normalize: the statistics to apply, or the file that ``VecNormalize.save`` wrote; ``None`` for those of the
        model's own environment, if it has any; ``False`` for none, if observations will be normalized already
    :raises ArgumentError: if the model was trained with VecNormalize and has no statistics
    :raises MissingPackageError: if onnx or onnxscript is missing
    :raises ExportError: for a policy that ONNX cannot express
    """
    require_onnx()

    def write(policy: ExportedPolicy, content: io.BytesIO) -> None:
        # A traced program: from a policy that cannot be traced, torch.onnx might export one of its branches.
        named: Any = {"input_names": list(policy.spaces), "output_names": [ACTION]}
        named["dynamic_shapes"] = (tuple({0: BATCH} for _ in policy.spaces),)
        written = th.onnx.export(_program(policy), dynamo=True, opset_version=_OPSET, verbose=False, **named)
        assert written is not None
        written.model.metadata_props.update(policy.metadata())
        written.save(content)  # type: ignore[arg-type]  # takes open files too

    _export(_prepare(model, vec_normalize), path, "ONNX", write)


def export_torch(model: OffPolicyAlgorithm, path: str | Path, vec_normalize: Statistics = None) -> None:
    """
    Write the policy as a program of ``torch.export``, which ``torch.export.load(path).module()`` reads without this package.
    Its inputs are those of the ONNX file, as tensors: observations, or for a Dict space one per key, in its order. The
    metadata are in the extra file ``metadata.json``.

    :param path: the file (``.pt2``), written whole or not at all
    :param vec_normalize: see :func:`export_onnx`
    :raises ArgumentError: if the model was trained with VecNormalize and has no statistics
    :raises ExportError: for a policy that torch.export cannot follow
    """

    def write(policy: ExportedPolicy, content: io.BytesIO) -> None:
        described = {name: json.loads(entry) for name, entry in policy.metadata().items()}
        th.export.save(_program(policy), content, extra_files={"metadata.json": json.dumps(described)})

    _export(_prepare(model, vec_normalize), path, "torch.export", write)


def _prepare(model: OffPolicyAlgorithm, vec_normalize: Statistics) -> ExportedPolicy:
    if isinstance(vec_normalize, (str, Path)):
        if not Path(vec_normalize).is_file():
            raise ArgumentError("vec_normalize", str(vec_normalize), "a file that VecNormalize.save wrote")
        vec_normalize = load_vec_normalize(vec_normalize, None)
    if not (vec_normalize in (None, False) or isinstance(vec_normalize, VecNormalize)):
        raise ArgumentError("vec_normalize", vec_normalize, "a VecNormalize, the path of its file, None or False")
    statistics = model.get_vec_normalize_env() if vec_normalize is None else vec_normalize or None
    if statistics is vec_normalize is None and getattr(model, "observations_normalized", False):
        advice = "The model was trained with VecNormalize, whose statistics are in a file of their own: give its path."
        raise ArgumentError("vec_normalize", None, "given", advice)
    kind = type(model.policy)
    for name in ("predict", "obs_to_tensor", "unscale_action"):
        if getattr(kind, name) is not getattr(BasePolicy, name):
            raise ExportError(f"{kind.__name__} overrides {name}, which a file cannot hold. Override _predict instead.")
    env = model.get_env()
    # Without an environment the layout of images is unknown: assume the policy's.
    channels_last = env is not None and is_vecenv_wrapped(env, VecTransposeImage)
    policy = ExportedPolicy(model, statistics, channels_last).eval()
    saved_with = getattr(model, "statistics_id", None)
    if statistics is not None and saved_with not in (None, statistics_id(statistics)):
        raise ExportError("This VecNormalize does not belong to the policy, which was saved with other statistics.")
    return policy


def _normalizations(
    vec_normalize: VecNormalize | None, parts: dict[str, spaces.Space[Any]], is_dict: bool
) -> dict[str, _Normalization]:
    if vec_normalize is None or not vec_normalize.norm_obs:
        return {}
    statistics: Any = vec_normalize.obs_rms
    if not isinstance(statistics, dict):
        statistics = {} if is_dict else {OBSERVATION: statistics}
    made = {}
    for key, one in statistics.items():
        if key not in parts or np.shape(one.mean) != parts[key].shape:
            shape = parts[key].shape if key in parts else "nothing of that name"
            reason = f"its statistics of {key!r} have the shape {np.shape(one.mean)} and the policy takes {shape}"
            raise ExportError(f"This VecNormalize does not belong to the policy: {reason}.")
        made[key] = _Normalization(one, vec_normalize.epsilon, vec_normalize.clip_obs)
    return made


def _program(policy: ExportedPolicy) -> th.export.ExportedProgram:
    batch = th.export.Dim(BATCH)
    # One entry for each argument of *observations.
    return th.export.export(policy, policy.example(), dynamic_shapes=(tuple({0: batch} for _ in policy.spaces),))


def _export(policy: ExportedPolicy, path: str | Path, form: str, write: Callable[[ExportedPolicy, io.BytesIO], None]) -> None:
    content = io.BytesIO()
    try:
        with _quiet():
            write(policy, content)
    except Exception as error:
        extractor = type(getattr(policy.actor, "features_extractor", None)).__name__
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        advice = "Its forward must be made of tensor operations alone, with no branches on values."
        message = f"The policy, with its features extractor {extractor}, cannot be written by {form}: {reason}. {advice}"
        raise ExportError(message) from error
    write_whole(Path(path), content.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about torch's internals, and about torchvision, which no policy needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
