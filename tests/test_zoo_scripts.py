"""RL Zoo's scripts as a user runs them: as commands in an empty folder, from the checkout and from an installed wheel."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gym_era
import huggingface_hub
import huggingface_sb3
import numpy as np
import pytest
from commands import ENVIRONMENT, output_of
from commands import ROOT as REPOSITORY
from matplotlib import image
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.cli import app, main
from sb3_ddpg_scratch.cli.zoo import HELP
from sb3_ddpg_scratch.diagnostics.recording_reader import read_recording
from sb3_ddpg_scratch.errors import MissingPackageError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.zoo.scripts import SCRIPTS, run_script

TINY = ["-params", "policy_kwargs:dict(net_arch=[8])", "learning_starts:20", "batch_size:8", "qf_learning_rate:'lin_1e-3'"]


def installed_command(folder, wheel, *arguments):
    """Run ``python -m sb3_ddpg_scratch`` of a wheel in a folder; what it printed."""
    called = [sys.executable, "-m", "sb3_ddpg_scratch", *arguments]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(wheel)}
    done = subprocess.run(called, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which an agent was trained for 400 steps, and then continued for another 200."""
    folder = tmp_path_factory.mktemp("user")
    evaluated = ["--eval-freq", "100", "--eval-episodes", "2", "--seed", "1", "--num-threads", "1"]
    output = output_of(folder, "train", "-n", "400", *evaluated, "--save-replay-buffer", "--diagnostics", *TINY)
    assert "What happened is in logs/scratch_ddpg/Pendulum-v1_1/report.html" in output
    agent = "logs/scratch_ddpg/Pendulum-v1_1/Pendulum-v1.zip"
    output = output_of(folder, "train", "-n", "400", *evaluated, "-i", agent, *TINY)
    assert "Loading pretrained agent" in output
    assert "Loading replay buffer" in output
    return folder


def run_folder(folder, number):
    return folder / "logs" / "scratch_ddpg" / f"Pendulum-v1_{number}"


def test_train(folder):
    model = ScratchDDPG.load(run_folder(folder, 1) / "Pendulum-v1.zip")
    assert model.num_timesteps == 400
    assert model._n_updates == 380
    assert model.policy.net_arch == [8]
    assert model.gamma == 0.98  # of our YAML, where Pendulum-v1's entry says so
    assert model.qf_learning_rate(0.5) == 5e-4
    evaluations = np.load(run_folder(folder, 1) / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200, 300, 400]
    assert np.all(evaluations["results"] < 0)


def test_diagnostics_are_recorded_and_drawn_beside_the_agent(folder):
    recording = read_recording(run_folder(folder, 1))
    assert recording.tables["episode"]["step"].tolist() == [200, 400]
    assert "Episode return" in (run_folder(folder, 1) / "report.html").read_text()
    assert not (run_folder(folder, 2) / "report.html").exists()


def test_diagnostics_are_not_for_tuning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="--diagnostics"):
        run_script("train", ["--diagnostics", "-optimize", "--n-trials", "1"])


def test_continued_agent_went_on_from_the_first(folder):
    first = ScratchDDPG.load(run_folder(folder, 1) / "Pendulum-v1.zip")
    second = ScratchDDPG.load(run_folder(folder, 2) / "Pendulum-v1.zip")
    # Counted anew by the Zoo; updates and noise go on. Twenty steps are collected first again.
    assert second._n_updates == first._n_updates + 380
    assert second.action_noise.num_steps == 800


def test_enjoy_is_the_trained_agent(folder):
    output = output_of(folder, "enjoy", "--no-render", "-n", "400", "--exp-id", "1")
    returns = [float(value) for value in re.findall(r"Episode Reward: (\S+)", output)]
    assert len(returns) == 2
    assert f"Mean reward: {np.mean(returns):.2f}" in output


def test_plots(folder, monkeypatch, capsys):
    output = output_of(folder, "all-plots", "-e", "Pendulum-v1", "-f", "logs", "-o", "gathered", "--picture", "all.png")
    assert re.search(r"\|Pendulum-v1 \|-\d+ \+/- \d+ *\|", output)
    output_of(folder, "plot-train", "-e", "Pendulum-v1", "-f", "logs", "-w", "1", "--picture", "train.png")
    monkeypatch.chdir(folder)
    run_script("plot-from-file", ["-i", "gathered.pkl", "--no-million", "--picture", "deep/file.png"])
    assert "keys: ['SCRATCH_DDPG-logs']" in capsys.readouterr().out
    for name in ("all.png", "deep/file-1.png", "train.png"):
        picture = image.imread(folder / name)[..., :3]
        # Curves of the first colors of Seaborn's palette (#4C72B0), on its gray.
        assert np.any(np.all(np.abs(picture - np.array([0x4C, 0x72, 0xB0]) / 255) < 0.01, axis=-1)), name
    assert not list(folder.rglob("*.tmp*"))


def test_plots_of_a_single_run(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(run_folder(folder, 1), tmp_path / "logs" / "scratch_ddpg" / "Pendulum-v1_1")
    monkeypatch.chdir(tmp_path)
    run_script("all-plots", ["-e", "Pendulum-v1", "-f", "logs", "-o", "gathered", "--no-display"])
    run_script("plot-from-file", ["-i", "gathered.pkl", "--skip-timesteps", "--boxplot", "--picture", "box.pdf"])
    assert "Skipping" not in capsys.readouterr().out
    assert [path.read_bytes()[:4] for path in tmp_path.glob("box-*.pdf")] == [b"%PDF", b"%PDF"]


def test_optimize_and_train_with_a_trial(tmp_path, monkeypatch, capsys):
    study = ["--storage", "study/journal.log", "--study-name", "pendulum"]
    few = [
        "-n",
        "60",
        "--n-trials",
        "2",
        "--n-evaluations",
        "1",
        "--eval-episodes",
        "1",
        "--no-optim-plots",
        "--sampler",
        "random",
    ]
    output = output_of(tmp_path, "train", "-optimize", *study, *few, "-params", "learning_starts:50", "--seed", "1")
    assert output.count("finished with value") == 2
    assert "qf_learning_rate" in output
    (report,) = (tmp_path / "logs" / "scratch_ddpg").glob("report_*.csv")
    assert "params_noise_kind" in report.read_text()

    # The search itself took the folder of the first run.
    best = ["--trial-id", "1", "-n", "60", "--eval-freq", "-1", "-params", "learning_starts:50"]
    monkeypatch.chdir(tmp_path)
    run_script("train", [*study, *best])
    output = capsys.readouterr().out
    assert "Loading from Optuna study" in output
    model = ScratchDDPG.load(run_folder(tmp_path, 2) / "Pendulum-v1.zip")
    assert f"('learning_rate', {model.learning_rate(1.0)})" in output
    assert model.gradient_steps == -1


def test_benchmark_plays_an_agent(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["--log-dir", "logs", "--no-hub", "-n", "400", "--test-mode", "--benchmark-dir", "benchmark"]
    run_script("benchmark", arguments)
    assert re.search(r"scratch_ddpg *\|Pendulum-v1 *\| *-\d+", (folder / "benchmark" / "benchmark.md").read_text())


def test_record_video(folder, monkeypatch):
    pytest.importorskip("moviepy", reason="of RL Zoo's extras")
    monkeypatch.chdir(folder)
    run_script("record-video", ["-n", "20", "--exp-id", "1", "-o", "video"])
    (video,) = (folder / "video").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_hub_and_back(folder, monkeypatch):
    """Everything but the network: what is uploaded is what is downloaded."""
    monkeypatch.chdir(folder)
    hub = {}
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda *_, **__: "https://hub.test/someone")
    monkeypatch.setattr(api, "snapshot_download", lambda *_, **options: os.makedirs(options["local_dir"]))
    monkeypatch.setattr(api, "upload_folder", lambda *_, **options: hub.update(options))
    run_script("push-to-hub", ["-f", "logs", "--env", "Pendulum-v1", "-orga", "someone", "--exp-id", "1", "--no-render"])
    assert hub["repo_id"] == "someone/scratch_ddpg-Pendulum-v1"
    card = (Path(hub["folder_path"]) / "README.md").read_text()
    assert "**ScratchDDPG** Agent playing **Pendulum-v1**" in card
    assert "model-index" in card

    def download(_, filename):
        if filename == "vec_normalize.pkl":
            import requests

            raise requests.exceptions.HTTPError
        return str(Path(hub["folder_path"]) / filename)

    monkeypatch.setattr(huggingface_sb3, "load_from_hub", download)
    run_script("load-from-hub", ["--env", "Pendulum-v1", "-f", "downloaded", "-orga", "someone"])
    there = ScratchDDPG.load(folder / "downloaded" / "scratch_ddpg" / "Pendulum-v1_1" / "Pendulum-v1.zip")
    assert there._n_updates == 380


def test_an_agent_of_the_gym_era_is_played(tmp_path, monkeypatch, capsys):
    """In the layout of RL Zoo's public collection: as SB3 plays it, given what it cannot read."""
    monkeypatch.chdir(tmp_path)
    model = DDPG("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=2, device="cpu", buffer_size=10)
    mean, variance = np.array([0.1, 0.2, 0.5]), np.array([0.5, 2.0, 9.0])
    gym_era.write_agent(tmp_path / "rl-trained-agents", model, mean, variance)
    run_script("enjoy", ["--algo", "ddpg", "--env", "Pendulum-v1", "--no-render", "-n", "400", "--device", "cpu"])
    played = [float(value) for value in re.findall(r"Episode Reward: (\S+)", capsys.readouterr().out)]
    env = make_vec_env("Pendulum-v1", 1, seed=0)
    observations, rewards = env.reset(), []
    for _ in range(400):
        normalized = np.clip((observations - mean) / np.sqrt(variance + 1e-8), -10, 10).astype(np.float32)
        observations, reward, _, _ = env.step(model.predict(normalized, deterministic=True)[0])
        rewards.append(reward[0])
    assert played == pytest.approx([sum(rewards[:200]), sum(rewards[200:])], abs=0.01)


def test_agents_are_played_back_with_little_memory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sizes = []
    setup = ScratchDDPG._setup_model
    monkeypatch.setattr(ScratchDDPG, "_setup_model", lambda self: (sizes.append(self.buffer_size), setup(self))[1])
    run_script("enjoy", ["--no-render", "-n", "1"])
    assert sizes == [1]


def test_help_is_the_zoos_and_ours(capsys):
    for name in SCRIPTS:
        with pytest.raises(SystemExit) as caught:
            run_script(name, ["--help"])
        assert caught.value.code == 0
        output = capsys.readouterr().out
        assert "added by sb3-ddpg-scratch" in output
        assert ("--preset NAME" in output) == (name == "train")
        assert ("--picture FILE" in output) == ("plot" in name)
        if name == "train":
            assert "--optimize-hyperparameters" in output
            assert "scratch_ddpg,"[:-1] in output.split("--algo", 2)[1]
    assert set(HELP) == set(SCRIPTS)


def test_help_is_passed_on():
    result = CliRunner().invoke(app, ["train", "--help"])
    assert result.exit_code == 0
    assert "--optimize-hyperparameters" in result.output


def test_other_algorithms_keep_their_own_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["-n", "20", "--eval-freq", "-1", "--env", "Pendulum-v1", "-params", "learning_starts:10", "buffer_size:100"]
    run_script("train", ["--algo", "td3", *options])
    output = capsys.readouterr().out
    assert re.search(r"Loading hyperparameters from: .*rl_zoo3/hyperparams/td3.yml", output)
    assert (tmp_path / "logs" / "td3" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()


def test_other_algorithms_have_diagnostics_and_locks_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["-n", "20", "--eval-freq", "-1", "--env", "Pendulum-v1", "-params", "learning_starts:10", "buffer_size:100"]
    run_script("train", ["--algo", "ddpg", "--diagnostics", *options])
    run = tmp_path / "logs" / "ddpg" / "Pendulum-v1_1"
    assert read_recording(run).header
    assert (run / "report.html").is_file()
    assert (run / ".lock").exists()
    # Released with the command: the next one in this process may have the folder.
    with hold_folder(run, "run"):
        pass


def test_runs_are_tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun, late = [], []
    run = SimpleNamespace(config=SimpleNamespace(setdefaults=late.append))
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **given: begun.append(given | {"config": dict(given["config"])}) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_script("train", ["--track", "-tags", "a", "b", "-n", "30", "--eval-freq", "-1", "--seed", "3", *TINY])
    ((given,), (settings,)) = begun, late
    assert given["name"].startswith("Pendulum-v1__scratch_ddpg__3__")
    assert (given["tags"][:2], given["project"], given["config"]["n_timesteps"]) == (["a", "b"], "sb3", 30)
    assert settings["saved_hyperparams"]["batch_size"] == 8
    assert list((tmp_path / "runs" / given["name"]).rglob("events.*"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"--track needs wandb, which is not installed: pip install wandb$"):
        run_script("train", ["--track"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--preset", "tchrs"], "--preset must be .*got 'tchrs'.*Did you mean 'tch_rs'"),
        ("train", ["--preset", "tch_rs", "--algo", "td3"], "--preset cannot be combined with --algo td3"),
        ("train", ["--preset", "tch_rs", "-conf", "a.yml"], "--preset cannot be combined with --conf-file"),
        (
            "train",
            ["--preset", "tch_rs", "--env", "Hopper-v5"],
            "--env must be .*tch_rs.yml has settings for: Pendulum-v1, got 'Hopper-v5'",
        ),
        ("train", ["--env", "Pendulm-v1"], "--env must be .*, got 'Pendulm-v1'. Did you mean .*'Pendulum-v1'"),
        ("train", ["-i", "missing.zip"], "--trained-agent must be .*, got 'missing.zip'"),
        ("train", ["-conf", "missing.yml"], "No such file"),
        ("enjoy", ["--env", "Pendulm-v1"], "'Pendulum-v1'"),
        ("enjoy", [], "a folder with trained agents in logs/scratch_ddpg"),
        ("record-video", [], "a folder with trained agents in logs/scratch_ddpg"),
        (
            "plot-train",
            ["-e", "Pendulum-v1", "-f", "logs"],
            "--exp-folder must be a folder with runs in logs/scratch_ddpg, got 'logs'",
        ),
        ("plot-from-file", ["-i", "gathered.pkl"], "--input must be a file.*, got 'gathered.pkl'"),
    ],
)
def test_bad_input_makes_nothing(tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        run_script(name, arguments)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_plot_makes_no_picture(folder, monkeypatch):
    """No run is as long as the window, and none is of that environment."""
    monkeypatch.chdir(folder)
    for arguments in (["-e", "Pendulum-v1", "-w", "50"], ["-e", "Ant-v5", "-w", "1"]):
        with pytest.raises(ArgumentError, match=r"--exp-folder must be .*something to draw, got 'logs'. .*--episode-window"):
            run_script("plot-train", [*arguments, "-f", "logs", "--picture", "none.png"])
    with pytest.raises(ArgumentError, match=r"--exp-folders must be .*something to draw, got \['logs'\]"):
        run_script("all-plots", ["-e", "Ant-v5", "-f", "logs", "--picture", "none.png"])
    assert not Path("none.png").exists()


def test_settings_are_read_before_anything_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yml").write_text("default: {n_timesteps: 100, policy: MlpPolicy, critic_lr: 1e-3}")
    with pytest.raises(ArgumentError, match=r"own.yml: default: key must be .*, got 'critic_lr'"):
        run_script("train", ["-conf", "own.yml"])
    with pytest.raises(ArgumentError, match=r"-params over .*key must be .*, got 'critic_lr'"):
        run_script("train", ["-params", "critic_lr:1e-3"])
    assert capsys.readouterr().out == ""


def test_bad_picture_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ArgumentError, match=r"--picture must be .*\.png.*, got 'a.docx'"):
        run_script("plot-train", ["-e", "Pendulum-v1", "-f", "logs", "-w", "1", "--picture", "a.docx"])


def test_error_of_a_command_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3-ddpg-scratch", "train", "--preset", "tchrs"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("Error: --preset must be ")


def test_zoo_is_imported_only_where_it_is_needed():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sb3_ddpg_scratch.cli import app\n"
        "result = CliRunner().invoke(app, ['parity', '--steps', '120', '--net-arch', '8'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert not [name for name in sys.modules if name.startswith(('rl_zoo3', 'optuna', 'sb3_contrib'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder that holds the package as its wheel installs it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy, since building leaves files behind.
    names = ["sb3_ddpg_scratch", "hyperparams"]
    for name in names:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(built)], check=True)
    return folder / "site"


def test_installed_wheel(wheel, tmp_path):
    assert not (wheel / "hyperparams").exists()
    # Without a compiler: in another folder the kernels would be compiled once more.
    without = ["--eval-freq", "-1", "-params", "updater:'autograd'"]
    output = installed_command(tmp_path, wheel, "train", "--preset", "simple_rl", "-n", "400", *without)
    assert f"Loading hyperparameters from: {wheel}/sb3_ddpg_scratch/hyperparams/simple_rl.yml" in output
    model = ScratchDDPG.load(run_folder(tmp_path, 1) / "Pendulum-v1.zip")
    assert (model.gamma, model._n_updates) == (0.98, 400)
    assert "Mean reward" in installed_command(tmp_path, wheel, "enjoy", "--no-render", "-n", "200")
