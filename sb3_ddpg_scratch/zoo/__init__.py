"""
RL Zoo (rl_zoo3) with ScratchDDPG. Importing this package makes ``scratch_ddpg`` an algorithm of the Zoo, also in your own
scripts::

    import sb3_ddpg_scratch.zoo
    from rl_zoo3.train import train

    train()  # knows --algo scratch_ddpg
"""

from sb3_ddpg_scratch.zoo.manager import ScratchExperimentManager
from sb3_ddpg_scratch.zoo.registry import register
from sb3_ddpg_scratch.zoo.scripts import run_script
from sb3_ddpg_scratch.zoo.search import convert_scratch_ddpg_params, sample_scratch_ddpg_params
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, hyperparams_folder, preset_file, preset_names

register()

__all__ = [
    "ALGO",
    "ScratchExperimentManager",
    "convert_scratch_ddpg_params",
    "hyperparams_folder",
    "preset_file",
    "preset_names",
    "register",
    "run_script",
    "sample_scratch_ddpg_params",
]
