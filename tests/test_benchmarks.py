"""The scripts in ``benchmarks/``, run at small sizes or with made-up measurements."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import checkpoints, scores, sweep


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


@pytest.mark.parametrize("script", ["scores", "sweep", "checkpoints"])
def test_scripts_run_as_the_readme_says(script):
    path = Path(__file__).parents[1] / "benchmarks" / f"{script}.py"
    finished = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Usage" in finished.stdout
