"""The command ``train``: RL Zoo's options and ours in our own parser, and the steps around our experiment managers."""

import argparse
import inspect
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import stable_baselines3 as sb3
import torch as th
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, StoreDict
from stable_baselines3.common.utils import set_random_seed

from sb3_ddpg_scratch.checkpoint.storage import checkpoints_in
from sb3_ddpg_scratch.errors import ArgumentError, require
from sb3_ddpg_scratch.validation import check_device
from sb3_ddpg_scratch.zoo.manager import CommandManager, ScratchExperimentManager
from sb3_ddpg_scratch.zoo.patches import searching
from sb3_ddpg_scratch.zoo.saved_settings import check_run_arguments
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, CHECKPOINTS, preset_file, preset_names, read_saved, saved_file

# Options allowed with --resume; all others are the interrupted run's.
_FREE = ("resume", "checkpoint_every", "keep", "verbose", "progress", "trusted")
_SWITCH: dict[str, Any] = {"action": "store_true", "default": False}
_NUMBER: dict[str, Any] = {"type": int}
# The least value of options, of `train` and of scripts; 0 or a negative one has a meaning for others.
_LEAST = {"n_envs": 1, "eval_episodes": 1, "n_eval_envs": 1, "n_trials": 1, "max_total_trials": 1, "n_evaluations": 1}
_LEAST |= {"n_startup_trials": 0, "trial_id": 0, "checkpoint_every": 1, "keep": 1, "episode_window": 1, "fontsize": 1}
_NOT_ZERO = ("n_timesteps", "log_interval", "n_jobs")


class KeyValues(StoreDict):
    """The Zoo's ``key:value ...``, each value an expression of Python; with an error that names the option."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        given: dict[str, Any] = {}
        for item in values:
            try:
                super().__call__(parser, namespace, [item], option_string)  # type: ignore[no-untyped-call]
            except Exception as error:
                advice = f"{type(error).__name__}: {error}. Text needs quotes, as in name:'text'."
                raise ArgumentError(str(option_string), item, "key:value, the value in Python", advice) from error
            given |= getattr(namespace, self.dest)
        setattr(namespace, self.dest, given)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


_MAPPING: dict[str, Any] = {"type": str, "nargs": "+", "action": KeyValues, "metavar": "KEY:VALUE"}
# The defaults are the Zoo's, as a test checks.
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any], str], ...] = (
    (("--env",), {"default": "CartPole-v1"}, "environment"),
    (("-tb", "--tensorboard-log"), {"default": ""}, "folder of TensorBoard's log"),
    (("-i", "--trained-agent"), {"default": ""}, "agent (.zip) to continue training"),
    (("--truncate-last-trajectory",), {"type": _yes_or_no, "default": True}, "whether a loaded HER buffer's episode ends"),
    (("-n", "--n-timesteps"), _NUMBER | {"default": -1}, "steps, instead of those in the settings"),
    (("--num-threads",), _NUMBER | {"default": -1}, "threads of PyTorch"),
    (("--log-interval",), _NUMBER | {"default": -1}, "episodes between two logs; -2 for no log"),
    (("--eval-freq",), _NUMBER | {"default": 25000}, "steps between two evaluations; negative for none"),
    (("--optimization-log-path",), {}, "folder for the evaluations and best policy of each trial"),
    (("--eval-episodes",), _NUMBER | {"default": 5}, "episodes of an evaluation"),
    (("--n-eval-envs",), _NUMBER | {"default": 1}, "environments of an evaluation"),
    (("--save-freq",), _NUMBER | {"default": -1}, "steps between two saved models; negative for none"),
    (("--save-replay-buffer",), _SWITCH, "also save the replay buffer"),
    (("-f", "--log-folder"), {"default": "logs"}, "folder for agents"),
    (("--seed",), _NUMBER | {"default": -1}, "seed; negative for a random one"),
    (("--vec-env",), {"default": "dummy", "choices": ["dummy", "subproc"]}, "where environments run"),
    (("--device",), {"default": "auto"}, "device of the networks"),
    (("--n-trials",), _NUMBER | {"default": 500}, "trials of this search"),
    (("--max-total-trials",), _NUMBER, "trials of all searches that share a study"),
    (("-optimize", "--optimize-hyperparameters"), _SWITCH, "search for settings"),
    (("--no-optim-plots",), _SWITCH, "no plots of the search"),
    (("--n-jobs",), _NUMBER | {"default": 1}, "trials at a time"),
    (("--sampler",), {"default": "tpe", "choices": ["random", "tpe", "auto"]}, "sampler of the search"),
    (("--pruner",), {"default": "median", "choices": ["halving", "median", "none"]}, "pruner of the search"),
    (("--n-startup-trials",), _NUMBER | {"default": 10}, "random trials before the sampler"),
    (("--n-evaluations",), _NUMBER, "evaluations of a trial; default: one each --eval-freq steps"),
    (("--storage",), {}, "storage of a study that several searches share"),
    (("--study-name",), {}, "name of that study"),
    (("--trial-id",), _NUMBER, "train with the settings of this trial"),
    (("--verbose",), _NUMBER | {"default": 1}, "0 for no output"),
    (("--gym-packages",), {"nargs": "+", "default": []}, "modules that register environments"),
    (("--env-kwargs",), _MAPPING, "arguments of the environment"),
    (("--eval-env-kwargs",), _MAPPING, "arguments of the environment for evaluations"),
    (("-params", "--hyperparams"), _MAPPING, "settings to change, as in learning_rate:0.01"),
    (("-conf", "--conf-file"), {}, "YAML file of settings, or a module with a dict hyperparams"),
    (("-uuid", "--uuid"), _SWITCH, "a unique name for the run's folder"),
    (("--track",), _SWITCH, "track the run with Weights and Biases"),
    (("--wandb-project-name",), {"default": "sb3"}, "its project"),
    (("--wandb-entity",), {}, "its entity (team)"),
    (("--wandb-group",), {}, "its group"),
    (("-P", "--progress"), _SWITCH, "show a progress bar"),
    (("-tags", "--wandb-tags"), {"nargs": "+", "default": []}, "tags of the tracked run"),
)


def train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--algo", default="ppo", choices=list(ALGOS), help="algorithm")
    for flags, settings, text in _OPTIONS:
        parser.add_argument(*flags, help=text, **settings)
    return parser


def train(arguments: argparse.Namespace) -> None:
    """Train, or search for settings, according to :func:`train_parser`'s arguments, which were checked."""
    if arguments.seed < 0:
        arguments.seed = int(np.random.randint(2**32 - 1, dtype=np.int64))
    if arguments.optimize_hyperparameters:
        # The sampler would repeat the trials of an earlier part of the study.
        arguments.seed = (arguments.seed + _trials_made(arguments)) % 2**32
    set_random_seed(arguments.seed)
    if arguments.num_threads > 0:
        th.set_num_threads(arguments.num_threads)
    print("=" * 10, arguments.env, "=" * 10)
    print(f"Seed: {arguments.seed}")
    tracked = _track(arguments) if arguments.track else None
    accepted = inspect.signature(ExperimentManager.__init__).parameters
    manager_class = ScratchExperimentManager if arguments.algo == ALGO else CommandManager
    manager: Any = manager_class(
        args=arguments,
        env_id=arguments.env,
        n_eval_episodes=arguments.eval_episodes,
        uuid_str=f"_{uuid.uuid4()}" if arguments.uuid else "",
        vec_env_type=arguments.vec_env,
        config=arguments.conf_file,
        show_progress=arguments.progress,
        **{name: value for name, value in vars(arguments).items() if name in accepted},
    )
    if manager.trial_id == 0:
        # The Zoo takes 0 for none.
        manager.trial_id = "0"
    experiment = manager.setup_experiment()
    if experiment is None:
        with searching(manager):
            manager.hyperparameters_optimization()
        if isinstance(manager, ScratchExperimentManager) and manager.study is not None:
            print(f"To train with the best trial's settings:\n{manager.command_of_best()}")
        return
    model, arguments.saved_hyperparams = experiment
    if tracked is not None:
        tracked.config.setdefaults(vars(arguments))
    manager.learn(model)
    manager.save_trained_model(model)


def _trials(storage: str, name: str) -> list[Any]:
    backend = JournalStorage(JournalFileBackend(storage)) if storage.endswith(".log") else storage
    return optuna.load_study(study_name=name, storage=backend).trials


def _trials_made(arguments: argparse.Namespace) -> int:
    storage, name = arguments.storage, arguments.study_name
    # Optuna would create a file that does not exist.
    if not (storage and name) or (storage.endswith(".log") and not Path(storage).is_file()):
        return 0
    with suppress(KeyError):
        return len(_trials(storage, name))
    return 0


def _track(arguments: argparse.Namespace) -> Any:
    require("--track", "", "wandb")
    import wandb

    arguments.command = " ".join(sys.orig_argv)
    name = f"{arguments.env}__{arguments.algo}__{arguments.seed}__{int(time.time())}"
    arguments.tensorboard_log = f"runs/{name}"
    return wandb.init(
        name=name,
        project=arguments.wandb_project_name,
        entity=arguments.wandb_entity,
        group=arguments.wandb_group,
        tags=[*arguments.wandb_tags, f"v{sb3.__version__}"],
        config=vars(arguments),
        sync_tensorboard=True,
        monitor_gym=True,
        save_code=True,
    )


def add_train_options(group: argparse._ArgumentGroup) -> None:
    presets = f"Settings of a known DDPG instead of {ALGO}.yml: {', '.join(preset_names())}"
    group.add_argument("--preset", metavar="NAME", help=presets)
    recorded = (
        "Record Q, targets, gradients and probe states (DiagnosticsCallback) and draw them as report.html beside the agent"
    )
    group.add_argument("--diagnostics", action="store_true", help=recorded)
    data = "Add the transitions in this file (.npz, .csv, .parquet, .pkl) to the replay buffer before training"
    group.add_argument("--data", metavar="FILE", help=data)
    every = "Write a checkpoint every N steps, from which --resume continues to the same result bit for bit"
    group.add_argument("--checkpoint-every", metavar="N", type=int, help=every)
    group.add_argument("--keep", metavar="K", type=int, help="How many checkpoints to keep (2 if not given)")
    resume = "Continue an interrupted run in its folder and with its settings"
    group.add_argument("--resume", metavar="RUN_DIR", help=resume)


def adopt_run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Give ``train --resume`` the arguments of the interrupted run; reject others that would change it."""
    if arguments.resume is None:
        return
    run = Path(arguments.resume)
    given = [name for name, value in vars(arguments).items() if name not in _FREE and value != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        advice = "A resumed run keeps the settings that it began with."
        raise ArgumentError("--resume", arguments.resume, advice=advice, problem=f"cannot be combined with {names}")
    if not checkpoints_in(run / CHECKPOINTS):
        advice = "Train with --checkpoint-every first."
        raise ArgumentError("--resume", arguments.resume, "the folder of a run with checkpoints", advice)
    saved = read_saved(saved_file(run, "args.yml"))
    if saved.pop("algo", ALGO) != ALGO:
        raise ArgumentError("--resume", arguments.resume, f"a run of {ALGO}, which this is not")
    saved.pop("trusted", None)
    if not arguments.trusted:
        check_run_arguments(saved, saved_file(run, "args.yml"))
    for name, value in saved.items():
        if name not in _FREE or getattr(arguments, name) == parser.get_default(name):
            setattr(arguments, name, value)
    arguments.resume = str(run)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Check what the numbers and the device among parsed options may be."""
    for name, value in vars(arguments).items():
        option = f"--{name.replace('_', '-')}"
        if name in _LEAST and value is not None and value < _LEAST[name]:
            raise ArgumentError(option, value, f"at least {_LEAST[name]}")
        if name in _NOT_ZERO and value == 0:
            raise ArgumentError(option, value, problem="cannot be 0")
    # `train` chooses a seed for a negative one.
    if not -(2**31) * hasattr(arguments, "preset") <= getattr(arguments, "seed", 0) < 2**32:
        raise ArgumentError("--seed", arguments.seed, f"at least 0 and below {2**32}")
    check_device("--device", getattr(arguments, "device", "auto"))


def check_train_options(arguments: argparse.Namespace) -> None:
    """Check the complete arguments of ``train`` before anything is created, and choose the preset's file."""
    if arguments.diagnostics and arguments.optimize_hyperparameters:
        advice = "Train with the best trial's settings, then look."
        raise ArgumentError("--diagnostics", True, advice=advice, problem="cannot be combined with -optimize")
    if arguments.diagnostics:
        require("--diagnostics", "report", "plotly")
    _check_data(arguments)
    _check_trial(arguments)
    if arguments.tensorboard_log:
        require("--tensorboard-log", "tensorboard", "tensorboard")
    _check_checkpoints(arguments)
    # A resumed run has the preset's file already.
    if arguments.preset is not None and arguments.resume is None:
        path = preset_file(arguments.preset)
        if arguments.algo != ALGO:
            raise ArgumentError("--preset", arguments.preset, problem=f"cannot be combined with --algo {arguments.algo}")
        if arguments.conf_file is not None:
            raise ArgumentError("--preset", arguments.preset, problem="cannot be combined with --conf-file")
        arguments.conf_file = str(path)
    agent = Path(arguments.trained_agent)
    if arguments.trained_agent and not (agent.suffix == ".zip" and agent.is_file()):
        raise ArgumentError("--trained-agent", arguments.trained_agent, "the .zip of a trained agent")


def _check_data(arguments: argparse.Namespace) -> None:
    if arguments.data is None:
        return
    if arguments.algo != ALGO:
        raise ArgumentError("--data", arguments.data, problem=f"cannot be combined with --algo {arguments.algo}")
    if arguments.optimize_hyperparameters:
        raise ArgumentError("--data", arguments.data, problem="cannot be combined with -optimize")
    # A resumed run's checkpoint has it.
    if arguments.resume is None and not Path(arguments.data).is_file():
        raise ArgumentError("--data", arguments.data, "a file of transitions")


def _check_trial(arguments: argparse.Namespace) -> None:
    """Require a trial with settings if one is named, and what names its study."""
    number, storage, name = arguments.trial_id, arguments.storage, arguments.study_name
    if number is None:
        return
    if not (storage and name):
        raise ArgumentError("--trial-id", number, problem="needs --storage and --study-name")
    if arguments.optimize_hyperparameters:
        raise ArgumentError("--trial-id", number, problem="cannot be combined with -optimize")
    if storage.endswith(".log") and not Path(storage).is_file():  # Optuna would create it
        raise ArgumentError("--storage", storage, "the storage of a study")
    try:
        trials = _trials(storage, name)
    except Exception as error:
        raise ArgumentError("--study-name", name, f"a study in {storage} ({error})") from error
    if number >= len(trials) or not trials[number].params:
        known = ", ".join(str(trial.number) for trial in trials if trial.params)
        raise ArgumentError("--trial-id", number, f"a trial of the study {name}: {known or 'it has none'}")


def _check_checkpoints(arguments: argparse.Namespace) -> None:
    every = arguments.checkpoint_every
    if every is None:
        if arguments.keep is not None:
            raise ArgumentError("--keep", arguments.keep, problem="needs --checkpoint-every")
        return
    if arguments.algo != ALGO:
        raise ArgumentError("--checkpoint-every", every, problem=f"cannot be combined with --algo {arguments.algo}")
    if arguments.optimize_hyperparameters:
        raise ArgumentError("--checkpoint-every", every, problem="cannot be combined with -optimize")
