"""
A user's script with everything that the package exports. The type checker reads it as ``mypy --strict`` does; nothing runs it.

``assert_type`` fails where an exported name has lost its type.
"""

from pathlib import Path
from typing import Any, assert_type

import pandas as pd
import torch as th
from gymnasium import spaces

from sb3_ddpg_scratch import (
    ActionSpaceError,
    ArgumentError,
    CheckpointError,
    CnnPolicy,
    ColoredNoise,
    DivergenceError,
    EnvironmentOutputError,
    ExportError,
    FolderInUseError,
    GaussianNoise,
    MissingPackageError,
    MlpPolicy,
    ModelFileError,
    MultiInputPolicy,
    OUNoise,
    PrioritizedReplayBuffer,
    ResumableCheckpoint,
    ScratchDDPG,
    ScratchDDPGPolicy,
    SimbaPolicy,
    UnknownArgumentError,
    UnsafeFileError,
    soft_update,
)
from sb3_ddpg_scratch.compare import (
    experiment_from,
    plan_comparison,
    read_experiment,
    read_results,
    run_comparison,
    score_table,
    verdict_table,
)
from sb3_ddpg_scratch.compare import figures as compare_figures
from sb3_ddpg_scratch.data import Added, SpacesOnly
from sb3_ddpg_scratch.diagnostics import (
    DiagnosticsCallback,
    Recording,
    UnreadableRecordingError,
    figures,
    read_recording,
    table,
    write_report,
)
from sb3_ddpg_scratch.zoo import (
    ALGO,
    ScratchExperimentManager,
    convert_scratch_ddpg_params,
    hyperparams_folder,
    preset_file,
    preset_names,
    register,
    run_script,
    sample_scratch_ddpg_params,
)


def train(folder: Path) -> ScratchDDPG:
    policies: list[type[ScratchDDPGPolicy]] = [MlpPolicy, CnnPolicy, MultiInputPolicy, SimbaPolicy]
    noise = [OUNoise([0.0], [0.2], theta=0.3), GaussianNoise([0.0], [0.1]), ColoredNoise([0.0], [0.1])]
    model = ScratchDDPG(policies[0], "Pendulum-v1", action_noise=noise[0], policy_kwargs={"net_arch": [64, 64]})
    assert_type(model.learn(1000, callback=[ResumableCheckpoint(folder), DiagnosticsCallback(folder)]), ScratchDDPG)
    assert_type(ScratchDDPG.resume(folder, "Pendulum-v1"), ScratchDDPG)
    model.set_env(SpacesOnly(model.observation_space, spaces.Box(-2, 2, (1,))))
    assert_type(model.add_transitions(folder / "log.npz"), Added)
    assert_type(model.learn_offline(1000), ScratchDDPG)
    assert_type(ScratchDDPG.load(folder / "model.zip"), ScratchDDPG)
    assert_type(model.policy, ScratchDDPGPolicy)
    ScratchDDPG("MlpPolicy", "Pendulum-v1", replay_buffer_class=PrioritizedReplayBuffer, replay_buffer_kwargs={"alpha": 0.5})
    soft_update(model.critic.parameters(), model.critic_target.parameters(), tau=0.005)
    th.save(model.policy.state_dict(), folder / "policy.pt")
    model.save(folder / "model")
    model.export_torch(folder / "policy.pt2")
    return model


def look(folder: Path) -> None:
    try:
        recording = read_recording(folder)
    except UnreadableRecordingError as error:
        print(error)
    else:
        assert_type(recording, Recording)
        assert_type(figures(recording), dict[str, Any])
        table(recording, "update")
        write_report([folder], folder / "report.html")


def compare(folder: Path) -> None:
    results = read_results(folder)
    assert_type(score_table(results), pd.DataFrame)
    assert_type(verdict_table(results, margin=0.1), pd.DataFrame)
    assert_type(compare_figures(results), dict[str, Any])
    plan_comparison(experiment_from({**read_experiment("layer_norm"), "out": folder}))
    print(run_comparison.__doc__)


def with_the_zoo() -> None:
    register()
    assert_type(preset_names(), list[str])
    assert_type(hyperparams_folder(), Path)
    assert_type(preset_file("tch_rs"), Path)
    run_script("train", ["--algo", ALGO])
    print(ScratchExperimentManager, convert_scratch_ddpg_params, sample_scratch_ddpg_params)


def main() -> None:
    try:
        train(Path("run"))
    except (ActionSpaceError, UnknownArgumentError, FolderInUseError, ArgumentError, EnvironmentOutputError) as error:
        print("wrong input:", error)
    except (UnsafeFileError, ModelFileError, CheckpointError, ExportError, MissingPackageError, DivergenceError) as error:
        print("failed:", error)
