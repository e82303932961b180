"""The demonstration, made easy enough to be solved at its first evaluation."""

import io
import re

import pytest
from rich.console import Console

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.cli import demo


def test_demo_stops_when_solved_and_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SOLVED_RETURN", -5000.0)
    output = io.StringIO()
    score = demo.run_demo(tmp_path / "out", 0, Console(file=output, width=200))
    text = output.getvalue()
    assert -5000 < score < 0
    assert f"noise-free episodes after 1000 steps: {score:.1f}" in text
    random_score = float(re.search(r"random policy: (-?[\d.]+)", text).group(1))
    assert -1700 < random_score < -900
    assert ScratchDDPG.load(tmp_path / "out" / "scratch_ddpg_pendulum.zip").num_timesteps == 1000


def test_demo_reports_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SOLVED_RETURN", 1.0)
    monkeypatch.setattr(demo, "CHUNK_STEPS", 150)
    monkeypatch.setattr(demo, "MAX_STEPS", 300)
    with pytest.raises(RuntimeError, match="not solved in 300 steps"):
        demo.run_demo(tmp_path, 0, Console(file=io.StringIO()))


def test_random_score_is_pendulums():
    """Uniform torque: about -1,220 an episode, with a standard deviation near 300."""
    assert demo.random_score("Pendulum-v1", 50, seed=0) == pytest.approx(-1220, abs=4 * 300 / 50**0.5)
