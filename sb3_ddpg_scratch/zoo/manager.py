"""RL Zoo's experiment manager, for ScratchDDPG: settings that are data, checked before anything is made."""

import ast
import inspect
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_class_by_name
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.errors import ArgumentError, DivergenceError
from sb3_ddpg_scratch.noise import VectorNoise, make_noise
from sb3_ddpg_scratch.policies import ACTIVATIONS
from sb3_ddpg_scratch.zoo.files import check_settings, default_file, plain_numbers, read_settings, section_for
from sb3_ddpg_scratch.zoo.saved_yaml import read_saved

REPLAY_BUFFERS: dict[str, type[ReplayBuffer]] = {
    "ReplayBuffer": ReplayBuffer,
    "DictReplayBuffer": DictReplayBuffer,
    "HerReplayBuffer": HerReplayBuffer,
}
_LEARNING_RATES = ("learning_rate", "qf_learning_rate")
_MAPPINGS = ("policy_kwargs", "replay_buffer_kwargs", "normalize", "monitor_kwargs", "env_kwargs")
# What a VectorNoise changes while it runs; all else is how it was made.
_NOISE_STATE = ("state", "num_steps", "n_envs", "_generator")


class ScratchExperimentManager(ExperimentManager):
    """
    What ``ExperimentManager`` becomes for ``scratch_ddpg``; its arguments are the same.

    It differs where the Zoo's own would not do: its YAML file is ours; every key is checked before anything is made;
    no text in a YAML file is evaluated; ``qf_learning_rate`` may be ``lin_...`` too; a continued agent goes on with
    the noise it had, unless the settings ask for another; and a diverged trial is pruned instead of ending the search.

    :raises ArgumentError: when the experiment is set up, for settings that ScratchDDPG does not know
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = inspect.signature(ExperimentManager.__init__).bind(self, *args, **kwargs).arguments
        if given.get("config") is None:
            self.config = str(default_file())
        self._dict_observations = False

    # ------------------------------------------------------------------------------------------------------- Settings

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: the settings, and a copy to be saved beside the agent
        :raises ArgumentError: for a key that is unknown, or text that only Python could understand
        """
        env_id, where = self.env_name.gym_id, self.config
        if getattr(self.args, "resume", None) is not None:
            return self._settings_of_run(Path(self.params_path) / "config.yml")
        if self.config.endswith((".yml", ".yaml")):
            content = read_settings(Path(self.config))
            section = section_for(content, env_id, self.config)
            where = f"{self.config}: {section}"
            # The command line may not mend a file: its own keys have to be right.
            check_settings(as_data(content[section], where), where)
        settings, _ = super().read_hyperparameters()
        settings = as_data(settings, f"-params over {where}" if self.custom_hyperparams else where)
        check_settings(settings, f"-params over {where}" if self.custom_hyperparams else where)
        saved = OrderedDict((key, deepcopy(settings[key])) for key in sorted(settings))
        return settings, saved

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        # Of a run that goes on they are there, and would be torn if it were killed while they are written.
        if getattr(self.args, "resume", None) is None:
            super()._save_config(saved_hyperparams)

    def _settings_of_run(self, config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """What an interrupted run was given, its file and its command line joined."""
        print(f"Loading hyperparameters from: {config}")
        settings = as_data(read_saved(config), str(config))
        check_settings(settings, str(config))
        return deepcopy(settings), OrderedDict(sorted(settings.items()))

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        if hyperparams.get("qf_learning_rate") is not None:
            # The Zoo makes schedules of a few keys that it knows by name.
            alone = {"learning_rate": hyperparams["qf_learning_rate"]}
            hyperparams["qf_learning_rate"] = ExperimentManager._preprocess_schedules(alone)["learning_rate"]
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        name = hyperparams.get("replay_buffer_class")
        if isinstance(name, str):
            hyperparams["replay_buffer_class"] = replay_buffer_class(name)
        return super()._preprocess_hyperparams(hyperparams)

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        self._dict_observations = isinstance(env.observation_space, spaces.Dict)
        return super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)

    # ----------------------------------------------------------------------------------------- Continuing a trained agent

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        # The agent was saved with the buffer class and arguments that SB3 had derived from n_steps; given none, it
        # would take them for the user's own, and not derive them again.
        hyperparams = {"replay_buffer_class": None, "replay_buffer_kwargs": {}} | hyperparams
        unset = object()
        spec = hyperparams.pop("action_noise", unset)
        model: Any = super()._load_pretrained_agent(hyperparams, env)
        if spec is not unset:
            noise: Any = make_noise(spec, env.action_space.shape or ())
            if not _made_alike(noise, model.action_noise):
                model.action_noise = noise
                if isinstance(noise, VectorNoise):
                    noise.seed_from(self.seed)
        return model

    # --------------------------------------------------------------------------------------------------------- Tuning

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train and evaluate with one set of sampled settings.

        :param trial: the trial
        :return: mean return of its last evaluation
        :raises optuna.TrialPruned: if it is not worth going on, or training diverged
        """
        # The sampler is told nothing else about the environment than its number of actions.
        trial.set_user_attr("dict_observations", self._dict_observations)
        try:
            return super().objective(trial)
        except DivergenceError as error:
            print(error)
            raise optuna.TrialPruned(str(error)) from error


def as_data(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """
    Settings without text that the Zoo would evaluate: what is plain data becomes data, all else is refused.

    :param settings: an environment's settings, as a YAML file has them
    :param where: where they are from, for the error
    :return: the same, as data
    :raises ArgumentError: for text that only Python could understand
    """
    settings = plain_numbers(settings)
    for key in _MAPPINGS:
        if isinstance(settings.get(key), str):
            settings[key] = mapping_from_text(f"{where}: {key}", settings[key])
    for key in _LEARNING_RATES:
        value = settings.get(key)
        if isinstance(value, str) and not _is_linear(value):
            raise ArgumentError(f"{where}: {key}", value, "a number, or like lin_1e-3: linear from 1e-3 to 0")
    return settings


def _is_linear(text: str) -> bool:
    kind, _, number = text.partition("_")
    try:
        return kind == "lin" and float(number) >= 0
    except ValueError:
        return False


def mapping_from_text(name: str, text: str) -> dict[str, Any]:
    """
    Understand ``"dict(net_arch=[64, 64])"``, as the Zoo's own files have it, without running it.

    :param name: the setting, for the error
    :param text: its value
    :return: the dict
    :raises ArgumentError: for anything but a dict of plain values
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "dict" and not call.args:
            return {str(item.arg): _literal(item.value) for item in call.keywords if item.arg}
        value = ast.literal_eval(call)
        if isinstance(value, dict):
            return value
    except (SyntaxError, ValueError):
        pass
    raise ArgumentError(
        name, text, "a YAML mapping like {net_arch: [64, 64], activation_fn: relu}", "Text is never run as code."
    )


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return mapping_from_text("dict(...)", ast.unparse(node))
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nn", "th.nn", "torch.nn"):
        return {module.__name__: name for name, module in ACTIVATIONS.items()}.get(node.attr, node.attr)
    return ast.literal_eval(node)


def replay_buffer_class(name: str) -> type:
    """
    :param name: a replay buffer's name in YAML: one of :data:`REPLAY_BUFFERS`, or a class with its module
    :return: the class
    :raises ArgumentError: if the name is neither
    """
    if name in REPLAY_BUFFERS:
        return REPLAY_BUFFERS[name]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return get_class_by_name(name)
    allowed = f"one of {', '.join(REPLAY_BUFFERS)}, or a class with its module, as in my_package.buffers.MyBuffer"
    raise ArgumentError("replay_buffer_class", name, allowed)


def _made_alike(a: Any, b: Any) -> bool:
    """Whether two noises are of the same class and were given the same arguments."""
    if not isinstance(a, VectorNoise) or type(a) is not type(b):
        return False
    first: dict[str, Any] = vars(a)
    second: dict[str, Any] = vars(b)
    return all(np.array_equal(first[name], second[name]) for name in first if name not in _NOISE_STATE)
