"""RL Zoo's experiment manager, for our command ``train`` and for ScratchDDPG."""

import inspect
import re
import shlex
from collections import OrderedDict
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.checkpoint.callback import ResumableCheckpoint
from sb3_ddpg_scratch.checkpoint.training import read_newest, restore_training
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError, DivergenceError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.gym_packages import import_modules
from sb3_ddpg_scratch.learn_setup import WholeProgressBar
from sb3_ddpg_scratch.noise import VectorNoise, make_noise
from sb3_ddpg_scratch.observation_statistics import normalizable
from sb3_ddpg_scratch.policies import SimbaPolicy
from sb3_ddpg_scratch.zoo.evaluations import FailedEpisodes, TrainingProgress, keep_statistics
from sb3_ddpg_scratch.zoo.saved_settings import check_run
from sb3_ddpg_scratch.zoo.search import convert_scratch_ddpg_params, sample_scratch_ddpg_params
from sb3_ddpg_scratch.zoo.yaml_settings import (
    ALGO,
    CHECKPOINTS,
    as_data,
    check_settings,
    default_file,
    hyperparams_folder,
    read_saved,
    read_settings,
    replay_buffer_class,
    saved_file,
    section_for,
)

FOLDERS_HELD = ExitStack()
"""Locks of the folders that this process trains in, released when the command ends."""
YAML = (".yml", ".yaml")
# Settings of several parts, some of which may be searched.
GROUPS = ("policy_kwargs", "replay_buffer_kwargs")
# What a VectorNoise changes while it runs; its other attributes are its settings.
_NOISE_STATE = ("state", "used", "num_steps", "n_envs", "_generator")


def check_file(arguments: Any) -> None:
    """Check the settings that ``train`` will read, given its parsed arguments, before it prints or creates anything."""
    config = arguments.conf_file or str(default_file())
    if arguments.resume is not None:
        return
    if not config.endswith((*YAML, ".py")):
        import_modules([config], "--conf-file")
    if arguments.algo != ALGO or not config.endswith(YAML):
        return
    # The file alone first: the command line must not hide its errors.
    section, where = _checked_section(config, arguments.env)
    check_settings(as_data(section | (arguments.hyperparams or {}), f"-params over {where}"), f"-params over {where}")


def _checked_section(config: str, env_id: str) -> tuple[dict[str, Any], str]:
    content = read_settings(Path(config))
    section = section_for(content, env_id, config)
    where = f"{config}: {section}"
    check_settings(as_data(content[section], where), where)
    return content[section], where


class CommandManager(ExperimentManager):
    """An experiment of our ``train`` with any algorithm; it can record diagnostics, and it locks its folder."""

    failure_key: str | None = None

    def _option(self, name: str) -> Any:
        """One of our options; ``None`` if the arguments come from the Zoo's own parser."""
        return getattr(self.args, name, None)

    def load_trial(self, storage: str, study_name: str, trial_id: Any = None, convert: bool = True) -> Any:
        return super().load_trial(storage, study_name, None if trial_id is None else int(trial_id), convert)

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if self.optimize_hyperparameters and self.n_evaluations is None and self.eval_freq > 0:
            steps = self.n_timesteps if self.n_timesteps > 0 else int(hyperparams["n_timesteps"])
            self.n_evaluations = max(steps // self.eval_freq, 1)
        try:
            return super()._preprocess_hyperparams(hyperparams)
        except (ImportError, AttributeError) as error:
            problem = f"name a wrapper, policy or callback that cannot be imported ({error})"
            raise ArgumentError("The settings", self.config, problem=problem) from error

    def create_log_folder(self) -> None:
        # Processes that share a study (-optimize) share its folder; a resumed run's is locked already.
        if hasattr(self.args, "resume") and self.args.resume is None and not self.optimize_hyperparameters:
            FOLDERS_HELD.enter_context(hold_folder(Path(self.save_path), "--log-folder"))
        super().create_log_folder()  # type: ignore[no-untyped-call]

    def create_callbacks(self) -> None:
        super().create_callbacks()  # type: ignore[no-untyped-call]
        keep_statistics(self)
        for evaluation in [one for one in self.callbacks if isinstance(one, EvalCallback)]:
            FailedEpisodes(evaluation, self.failure_key)
        is_bar = [isinstance(callback, ProgressBarCallback) for callback in self.callbacks]
        if any(is_bar) and self.algo == ALGO:
            self.callbacks[is_bar.index(True)] = WholeProgressBar()
        if self.verbose > 0:
            self.callbacks.append(TrainingProgress())
        if self._option("diagnostics"):
            # Plotly is slow to import.
            from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback

            self.callbacks.append(DiagnosticsCallback(self.save_path))

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        super().save_trained_model(model)
        if self._option("diagnostics"):
            from sb3_ddpg_scratch.diagnostics.report import write_report

            result = write_report([Path(self.save_path)], Path(self.save_path) / "report.html")
            print(f"What happened is in {result.path}")


class ScratchExperimentManager(CommandManager):
    """
    ``ExperimentManager`` for ``scratch_ddpg``, with the same arguments.

    Unlike the Zoo's, it reads our YAML file, checks every key up front, and never evaluates text in a YAML file.
    ``qf_learning_rate`` may be ``lin_...`` too; a continued agent keeps its noise unless the settings specify
    another; a diverged trial is pruned instead of ending the search; and runs can write checkpoints and be resumed.

    :raises ArgumentError: when the experiment is set up, for unknown settings
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = inspect.signature(ExperimentManager.__init__).bind(self, *args, **kwargs).arguments
        if not given.get("config"):
            self.config = str(default_file())
        self._dict_observations = self._may_normalize = False
        self._of_trial: dict[str, Any] = {}
        self.study: optuna.Study | None = None

    def load_trial(self, storage: str, study_name: str, trial_id: Any = None, convert: bool = True) -> Any:
        self._of_trial = super().load_trial(storage, study_name, trial_id, convert)
        return self._of_trial

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the settings, and a copy to save beside the agent."""
        env_id, where = self.env_name.gym_id, self.config
        if self._option("resume") is not None:
            return self._settings_of_run(Path(self.params_path) / "config.yml")
        section: dict[str, Any] = {}
        if self.config.endswith(YAML):
            section, where = _checked_section(self.config, env_id)
        settings, _ = super().read_hyperparameters()
        given = self.custom_hyperparams or {}
        where = f"-params over {where}" if given else where
        for key in self._of_trial.keys() & set(GROUPS):
            # A trial has only those that were searched.
            base = as_data({key: section.get(key)}, where)[key] or {}
            settings[key] = base | self._of_trial[key] | (given.get(key) or {})
        settings = as_data(settings, where)
        check_settings(settings, where)
        # Settings that ship with this package are where a search starts; the user's own stay as they are.
        shipped = Path(self.config).resolve().is_relative_to(hyperparams_folder())
        self._fixed, self._settings = dict(given if shipped else settings), deepcopy(settings)
        saved = OrderedDict((key, deepcopy(settings[key])) for key in sorted(settings))
        return settings, saved

    def _settings_of_run(self, config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that the file and the command line gave to an interrupted run."""
        print(f"Loading hyperparameters from: {config}")
        settings = as_data(read_saved(config), str(config))
        if not self._option("trusted"):
            check_run(settings, config)
        check_settings(settings, str(config))
        return deepcopy(settings), OrderedDict(sorted(settings.items()))

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        if hyperparams.get("qf_learning_rate") is not None:
            # The Zoo makes schedules only for the few keys that it knows.
            alone = {"learning_rate": hyperparams["qf_learning_rate"]}
            hyperparams["qf_learning_rate"] = ExperimentManager._preprocess_schedules(alone)["learning_rate"]
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        self._search, self.failure_key = hyperparams.pop("search", None), hyperparams.pop("failure_key", None)
        name = hyperparams.get("replay_buffer_class")
        if isinstance(name, str):
            hyperparams["replay_buffer_class"] = replay_buffer_class(name)
        return super()._preprocess_hyperparams(hyperparams)

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        self._dict_observations = isinstance(env.observation_space, spaces.Dict)
        self._may_normalize = not self._env_normalizes() and bool(normalizable(env.observation_space))
        return super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        if self._option("resume") is None:
            experiment = super().setup_experiment()
            if experiment is not None and self.verbose > 0:
                self._say_what_is_used(experiment[0])
            if experiment is not None and self._option("data") is not None:
                model: Any = experiment[0]
                added = model.add_transitions(self.args.data)
                if not model.verbose:
                    print(added)
            return experiment
        run = Path(self.args.resume)
        self.save_path = str(run)
        self.params_path = str(saved_file(run, "config.yml").parent)
        # Lock before reading the checkpoint: another process might be about to write the next one.
        FOLDERS_HELD.enter_context(hold_folder(run, "--resume"))
        # Before the model is created, since this selects the kernels that the run used.
        checkpoint = read_newest(run / CHECKPOINTS)
        made = super().setup_experiment()
        assert made is not None
        assert isinstance(made[0], ScratchDDPG)
        restore_training(made[0], checkpoint)
        print(f"Continuing from {checkpoint.folder}, at step {checkpoint.step}")
        return made

    def _env_normalizes(self) -> bool:
        return bool(self.normalize and self.normalize_kwargs.get("norm_obs", True))

    def _say_what_is_used(self, model: BaseAlgorithm) -> None:
        networks = f"networks {getattr(model.policy, 'net_arch', 'of its own policy')}"
        by_policy = getattr(model.policy, "normalize_observations", False)
        normalized = "normalized" if by_policy or self._env_normalizes() else "not normalized"
        told = [f"Training for {self.n_timesteps:,} steps with {networks}; observations are {normalized}."]
        file, env_id = default_file(), self.env_name.gym_id
        if self.config == str(file) and env_id not in read_settings(file) and not self.trained_agent:
            change = """-n STEPS, -params normalize:True "policy_kwargs:dict(net_arch=[64, 64])", or -conf FILE"""
            told.append(f"{file.name} has no settings for {env_id}: these are the defaults. To change them: {change}.")
        print(*told, sep="\n", flush=True)  # a pipe gets it now, too

    def create_callbacks(self) -> None:
        super().create_callbacks()
        every = self._option("checkpoint_every")
        if every is not None:
            self.callbacks.append(ResumableCheckpoint(Path(self.save_path) / CHECKPOINTS, every, self.args.keep or 2))

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        # A resumed run already has them, and being killed while writing would leave half a file.
        if self._option("resume") is None:
            super()._save_config(saved_hyperparams)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        # Without these, SB3 would take the saved buffer class and arguments, derived from n_steps, for the user's own.
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

    def sample(self, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        """A trial's settings that were not fixed by the user."""
        known = {"fixed": self._fixed, "search": self._search, "budget": self.n_timesteps}
        known |= {"dict_observations": self._dict_observations, "may_normalize": self._may_normalize}
        policy = ScratchDDPG.policy_aliases.get(self._hyperparams["policy"], self._hyperparams["policy"])
        layers = self._hyperparams.get("policy_kwargs") or {}
        known["residual"] = policy is SimbaPolicy or layers.get("scale_factor") is not None
        sampled = sample_scratch_ddpg_params(trial, n_actions, n_envs, additional_args | known)
        self.study = trial.study
        for key in sampled.keys() & set(GROUPS):
            sampled[key] = (self._hyperparams.get(key) or {}) | sampled[key]
        return self._preprocess_schedules(sampled)

    def objective(self, trial: optuna.Trial) -> float:
        try:
            return super().objective(trial)
        except DivergenceError as error:
            print(error)
            raise optuna.TrialPruned(str(error)) from error

    def command_of_best(self) -> str:
        """The command that trains with the best trial's settings."""
        assert self.study is not None
        found = convert_scratch_ddpg_params(self.study.best_params)
        for key in found.keys() & set(GROUPS):
            found[key] = (self._settings.get(key) or {}) | found[key]
        preset, file = self._option("preset"), [] if self.config == str(default_file()) else [self.config]
        options: dict[str, list[str]] = {"--env": [self.env_name.gym_id], "--gym-packages": self._option("gym_packages") or []}
        options |= {"--preset": [preset]} if preset else {"-conf": file}
        options |= {"-n": [str(self.n_timesteps)], "--env-kwargs": _pairs(self._option("env_kwargs") or {})}
        options["-params"] = _pairs((self.custom_hyperparams or {}) | found)
        parts = [part for option, values in options.items() if values for part in (option, *values)]
        # Values in Python have single quotes, which shlex would make hard to read.
        quoted = (f'"{part}"' if "'" in part and not set(part) & set('"$`\\') else shlex.quote(part) for part in parts)
        return " ".join(["sb3-ddpg-scratch", "train", *quoted])


def _pairs(values: dict[str, Any]) -> list[str]:
    pairs = (f"{key}:{value!r}" for key, value in values.items())
    return [re.sub(r"<class 'torch\.(optim|nn)\.(?:\w+\.)*(\w+)'>", r"th.\1.\2", pair) for pair in pairs]


def _made_alike(a: Any, b: Any) -> bool:
    """Whether two noises have the same class and arguments."""
    if not isinstance(a, VectorNoise) or type(a) is not type(b):
        return False
    first: dict[str, Any] = vars(a)
    second: dict[str, Any] = vars(b)
    return all(np.array_equal(first[name], second[name]) for name in first if name not in _NOISE_STATE)
