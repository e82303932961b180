"""Environments of one's own in every command, from a module in the current folder."""

import json
import sys

import gymnasium as gym
import pytest
from commands import command, output_of
from own_env import ENV_ID, write_module
from rich.console import Console

from sb3_ddpg_scratch import ArgumentError, gym_packages
from sb3_ddpg_scratch.gym_packages import registered_env
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result

SETTINGS = {"policy": "MlpPolicy", "n_timesteps": 60, "learning_starts": 20, "batch_size": 8, "buffer_size": 1000}
SETTINGS |= {"policy_kwargs": {"net_arch": [4]}}


@pytest.mark.parametrize("given", [["--env", f"trolley:{ENV_ID}"], ["--env", ENV_ID, "--gym-packages", "trolley"]])
def test_parity(tmp_path, given):
    write_module(tmp_path)
    said = output_of(tmp_path, "parity", *given, "--steps", "40", "--net-arch", "4", "--json", "parity.json")
    assert "Equal bit for bit." in said
    assert json.loads((tmp_path / "parity.json").read_text())["env"] == ENV_ID


def test_bench_measures_it_in_other_processes(tmp_path, monkeypatch):
    from sb3_ddpg_scratch.bench import schedule, workload

    write_module(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    planned = schedule.plan(registered_env(f"trolley:{ENV_ID}"), True, [1])
    (first,) = (one for one in planned[0] if one.contender == "compiled")
    small = {"seconds": 0.01, "filled": 100, "buffer_size": 1000}
    assert workload.measure(type(first)(**vars(first) | small))["updates_per_s"] > 0


def test_robotics_are_registered_by_their_names(monkeypatch):
    """Gymnasium-Robotics registers nothing until it is imported."""
    monkeypatch.setattr(gym_packages, "find_spec", lambda name: None)
    monkeypatch.delitem(gym.registry, "FetchReach-v4", raising=False)
    with pytest.raises(ArgumentError, match=r"FetchReach-v4.*pip install 'sb3-ddpg-scratch\[robotics\]'"):
        registered_env("FetchReach-v4")
    imported = []

    def import_modules(names, option=""):
        imported.extend(names)
        if "gymnasium_robotics" in names:
            monkeypatch.setitem(gym.registry, "FetchReach-v4", None)

    monkeypatch.setattr(gym_packages, "find_spec", lambda name: name)
    monkeypatch.setattr(gym_packages, "import_modules", import_modules)
    assert registered_env("FetchReach-v4", ["mine"]) == ("FetchReach-v4", ("mine", "gymnasium_robotics"))
    assert imported == ["mine", "gymnasium_robotics"]


def test_presets(tmp_path):
    write_module(tmp_path)
    options = ["--preset", "tch_rs", "--seeds", "1", "--steps", "2100", "--evaluations", "1", "--eval-episodes", "1"]
    done = command(tmp_path, "presets", "--env", f"trolley:{ENV_ID}", *options, "--out", "out")
    assert done.returncode == 2
    assert f"'{ENV_ID}'" in done.stderr
    assert "tch_rs.yml has settings for" in done.stderr  # the environment was found, and has no settings there


def test_compare_from_a_file(tmp_path):
    write_module(tmp_path)
    arms = "{a: {algo: scratch_ddpg, yaml: own.yml}, b: {algo: ddpg, yaml: own.yml}}"
    (tmp_path / "own.yml").write_text(json.dumps({ENV_ID: SETTINGS}))
    (tmp_path / "experiment.yml").write_text(
        f"arms: {arms}\nenvs: {ENV_ID}\nseeds: 2\nsteps: 60\nevaluations: 2\neval_episodes: 1\ngym_packages: [trolley]\n"
    )
    output_of(tmp_path, "compare", "experiment.yml", "--out", "out", run_processes=True)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["missing"] == []
    assert {(run["arm"], run["env"]) for run in results["runs"]} == {("a", ENV_ID), ("b", ENV_ID)}


def test_on_ray_the_module_is_sent_along(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from sb3_ddpg_scratch.runs.ray_executor import RayRuns

    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_module(tmp_path, "sent_trolley")
    monkeypatch.syspath_prepend(tmp_path)
    found = registered_env(f"sent_trolley:{ENV_ID}")
    spec = RunSpec("a", "ddpg", ENV_ID, 0, 60, 1, 1, "cpu", SETTINGS)
    out = tmp_path / "out"
    with RayRuns(out, 1, None, found.packages) as runs:
        assert perform_runs([spec], out, runs, 1, Console(quiet=True)) == []
    assert finished_result(spec, out)["updates"] == 40


@pytest.mark.parametrize("name", ["parity", "bench", "compare", "presets", "train", "enjoy"])
def test_a_module_that_is_missing_is_no_traceback(tmp_path, name):
    done = command(
        tmp_path, name, "--env", f"nowhere:{ENV_ID}", *{"compare": ["--seeds", "2"]}.get(name, []), *OUT.get(name, [])
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--env must be a module that can be imported" in done.stderr
    assert f"No module named 'nowhere'), got 'nowhere'. It is looked for in {tmp_path}" in done.stderr


OUT = {"compare": ["--out", "out"], "presets": ["--out", "out"]}


@pytest.mark.parametrize(
    ("source", "line", "problem"), [("x = 1\ny = 1 / 0", 2, "ZeroDivisionError"), ("x = (", 1, "SyntaxError")]
)
def test_a_module_with_an_error_in_it(tmp_path, source, line, problem):
    (tmp_path / "broken.py").write_text(source)
    done = command(tmp_path, "export", "agent.zip", "--out", "policy.pt2", "--gym-packages", "broken")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert problem in done.stderr
    assert f"The error is in {tmp_path / 'broken.py'}, line {line}." in done.stderr


def test_id_that_the_module_does_not_register(tmp_path, monkeypatch):
    write_module(tmp_path, "other_trolley")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r"a registered environment, .*Did you mean 'Trolley-v0'"):
        registered_env("other_trolley:Troley-v0")
    assert "other_trolley" in sys.modules
