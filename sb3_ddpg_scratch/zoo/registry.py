"""Entering ScratchDDPG into RL Zoo's maps."""

from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.zoo.files import ALGO, near
from sb3_ddpg_scratch.zoo.manager import ScratchExperimentManager
from sb3_ddpg_scratch.zoo.search import convert_scratch_ddpg_params, sample_scratch_ddpg_params

SBX_ALGO = "sbx_ddpg"


def register() -> None:
    """
    Make ``scratch_ddpg`` an algorithm of RL Zoo, with its hyperparameter sampler and converter, its YAML file and its
    experiment manager. Other algorithms stay as they are. Doing it again changes nothing.

    The Zoo's modules share one object for each map, and read the choices of ``--algo`` from it when they parse their
    arguments, so that it is early enough to call this any time before a script is run.
    """
    ALGOS[ALGO] = ScratchDDPG
    HYPERPARAMS_SAMPLER[ALGO] = sample_scratch_ddpg_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_scratch_ddpg_params
    # Modules may have imported the manager's class already, so the class itself has to hand out ours.
    ExperimentManager.__new__ = _choose_manager  # type: ignore[method-assign,assignment]


def _choose_manager(cls: type[ExperimentManager], *args: Any, **kwargs: Any) -> ExperimentManager:
    algo = kwargs.get("algo", args[1] if len(args) > 1 else None)
    chosen = ScratchExperimentManager if cls is ExperimentManager and algo == ALGO else cls
    return object.__new__(chosen)


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """
    :param name: an algorithm of RL Zoo, or ``sbx_ddpg``, which is registered as soon as it is asked for (JAX takes its time)
    :return: its class
    :raises ArgumentError: if there is none of that name, or SBX is not installed
    """
    register()
    if name == SBX_ALGO and name not in ALGOS:
        try:
            import sbx
        except ImportError as error:
            advice = "It needs SBX: pip install 'sb3-ddpg-scratch[bench]'."
            raise ArgumentError("algorithm", name, "installed", advice) from error
        ALGOS[SBX_ALGO] = sbx.DDPG
    if name not in ALGOS:
        names = sorted({*ALGOS, SBX_ALGO})
        raise ArgumentError("algorithm", name, f"one of {', '.join(names)}", near(name, names))
    return ALGOS[name]
