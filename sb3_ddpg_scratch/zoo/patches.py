"""
Patches of RL Zoo 2.9 and of libraries that it calls, where they offer no argument, subclass or hook.

:func:`choose_manager` is permanent and changes nothing for other algorithms. All others last for one command. Each states its
reason and has a test (``tests/test_zoo_patches.py``) that fails when RL Zoo no longer needs it.
"""

import argparse
import importlib
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from rl_zoo3 import exp_manager, utils
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError, UnsafeFileError
from sb3_ddpg_scratch.model_file import load_vec_normalize, read_pickle, statistics_of
from sb3_ddpg_scratch.zoo.evaluations import TrialEvaluation
from sb3_ddpg_scratch.zoo.manager import CommandManager, ScratchExperimentManager
from sb3_ddpg_scratch.zoo.saved_settings import ADVICE, check_saved
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, SavedYamlLoader, check_size

# Gymnasium's words about arguments that an environment does not take.
BY_ENV = " was raised from the environment creator"


def choose_manager() -> None:
    """The Zoo's scripts name ExperimentManager and may already have imported it, so the class itself must return ours."""

    def new(cls: type[ExperimentManager], *args: Any, **kwargs: Any) -> ExperimentManager:
        algo = kwargs.get("algo", args[1] if len(args) > 1 else None)
        return object.__new__(ScratchExperimentManager if algo == ALGO and cls is ExperimentManager else cls)

    ExperimentManager.__new__ = new  # type: ignore[method-assign,assignment]


@contextmanager
def parsed_by(parse: Callable[[argparse.ArgumentParser, Callable[..., Any]], argparse.Namespace]) -> Iterator[None]:
    """The scripts create parsers in functions and read ``sys.argv``: the first one to parse is handed to ``parse``."""
    original = argparse.ArgumentParser.parse_args
    done: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if done:
            return original(self, args, namespace)
        done.append(self)
        return parse(self, original)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        yield


@contextmanager
def own_subprocesses(gym_packages: Sequence[str]) -> Iterator[None]:
    """``benchmark`` and ``record_training`` start the Zoo's scripts as new processes, where ours is not registered."""
    original = subprocess.call
    packages = ["--gym-packages", *gym_packages] if gym_packages else []

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        own = [sys.executable, "-m", "sb3_ddpg_scratch"]
        if isinstance(command, list) and command[:2] == ["python", "enjoy.py"]:
            command = [*own, "enjoy", *command[2:], *packages]
        elif isinstance(command, list) and command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [*own, "record-video", *command[3:], *packages]
        return original(command, *args, **kwargs)

    with mock.patch.object(subprocess, "call", call):
        yield


@contextmanager
def hub_metadata() -> Iterator[None]:
    """``push_to_hub`` imports generate_metadata, which huggingface_sb3 has renamed and given another return type."""
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(hub, "generate_metadata"):
        yield
        return

    def generate_metadata(model_name: str, env_id: str, mean_reward: float, std_reward: float) -> dict[str, Any]:
        metadata: dict[str, Any] = hub._generate_metadata(model_name, env_id, mean_reward, std_reward).to_dict()
        return metadata

    with mock.patch.object(hub, "generate_metadata", generate_metadata, create=True):
        yield


@contextmanager
def loading_with(*names: str, **options: Any) -> Iterator[None]:
    """
    The scripts load models by ``ALGOS[algo].load``: without our ``trusted``, and with a buffer for one transition only for
    algorithms that they know by name. While this lasts, these entries are our algorithm and load with these options.
    """
    algorithm: Any = ALGOS[ALGO]

    def load(cls: type, path: Any, *args: Any, **kwargs: Any) -> Any:
        return algorithm.load.__func__(cls, path, *args, **(options | kwargs))

    def load_replay_buffer(self: Any, *args: Any, **kwargs: Any) -> None:
        algorithm.load_replay_buffer(self, *args, **({"trusted": options.get("trusted", False)} | kwargs))

    methods = {"load": classmethod(load), "load_replay_buffer": load_replay_buffer, "__module__": algorithm.__module__}
    with mock.patch.dict(ALGOS, dict.fromkeys(names, type(algorithm.__name__, (algorithm,), methods))):
        yield


@contextmanager
def safe_reading() -> Iterator[None]:
    """The scripts read an agent's YAML with UnsafeLoader and statistics with pickle, which run code; this reads only data."""
    load_yaml = yaml.load

    def read_yaml(stream: Any, Loader: Any) -> Any:  # noqa: N803  # yaml's own name
        if Loader is not yaml.UnsafeLoader:
            return load_yaml(stream, Loader)
        path = getattr(stream, "name", "YAML")
        try:
            content = load_yaml(stream, SavedYamlLoader)
            check_size(content)
            return check_saved(content, path)
        except UnsafeFileError:
            raise
        # Also for deep nesting, and for text that the Zoo would evaluate.
        except (yaml.YAMLError, AssertionError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise UnsafeFileError(path, f"it is not plain YAML ({error})", advice=ADVICE) from error

    def wrappers(settings: dict[str, Any], key: str = "env_wrapper") -> Any:
        wrap = get_wrapper_class(settings, key)
        return wrap and _naming(wrap, key, settings[key])

    def environments(*args: Any, env_kwargs: dict[str, Any], **options: Any) -> Any:
        make = _naming(make_vec_env, "env_kwargs", env_kwargs) if env_kwargs else make_vec_env
        return make(*args, env_kwargs=env_kwargs, **options)

    get_wrapper_class, make_vec_env = (getattr(utils, name) for name in ("get_wrapper_class", "make_vec_env"))
    with (
        mock.patch.object(yaml, "load", read_yaml),
        mock.patch.multiple(utils, get_wrapper_class=wrappers, make_vec_env=environments),
        mock.patch.object(VecNormalize, "load", staticmethod(load_vec_normalize)),
    ):
        yield


@contextmanager
def searching(manager: CommandManager) -> Iterator[None]:
    """The Zoo's search has no argument for what is fixed by the user, nor for callbacks that are objects."""
    sampler = {manager.algo: manager.sample} if isinstance(manager, ScratchExperimentManager) else {}
    evaluation = mock.patch.object(exp_manager, "TrialEvalCallback", TrialEvaluation)
    with mock.patch.dict(HYPERPARAMS_SAMPLER, sampler), evaluation:
        yield


@contextmanager
def own_statistics(model: Path, trusted: bool) -> Iterator[None]:
    """The scripts read the statistics of the end of training for every model of a run; this reads the model's own."""
    read = VecNormalize.load

    def load(path: Any, venv: Any) -> VecNormalize:
        own = statistics_of(model, trusted)
        print(f"With the statistics of VecNormalize in {own or path}")
        return read(str(own or path), venv)

    with mock.patch.object(VecNormalize, "load", staticmethod(load)):
        yield


@contextmanager
def explained(folder: str) -> Iterator[None]:
    """One sentence for what the Zoo and SB3 themselves find wrong with an agent that they play."""
    try:
        yield
    except (ArgumentError, ModelFileError):
        raise
    except (AssertionError, ValueError) as error:
        finder = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
        if not {"rl_zoo3", "stable_baselines3"} & set(finder):
            raise
        raise ArgumentError("--folder", folder, f"one with an agent whose settings fit its model ({error})") from error


def _naming(function: Callable[..., Any], key: str, value: Any) -> Callable[..., Any]:
    """The function, with the setting in its errors."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if isinstance(error, ArgumentError) or BY_ENV in str(error):
                raise
            raise ArgumentError(key, value, f"one that fits the environment ({type(error).__name__}: {error})") from error

    return call


@contextmanager
def gathered_results(trusted: bool) -> Iterator[None]:
    """``plot_from_file`` unpickles what all-plots wrote, which runs code, and skips the plain numbers of single runs."""
    original = pickle.load

    def load(file: Any) -> Any:
        results = original(file) if trusted else read_pickle(file)
        for environment in results.values():
            for entry in environment.values():
                if isinstance(entry, dict) and "last_evals" in entry:
                    entry["last_evals"] = np.atleast_1d(entry["last_evals"])
        return results

    with mock.patch.object(pickle, "load", load):
        yield


@contextmanager
def shown_in(picture: str | None, option: str, read: Any) -> Iterator[None]:
    """Save what the plotting scripts show to ``picture``, if given; raise an error if there is nothing to draw."""
    from matplotlib import pyplot as plt

    original, before = plt.show, plt.get_fignums()

    def show(*args: Any, **kwargs: Any) -> None:
        figures = [plt.figure(number) for number in plt.get_fignums() if number not in before]
        drawn = [figure for figure in figures if any(axes.has_data() for axes in figure.axes)]
        if not drawn:
            advice = "plot-train draws runs of at least --episode-window episodes, and all-plots draws evaluations."
            raise ArgumentError(option, read, advice=advice, problem=f"{read} has nothing to plot")
        if picture is None:
            original(*args, **kwargs)
            return
        path = Path(picture)
        for number, figure in enumerate(drawn, start=1):
            target = path.with_name(f"{path.stem}-{number}{path.suffix}") if len(drawn) > 1 else path
            save_figure(figure, target)
            print(f"Saved the picture to {target}")

    try:
        with mock.patch.object(plt, "show", show):
            yield
    finally:
        # The scripts draw on figures by name: a second one in this process would draw on the first one's.
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def save_figure(figure: Any, path: Path) -> None:
    """Write a Matplotlib figure atomically; the suffix determines the format."""
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ArgumentError("--picture", str(path), f"a file that ends in one of {', '.join('.' + name for name in formats)}")
    with whole_file(path) as file:
        figure.savefig(file, bbox_inches="tight", format=path.suffix.lstrip("."))
