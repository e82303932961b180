"""The scripts in ``benchmarks/``, run at small sizes or with made-up measurements."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import ROOT, output_of, perform_here
from PIL import Image

from benchmarks import agents, checkpoints, results, scores, sweep, time_to_score
from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.compare.experiment import read_experiment


def test_sweep_draws_a_picture(tmp_path, monkeypatch):
    seen = []

    def pretended(workload):
        seen.append(workload)
        return {"updates_per_s": 1e6 / workload.batch_size, "steps_per_s": 1e5 / workload.n_envs}

    monkeypatch.setattr(sweep, "measure", pretended)
    sweep.main(tmp_path / "sweep.png", quick=True)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert {w.net_arch[0] for w in seen} >= {32, 64, 128, 256, 512}
    assert {w.n_envs for w in seen} == {1, 2, 4, 8, 16}
    assert {w.filled for w in seen} >= {1_000, 100_000}


def test_scores_are_of_the_last_ten_evaluations(monkeypatch):
    saved = []
    load = scores.np.load
    monkeypatch.setattr(scores.np, "load", lambda path: saved.append(dict(load(path))) or saved[-1])
    value, seconds = scores.score("analytic", 0, 400)
    assert saved[0]["timesteps"].tolist() == list(range(20, 401, 20))
    assert value == pytest.approx(saved[0]["results"][10:].mean())
    assert seconds > 0


def test_the_cost_of_checkpoints(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 100)
    costs = checkpoints.measure_checkpoints("Pendulum-v1", 2000)
    # Rows of 3 + 1 + 1 + 1 + 3 numbers and a byte: 2000 of them at first; then 100, or 200 when two segments are joined,
    # and one more.
    first, following, resume = costs["first checkpoint"], costs["a following one"], costs["resume"]
    others = first[1] - 2000 * 37
    assert others > 0
    assert following[1] - others == pytest.approx(201 * 37, abs=2000)
    assert resume[1] == 2000 * 36
    assert all(seconds > 0 for seconds, _, _ in costs.values())


COMPARE = ["compare", "--arm", "scratch_ddpg=scratch_ddpg:normalize=true,learning_starts=50,policy_kwargs={net_arch: [8, 8]}"]
COMPARE += ["--env", "Pendulum-v1", "--seeds", "2", "--steps", "600", "--evaluations", "10", "--eval-episodes", "2"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what the scripts read in a checkout, beside a comparison: its agent shipped, its results exported."""
    root = tmp_path_factory.mktemp("checkout")
    output_of(root, *COMPARE, "--jobs", "1", "--out", "tiny")
    (root / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "published.yml", root / "benchmarks")
    agents.choose(root / "tiny", root / "agents", episodes=20)
    results.main([root / "tiny"], root)
    return root


def runs_of(root):
    return [json.loads(path.read_text()) for path in sorted(root.glob("tiny/runs/*/*/*.json"))]


def test_the_best_model_of_all_seeds_ships_small_and_with_its_statistics(checkout, tmp_path):
    shipped = checkout / "agents/scratch_ddpg/Pendulum-v1_1"
    text = (shipped / "README.md").read_text()
    seed, steps = re.search(r"seed (\d) after (\d+) of 600 steps", text).groups()
    assert "seeds 0, 1" in text
    run = checkout / f"tiny/agents/scratch_ddpg/Pendulum-v1/seed_{seed}/scratch_ddpg/Pendulum-v1_1"
    last = (
        steps == "600" and (shipped / "Pendulum-v1/vecnormalize.pkl").read_bytes() != (run / "vecnormalize.pkl").read_bytes()
    )
    model, statistics = (run / "Pendulum-v1.zip", run / "Pendulum-v1") if last else (run / "best_model.zip", run)
    found, expected = (ScratchDDPG.load(path, buffer_size=1) for path in (shipped / "Pendulum-v1.zip", model))
    for name, tensor in expected.policy.state_dict().items():
        assert found.policy.state_dict()[name].equal(tensor)
    assert (shipped / "Pendulum-v1.zip").stat().st_size < model.stat().st_size
    assert (shipped / "Pendulum-v1/vecnormalize.pkl").read_bytes() == (statistics / "vecnormalize.pkl").read_bytes()
    # None of the others is better where they were compared.
    means = []
    for result in runs_of(checkout):
        for is_last in (False, True):
            agent = agents.Candidate(result, is_last).ship(checkout / "tiny", tmp_path)
            means.append(agents.score(agent, "Pendulum-v1", 20, agents.CHOOSING_SEED)["mean"])
    assert f"{max(means):.2f} on 20 others" in text
    assert agents.score(shipped, "Pendulum-v1", 20, agents.CHOOSING_SEED)["mean"] == max(means)
    assert len(set(means)) > 1


def test_shipped_score_is_that_of_the_zoos_own_scripts(checkout):
    score = json.loads((checkout / "agents/scratch_ddpg/Pendulum-v1_1/score.json").read_text())
    assert score["episodes"] == 20
    assert "Mean reward" in output_of(checkout, "enjoy", "-f", "agents", "--env", "Pendulum-v1", "--no-render", "-n", 400)
    printed = output_of(checkout, "benchmark", "--log-dir", "agents", "-n", 4000)
    mean, deviation = map(float, re.search(r"Mean reward: (\S+) \+- (\S+)", printed).groups())
    assert abs(mean - score["mean"]) < 4 * (deviation**2 / 20 + score["standard_error"] ** 2) ** 0.5
    assert printed.count("Evaluating") == 1  # nothing from the hub


def test_a_gif_of_a_shipped_agent(checkout):
    agents.gif("Pendulum-v1", checkout / "pendulum.gif", checkout / "agents")
    with Image.open(checkout / "pendulum.gif") as picture:
        assert picture.n_frames > 50
    with pytest.raises(ArgumentError, match=r"env must be .*Pendulum-v1.*, got 'Ant-v5'"):
        agents.gif("Ant-v5", checkout / "ant.gif", checkout / "agents")


def test_results_page_has_the_runs_numbers(checkout):
    rows = [line.strip("| ").split(" | ") for line in (checkout / "docs/results_table.md").read_text().splitlines()]
    cells, *published = [row for row in rows if row[0] == "Pendulum-v1"]
    scores_of_runs = [np.mean(result["returns"][-10:]) for result in runs_of(checkout)]
    seconds = np.median([result["training_seconds"] for result in runs_of(checkout)])
    score = json.loads((checkout / "agents/scratch_ddpg/Pendulum-v1_1/score.json").read_text())
    assert cells[:3] == ["Pendulum-v1", "600", "2"]
    assert cells[3] == f"{np.mean(scores_of_runs):,.0f}".replace("-", "−")
    assert cells[5].startswith(f"{score['mean']:,.0f} ±".replace("-", "−"))
    assert cells[6:] == [f"{seconds:.0f}\u00a0s"]
    assert [row[1:3] for row in published] == [["DDPG", "−152 ± 94"], ["TD3", "−152 ± 90"]]
    assert (checkout / "docs/images/results.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((checkout / "benchmarks/results/Pendulum-v1.json").read_text())
    assert len(stored["evaluations"]["mean_return"]) == 20
    assert [run["seed"] for run in stored["runs"]] == [0, 1]


def test_results_page_agrees_with_the_recorded_results():
    assert (ROOT / "docs/results_table.md").read_text() == results.text(ROOT)


def test_published_scores_are_of_the_experiments_environments_and_name_their_source():
    published = yaml.safe_load((ROOT / "benchmarks/published.yml").read_text())
    assert set(published["scores"]) == set(read_experiment("results")["envs"])
    entries = [entry for found in published["scores"].values() for entry in found]
    assert all(set(entry) == {"algorithm", "score", "statistic", "version", "source"} for entry in entries)
    assert {entry["source"] for entry in entries} == set(published["sources"])


def test_minutes_until_a_score():
    result = {"seconds": [60, 120, 180], "returns": [-300.0, float("nan"), -190.0]}
    assert time_to_score.minutes_until(result, -200) == 3
    assert time_to_score.minutes_until(result, -300) == 1
    assert time_to_score.minutes_until(result, -100) is None


def test_time_to_score_trains_all_contenders_alike_and_draws_them(tmp_path, monkeypatch):
    tiny = {"policy": "MlpPolicy", "noise_type": "normal", "noise_std": 0.1, "learning_starts": 50, "batch_size": 16}
    monkeypatch.setattr(time_to_score, "TASKS", {"Pendulum-v1": time_to_score.Task(-3000, 200, tiny)})
    monkeypatch.setattr(time_to_score, "CONTENDERS", {"ScratchDDPG": "scratch_ddpg", "SB3's DDPG": "ddpg"})
    monkeypatch.setattr(time_to_score, "EVALUATIONS", 2)
    monkeypatch.setattr(time_to_score, "EPISODES", 1)
    monkeypatch.setattr(time_to_score.RunProcesses, "run", perform_here)
    time_to_score.main(tmp_path / "runs", 1, 1, tmp_path, tmp_path / "time.png")
    summary = json.loads((tmp_path / "time_to_score.json").read_text())
    runs = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("runs/*/*/*.json")]
    assert {result["spec"]["algo"]: result["spec"]["settings"] for result in runs} == dict.fromkeys(
        ("scratch_ddpg", "ddpg"), tiny | {"n_timesteps": 200}
    )
    expected = {result["spec"]["algo"]: [result["seconds"][0] / 60] for result in runs}
    assert summary["minutes"]["Pendulum-v1"] == {"ScratchDDPG": expected["scratch_ddpg"], "SB3's DDPG": expected["ddpg"]}
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["scores", "sweep", "checkpoints", "results", "agents", "time_to_score"])
def test_scripts_run_as_the_readme_says(script):
    path = Path(__file__).parents[1] / "benchmarks" / f"{script}.py"
    finished = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Usage" in finished.stdout
