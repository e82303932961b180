"""Registration of our algorithm and SBX's with RL Zoo, and the check that an environment is registered."""

from collections.abc import Sequence

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError, near, require
from sb3_ddpg_scratch.gym_packages import RegisteredEnv, registered_env
from sb3_ddpg_scratch.zoo.patches import choose_manager
from sb3_ddpg_scratch.zoo.search import convert_scratch_ddpg_params, sample_scratch_ddpg_params
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO

SBX_ALGO = "sbx_ddpg"


def register() -> None:
    """
    Make ``scratch_ddpg`` an algorithm of RL Zoo, with its hyperparameter sampler and converter, its YAML file and its
    experiment manager. Other algorithms are unaffected. Calling it again changes nothing.

    The Zoo's modules share these dicts, and read the choices of ``--algo`` from one when they parse their arguments,
    so this can be called any time before a script runs.
    """
    ALGOS[ALGO] = ScratchDDPG
    HYPERPARAMS_SAMPLER[ALGO] = sample_scratch_ddpg_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_scratch_ddpg_params
    choose_manager()


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of one of RL Zoo's algorithms, or of ``sbx_ddpg``, registered on first use since JAX is slow to import."""
    register()
    if name == SBX_ALGO and name not in ALGOS:
        require(f"The algorithm {name}", "bench", "sbx", "jax")
        import sbx

        ALGOS[SBX_ALGO] = sbx.DDPG
    if name not in ALGOS:
        names = sorted({*ALGOS, SBX_ALGO})
        raise ArgumentError("algorithm", name, f"one of {', '.join(names)}", near(name, names))
    return ALGOS[name]


def check_env(env_id: str, gym_packages: Sequence[str] = ()) -> RegisteredEnv:
    """The environment registered by the Zoo or one of these modules; raises ``ArgumentError`` if there is none."""
    import rl_zoo3.import_envs  # noqa: F401  # registers the Zoo's environments

    return registered_env(env_id, gym_packages)
