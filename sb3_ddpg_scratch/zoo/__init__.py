"""
RL Zoo (rl_zoo3) with ScratchDDPG in it. Importing this package is enough: ``scratch_ddpg`` is then an algorithm of the
Zoo, in scripts of one's own as well::

    import sb3_ddpg_scratch.zoo
    from rl_zoo3.train import train

    train()  # knows --algo scratch_ddpg
"""

from sb3_ddpg_scratch.zoo.files import ALGO, hyperparams_folder, preset_file, preset_names
from sb3_ddpg_scratch.zoo.manager import ScratchExperimentManager
from sb3_ddpg_scratch.zoo.registry import register
from sb3_ddpg_scratch.zoo.search import convert_scratch_ddpg_params, sample_scratch_ddpg_params

register()

__all__ = [
    "ALGO",
    "ScratchExperimentManager",
    "convert_scratch_ddpg_params",
    "hyperparams_folder",
    "preset_file",
    "preset_names",
    "register",
    "sample_scratch_ddpg_params",
]
