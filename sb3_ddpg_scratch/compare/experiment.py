"""The definition of a comparison: arms, environments, seeds and evaluations, from options or a YAML file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sb3_ddpg_scratch.errors import ArgumentError, near
from sb3_ddpg_scratch.machine import usable_cores
from sb3_ddpg_scratch.runs.training_run import CHECKPOINT_EVERY
from sb3_ddpg_scratch.validation import check_device, check_number, check_whole_number
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, hyperparams_folder, plain_numbers, read_mapping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_ARM_FORM = "NAME=ALGO or NAME=ALGO:key=value,key=value"
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Arm:
    """
    An algorithm of RL Zoo with the settings of a preset, or of ``yaml``: a YAML file, or an algorithm whose file in RL Zoo is
    used. ``overrides`` replace single settings; their key ``policy_kwargs.norm`` stands for ``norm`` in ``policy_kwargs``.
    """

    name: str
    algo: str
    preset: str | None
    yaml: str | None
    overrides: dict[str, Any]


PER_ENVIRONMENT = {"seeds": 2, "steps": 1, "evaluations": 1, "eval_episodes": 1}
"""What an environment may set for itself, with the minimum of each."""
# Both with RL Zoo's settings and SB3's noise.
DEFAULT_ARMS = (Arm("ours", ALGO, "rl_zoo", None, {}), Arm("sb3", "ddpg", "rl_zoo", None, {}))


@dataclass(frozen=True)
class Experiment:
    """
    The settings of a comparison. ``envs`` may give each environment its own :data:`PER_ENVIRONMENT`. If ``None``, ``steps``
    come from the baseline's settings, ``evaluations`` and ``eval_episodes`` from the stored baseline, or are 20 and 10.
    ``margin`` is what counts as equivalent, as a fraction of the baseline's score range over random. ``baseline`` is an arm or
    a stored result; if ``None``, the first arm that is not ``scratch_ddpg``, or the first. ``diagnostics`` records the first
    seed's Q, targets and probe states and draws them side by side. ``jobs`` is the number of runs at a time on this machine,
    ``threads`` that of each run's threads; ``checkpoint_every`` is the steps between a run's checkpoints (``None``: none).
    Every process imports the modules ``gym_packages``.
    """

    arms: tuple[Arm, ...]
    envs: Mapping[str, Mapping[str, int]]
    seeds: int
    out: Path
    steps: int | None = None
    evaluations: int | None = None
    eval_episodes: int | None = None
    margin: float = 0.1
    baseline: str | None = None
    device: str = "cpu"
    diagnostics: bool = False
    jobs: int = usable_cores()
    threads: int = 1
    checkpoint_every: int | None = CHECKPOINT_EVERY
    gym_packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ArgumentError("arms", name, "different names")
        if not self.envs:
            raise ArgumentError("env", list(self.envs), "at least one environment")
        _check_protocol("", {key: getattr(self, key) for key in PER_ENVIRONMENT})
        for env_id, own in self.envs.items():
            _check_protocol(f"envs: {env_id}: ", own)
        for key in ("jobs", "threads", "checkpoint_every"):
            if key != "checkpoint_every" or self.checkpoint_every is not None:
                check_whole_number(key, getattr(self, key), 1)
        check_device("device", self.device)
        check_number("margin", self.margin, 0, low_allowed=False)
        if not isinstance(self.diagnostics, bool):
            raise ArgumentError("diagnostics", self.diagnostics, "true or false")

    def of(self, env_id: str, key: str) -> Any:
        """An environment's own value of one of :data:`PER_ENVIRONMENT`, or the one for all."""
        return self.envs[env_id].get(key, getattr(self, key))


def _check_protocol(where: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key not in PER_ENVIRONMENT:
            raise ArgumentError(f"{where}key", key, f"one of {', '.join(PER_ENVIRONMENT)}", near(str(key), PER_ENVIRONMENT))
        if value is not None:
            check_whole_number(f"{where}{key}", value, PER_ENVIRONMENT[key])


KEYS = tuple(field.name for field in fields(Experiment))


def experiment_from(settings: Mapping[str, Any]) -> Experiment:
    """The comparison described by a YAML file or options; rejects unknown or missing keys and invalid values."""
    for key in settings:
        if key not in KEYS:
            raise ArgumentError("experiment: key", key, f"one of {', '.join(KEYS)}", near(str(key), KEYS))
    for key, option in (("envs", "--env"), ("seeds", "--seeds"), ("out", "--out")):
        if settings.get(key) is None:
            raise ArgumentError(option, None, "given")
    content = dict(plain_numbers(dict(settings)))
    arms = content.pop("arms", None)
    if arms is None:
        # With a stored baseline there is no need to train SB3's again.
        content["arms"] = DEFAULT_ARMS if content.get("baseline") in (None, "ours", "sb3") else DEFAULT_ARMS[:1]
    else:
        content["arms"] = _arms(arms)
    content["envs"] = _envs(content["envs"])
    packages = content.get("gym_packages") or []
    packages = [packages] if isinstance(packages, str) else packages
    if not isinstance(packages, list) or not all(isinstance(name, str) for name in packages):
        raise ArgumentError("gym_packages", packages, "a list of modules' names")
    content["gym_packages"] = tuple(dict.fromkeys(packages))
    for key in ("out", "baseline", "device"):
        if not isinstance(content.get(key, ""), (str, Path, type(None))):
            raise ArgumentError(key, content[key], "a string")
    content["out"] = Path(content["out"])
    return Experiment(**content)


def _envs(envs: Any) -> dict[str, Mapping[str, int]]:
    """Environments with their own settings; YAML reads ``Ant-v5:`` as an entry of ``None``."""
    names = [envs] if isinstance(envs, str) else envs
    content = {env_id: names[env_id] or {} for env_id in names} if isinstance(names, Mapping) else names
    if isinstance(content, list) and all(isinstance(env_id, str) for env_id in content):
        return {env_id: {} for env_id in content}
    if isinstance(content, dict) and all(isinstance(own, Mapping) for own in content.values()):
        return content
    keys = ", ".join(PER_ENVIRONMENT)
    raise ArgumentError("envs", envs, f"a list of environments' names, or a mapping from them to their own {keys}")


def with_options(content: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment with options that override it in every environment; ``envs`` selects among its environments."""
    merged = dict(content) | dict(options)
    if isinstance(content.get("envs"), Mapping):
        chosen = options.get("envs", content["envs"])
        own = {env_id: content["envs"].get(env_id) or {} for env_id in chosen}
        merged["envs"] = {env_id: {key: own[env_id][key] for key in own[env_id] if key not in options} for env_id in own}
    return merged


def _arms(arms: Any) -> tuple[Arm, ...]:
    if isinstance(arms, Mapping) and arms:
        return tuple(_arm(str(name), content) for name, content in arms.items())
    if isinstance(arms, list) and arms and all(isinstance(text, str) for text in arms):
        return tuple(parse_arm(text) for text in arms)
    raise ArgumentError(
        "arms", arms, "a mapping from names to settings with 'algo', or a list of strings", f"As in {_ARM_FORM}."
    )


def _arm(name: str, content: Any) -> Arm:
    if isinstance(content, str):
        return parse_arm(f"{name}={content}")
    if not isinstance(content, Mapping) or not isinstance(content.get("algo"), str):
        raise ArgumentError(f"arms: {name}", content, "a mapping with 'algo' in it, or ALGO:key=value,...")
    if not _NAME.fullmatch(name):
        raise ArgumentError("arms: name", name, "made of letters, digits, and _ . + - after the first")
    overrides = {str(key): value for key, value in content.items() if key not in ("algo", "preset", "yaml")}
    arm = Arm(name, content["algo"], content.get("preset"), content.get("yaml"), overrides)
    for key, value in (("preset", arm.preset), ("yaml", arm.yaml)):
        if not isinstance(value, (str, type(None))):
            raise ArgumentError(f"arm {name}: {key}", value, "a string")
    if arm.preset is not None and arm.yaml is not None:
        raise ArgumentError(f"arm {name}: preset", arm.preset, problem="cannot be combined with yaml")
    return arm


def parse_arm(text: str) -> Arm:
    """Parse ``NAME=ALGO[:key=value,...]``; values are YAML, as in ``policy_kwargs={net_arch: [64, 64]}``, never code."""
    name, equals, rest = text.partition("=")
    algo, colon, settings = rest.partition(":")
    if not equals or not algo or not _NAME.fullmatch(name) or (colon and not settings):
        raise ArgumentError("--arm", text, _ARM_FORM)
    content: dict[str, Any] = {"algo": algo}
    for part in _split(settings):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not key or not value.strip():
            raise ArgumentError("--arm", text, _ARM_FORM, f"{part!r} is not key=value.")
        if key in content:
            raise ArgumentError("--arm", text, "without a key that is given twice", f"That is {key!r}.")
        try:
            content[key] = plain_numbers(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ArgumentError("--arm", text, f"with a value of {key} that YAML understands", str(error)) from error
    return _arm(name, content)


def _split(settings: str) -> Iterator[str]:
    """Split at commas, except within brackets or quotes."""
    part, depth, quote = "", 0, ""
    for character in settings:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += _BRACKETS.get(character, 0)
        if character == "," and depth == 0 and not quote:
            yield part
            part = ""
        else:
            part += character
    if part:
        yield part


def shipped_experiments() -> dict[str, Path]:
    return {path.stem: path for path in sorted((hyperparams_folder() / "experiments").glob("*.yml"))}


def read_experiment(name: str) -> dict[str, Any]:
    """The settings in a YAML file or a shipped experiment, for :func:`experiment_from`."""
    shipped = shipped_experiments()
    allowed = f"one of {', '.join(shipped)}, or a file of YAML without code in it: a mapping with keys of {', '.join(KEYS)}"
    return read_mapping(shipped.get(name, Path(name)), "experiment", allowed, near(name, shipped))
