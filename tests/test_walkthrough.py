"""The whole way of a user with an environment of their own, in a module in the working folder, by commands alone."""

import json

import numpy as np
import pytest
from commands import Command, command, output_of
from own_env import ENV_ID, write_module
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.gym_packages import import_modules
from sb3_ddpg_scratch.model_file import load_vec_normalize

SETTINGS = {
    ENV_ID: {
        "n_timesteps": 600,
        "policy": "MlpPolicy",
        "normalize": True,
        "learning_starts": 50,
        "batch_size": 16,
        "buffer_size": 1000,
        "updater": "analytic",
        "policy_kwargs": {
            "net_arch": [8],
        },
    }
}
TRAIN = ["-conf", "own.yml", "--eval-freq", "300", "--eval-episodes", "1", "--seed", "1", "--num-threads", "1"]


def killed_training(folder, run):
    """Train until there is a checkpoint, and then kill the process."""
    process = Command(folder, "train", "--env", f"trolley:{ENV_ID}", *TRAIN, "--diagnostics", "--checkpoint-every", "100")
    process.wait_for((run / "checkpoints" / "step_000000000200").exists)
    process.kill()


def test_an_environment_of_ones_own_all_the_way(tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    write_module(tmp_path)
    (tmp_path / "own.yml").write_text(json.dumps(SETTINGS))
    run = tmp_path / "logs" / "scratch_ddpg" / f"{ENV_ID}_1"
    agent = run / f"{ENV_ID}.zip"

    killed_training(tmp_path, run)
    assert not agent.exists()
    said = output_of(tmp_path, "train", "--resume", run)
    assert "Continuing from" in said
    assert "What happened is in" in said
    said = output_of(tmp_path, "enjoy", "--env", f"trolley:{ENV_ID}", "--no-render", "-n", "60")
    assert "2 Episodes" in said
    output_of(tmp_path, "plot-train", "-e", ENV_ID, "-f", "logs", "-w", "5", "--picture", "returns.png")
    assert (tmp_path / "returns.png").stat().st_size > 5000
    output_of(tmp_path, "report", run, "--out", "report.html")
    assert ENV_ID in (tmp_path / "report.html").read_text()

    arms = ["--arm", "ours=scratch_ddpg:yaml=own.yml", "--arm", "sb3=ddpg:yaml=own.yml,updater=null"]
    done = command(tmp_path, "compare", *arms, "--env", f"trolley:{ENV_ID}", "--seeds", "2", "--out", "no")
    assert done.returncode == 2
    assert "got 'updater'" in done.stderr  # SB3's DDPG has none
    plain = {ENV_ID: {key: value for key, value in SETTINGS[ENV_ID].items() if key != "updater"}}
    (tmp_path / "plain.yml").write_text(json.dumps(plain))
    arms = ["--arm", "ours=scratch_ddpg:yaml=plain.yml,updater=analytic", "--arm", "sb3=ddpg:yaml=plain.yml"]
    quick = ["--steps", "120", "--evaluations", "2", "--eval-episodes", "1", "--seeds", "2", "--jobs", "1"]
    said = output_of(tmp_path, "compare", *arms, "--env", f"trolley:{ENV_ID}", *quick, "--out", "compared")
    assert "A quick look" in said
    assert json.loads((tmp_path / "compared" / "summary.json").read_text())["score"] == "mean of a run's 2 evaluations"

    said = output_of(tmp_path, "export", agent, "--out", "policy.onnx")
    statistics = run / ENV_ID / "vecnormalize.pkl"
    assert f"With the statistics of VecNormalize in {statistics}" in said
    monkeypatch.syspath_prepend(tmp_path)
    import_modules(["trolley"])
    env = load_vec_normalize(statistics, make_vec_env(ENV_ID, 3, seed=0))
    env.training = False
    normalized = env.reset()
    raw = env.get_original_obs()
    model = ScratchDDPG.load(agent, device="cpu")
    actions, _ = model.predict(normalized, deterministic=True)
    (exported,) = ort.InferenceSession(tmp_path / "policy.onnx").run(None, {"observation": raw})
    np.testing.assert_allclose(exported, actions, rtol=1e-5, atol=1e-5)
    # Without the statistics the actions would be others.
    wrong, _ = model.predict(raw, deterministic=True)
    assert np.abs(wrong - actions).max() > 0.01
