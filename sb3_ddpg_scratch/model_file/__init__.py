"""Reading models, replay buffers and statistics without running code from a file."""

from sb3_ddpg_scratch.model_file.archive import MAX_BYTES
from sb3_ddpg_scratch.model_file.contents import NOT_SAVED
from sb3_ddpg_scratch.model_file.loading import (
    LoadOptions,
    ModelPath,
    load_model,
    load_replay_buffer,
    read_parameters,
    whole_model_file,
)
from sb3_ddpg_scratch.model_file.normalization import load_vec_normalize
from sb3_ddpg_scratch.model_file.pickles import read_pickle

__all__ = [
    "MAX_BYTES",
    "NOT_SAVED",
    "LoadOptions",
    "ModelPath",
    "load_model",
    "load_replay_buffer",
    "load_vec_normalize",
    "read_parameters",
    "read_pickle",
    "whole_model_file",
]
