"""Reading models, replay buffers and statistics without running code from a file."""

from sb3_ddpg_scratch.model_file.loading import SafeFiles
from sb3_ddpg_scratch.model_file.normalization import load_vec_normalize, statistics_of
from sb3_ddpg_scratch.model_file.pickles import read_pickle

__all__ = ["SafeFiles", "load_vec_normalize", "read_pickle", "statistics_of"]
