"""The runs of a comparison: made, interrupted, continued, gathered, stored, and compared with what was stored."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from commands import Command, output_of, perform_here
from gymnasium import spaces
from rich.console import Console
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG, cli
from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare import conclusions
from sb3_ddpg_scratch.compare.comparison import gather, run_comparison
from sb3_ddpg_scratch.compare.experiment import experiment_from
from sb3_ddpg_scratch.compare.plan import plan_comparison
from sb3_ddpg_scratch.compare.random_policy import random_score
from sb3_ddpg_scratch.compare.results_file import read_results
from sb3_ddpg_scratch.rollout import loop
from sb3_ddpg_scratch.runs import processes
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result, perform, unfinished_run
from sb3_ddpg_scratch.terminal import ProgressLines
from tests import goal_envs  # noqa: F401  # registers Reach-v0

TINY = "learning_starts=50,batch_size=16,policy_kwargs={net_arch: [8, 8]}"
ARMS = [f"ours=scratch_ddpg:yaml=ddpg,updater=autograd,{TINY}", f"sb3=ddpg:{TINY}"]
SETTINGS = {"arms": ARMS, "envs": ["Pendulum-v1"], "seeds": 2, "steps": 300, "evaluations": 10, "eval_episodes": 2}
OPTIONS = ["compare", "--arm", ARMS[0], "--arm", ARMS[1], "--env", "Pendulum-v1", "--seeds", "2"]
OPTIONS += ["--steps", "300", "--evaluations", "10", "--eval-episodes", "2"]


@pytest.fixture
def summarized(monkeypatch):
    """The results that statistics and report were made of, in a list."""
    given = []
    summarize = conclusions.summarize
    monkeypatch.setattr(conclusions, "summarize", lambda results, margin: given.append(results) or summarize(results, margin))
    return given


def plan(out, **settings):
    return plan_comparison(experiment_from(SETTINGS | {"out": out} | settings))


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def processes_of(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(folder) in command and "sb3_ddpg_scratch.runs.processes" in command:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """(folder, output, exit status) of the command, interrupted by Ctrl-C's signal when its first run was finished."""
    out = tmp_path_factory.mktemp("comparison") / "deep"
    process = Command(out.parent, *OPTIONS, "--jobs", "1", "--out", out, run_processes=True)
    process.wait_for(lambda: list(out.glob("runs/*/*/*.json")) and processes_of(out))
    process.send(signal.SIGINT)
    done = process.end()
    return out, done.stdout + done.stderr, done.returncode


def test_interrupted_comparison_leaves_a_usable_folder(interrupted):
    out, output, status = interrupted
    assert status == 130
    assert "the same command continues from there" in output
    assert json.loads((out / "summary.json").read_text())["comparisons"][0]["verdict"] == "undecided"
    assert "Traceback" not in output
    assert processes_of(out) == []
    stored = read_results(out)
    assert [(run.arm, run.seed) for run in stored.runs] == [("ours", 0)]
    assert [missing[:3] for missing in stored.missing] == [
        ("sb3", "Pendulum-v1", 0),
        ("ours", "Pendulum-v1", 1),
        ("sb3", "Pendulum-v1", 1),
    ]
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def finished(interrupted):
    """(plan, when the first run was finished) of the same comparison, continued until all is done."""
    out = interrupted[0]
    first = out / "runs" / "ours" / "Pendulum-v1" / "seed_0.json"
    written = first.stat().st_mtime_ns
    made = plan(out, jobs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.RunProcesses, "run", perform_here)
        patch.setattr("sb3_ddpg_scratch.compare.comparison._conclude", lambda *_: {})
        assert run_comparison(made, Console(quiet=True), "the command").failed == []
    assert first.stat().st_mtime_ns == written
    return made


def test_same_command_goes_on_and_ends_with_everything(finished, summarized, monkeypatch):
    out = finished.experiment.out
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: pytest.fail("a finished run was begun again"))
    result = CliRunner().invoke(cli.app, [*OPTIONS, "--out", str(out), "--margin", "0.2", "--one-file"])
    assert result.exit_code == 0, result.output
    pages = sorted(out.glob("*.html"))
    assert "report.html" in [page.name for page in pages]
    assert all(page.stat().st_size > 3_000_000 for page in pages), "Plotly is in every page"
    assert "All 4 runs are finished already." in result.output
    assert "undecided" in result.output
    comparison = json.loads((out / "summary.json").read_text())["comparisons"][0]
    assert (comparison["env"], comparison["a"], comparison["b"]) == ("Pendulum-v1", "ours", "sb3")
    assert comparison["verdict"] == "undecided"
    results = summarized[0]
    baseline_mean = np.mean(json.loads((out / "summary.json").read_text())["arms"]["sb3"]["scores"]["Pendulum-v1"])
    assert comparison["margin"] == pytest.approx(0.2 * abs(baseline_mean - results.random_scores["Pendulum-v1"]))
    assert (results.baseline, results.missing) == ("sb3", [])
    table = pd.read_csv(out / "evaluations.csv")
    pd.testing.assert_frame_equal(table, results.evaluations, check_dtype=False)
    assert table["step"].tolist() == list(range(30, 301, 30)) * 4
    for run in results.runs:
        rows = table[(table["arm"] == run.arm) & (table["seed"] == run.seed)]
        folder = next((out / "agents" / run.arm / "Pendulum-v1" / f"seed_{run.seed}").glob("*/Pendulum-v1_1"))
        returns = np.load(folder / "evaluations.npz")["results"]
        assert returns.shape == (10, 2)
        assert rows["mean_return"].to_numpy() == pytest.approx(returns.mean(axis=1))
        assert rows["std_return"].to_numpy() == pytest.approx(returns.std(axis=1))
        assert rows["seconds"].is_monotonic_increasing
        assert 0 < rows["seconds"].iloc[-1] <= run.training_seconds
        assert run.updates == 250
        assert run.machine["threads"] == 1
        assert run.hyperparameters["batch_size"] == 16
        assert run.hyperparameters["tau"] == 0.005  # what nobody set
        assert run.versions["gymnasium"] == gym.__version__
    # The same seed begins with the same networks, environment and noise; the first updates come after step 50.
    first = table[(table["seed"] == 0) & (table["step"] == 30)]["mean_return"]
    assert first.nunique() == 1
    assert table[(table["seed"] == 1) & (table["step"] == 30)]["mean_return"].iloc[0] != first.iloc[0]


@pytest.mark.parametrize(("verdict", "status"), [("worse", 1), ("undecided", 0), ("better", 0)])
def test_fail_on_worse_sets_the_exit_status(finished, monkeypatch, verdict, status):
    monkeypatch.setattr(conclusions, "worst_verdict", lambda _: verdict)
    arguments = [*OPTIONS, "--out", str(finished.experiment.out), "--fail-on", "worse"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == status


def test_stored_result_is_a_baseline(finished, tmp_path, monkeypatch):
    out = finished.experiment.out
    gather(finished, {"Pendulum-v1": -1200.0}, [], "command").write(out / "results.json")
    alone = {"arms": ARMS[:1], "baseline": str(out), "steps": None, "evaluations": None, "eval_episodes": None}
    made = plan(tmp_path, **alone)
    assert made.baseline == "sb3"
    assert [(spec.arm, spec.steps, spec.evaluations, spec.eval_episodes) for spec in made.specs] == [("ours", 300, 10, 2)] * 2
    results = gather(made, {"Pendulum-v1": -1200.0}, [], "command")
    assert [(run.arm, run.seed) for run in results.runs] == [("sb3", 0), ("sb3", 1)]
    assert len(results.evaluations) == 20
    assert [missing[3] for missing in results.missing] == ["not made yet"] * 2
    clash = plan(tmp_path, **alone | {"arms": [f"sb3=td3:{TINY}"]})
    assert clash.baseline == "sb3.stored"
    for change, message in [
        (
            {"envs": ["MountainCarContinuous-v0"]},
            "--env must be .*that the baseline .* has: Pendulum-v1, got 'MountainCarContinuous-v0'",
        ),
        ({"steps": 400}, "--steps must be 300, as for the baseline.*, got 400"),
        ({"evaluations": 12}, "--evaluations must be 10, as for the baseline.*, got 12"),
        ({"baseline": str(tmp_path / "none.json")}, "one of the arms"),
        ({"baseline": str(tmp_path)}, "a file that can be read"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            plan(tmp_path, **alone | change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "runs": 3}'])
def test_spoilt_baseline(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ArgumentError, match="--baseline"):
        read_results(tmp_path)


def test_stored_results_come_back_as_they_were(finished, tmp_path):
    stored = gather(finished, {"Pendulum-v1": -1200.0}, [], "command")
    stored.write(tmp_path / "results.json")
    again = read_results(tmp_path)
    pd.testing.assert_frame_equal(again.evaluations, stored.evaluations)
    assert again.runs == stored.runs
    assert again.protocol == {"Pendulum-v1": {"steps": 300, "evaluations": 10, "eval_episodes": 2}}
    assert (again.random_scores, again.command) == ({"Pendulum-v1": -1200.0}, "command")


def test_run_ends_when_who_began_it_is_killed(tmp_path):
    settings = {"policy": "MlpPolicy", "n_timesteps": 10**6, "policy_kwargs": {"net_arch": [8, 8]}}
    spec = RunSpec("a", "ddpg", "Pendulum-v1", 0, 10**6, 10, 1, "cpu", settings)
    code = (
        "import sys, json; from pathlib import Path; from sb3_ddpg_scratch.runs.processes import RunProcesses;"
        "from sb3_ddpg_scratch.runs.training_run import RunSpec;"
        "RunProcesses(Path(sys.argv[1])).run(RunSpec(**json.loads(sys.argv[2])), print)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), json.dumps(asdict(spec))])
    wait_for(lambda: processes_of(tmp_path))
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(tmp_path))
    assert finished_result(spec, tmp_path) is None


ALONE = "a=scratch_ddpg:updater=analytic,normalize=true,learning_starts=50,batch_size=16,policy_kwargs={net_arch: [8, 8]}"
ALONE_SETTINGS = {"arms": [ALONE], "steps": 1500, "eval_episodes": 1}
ALONE_OPTIONS = ["compare", "--arm", ALONE, "--env", "Pendulum-v1", "--seeds", "2", "--steps", "1500", "--evaluations", "10"]
ALONE_OPTIONS += ["--eval-episodes", "1", "--jobs", "1", "--checkpoint-every", "250"]


def left_by(out, seed):
    """All that a run leaves, without its times, which no two runs share."""
    result = json.loads((out / "runs" / "a" / "Pendulum-v1" / f"seed_{seed}.json").read_text())
    timed = ("seconds", "training_seconds", "evaluation_seconds", "machine")
    folder = out / "agents" / "a" / "Pendulum-v1" / f"seed_{seed}" / "scratch_ddpg" / "Pendulum-v1_1"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    parameters = []
    for name in ("Pendulum-v1.zip", "best_model.zip"):
        parameters += [tensor.numpy().tobytes() for tensor in ScratchDDPG.load(files[name]).policy.state_dict().values()]
    statistics = [pickle.loads(files[name].read_bytes()) for name in ("vecnormalize.pkl", "Pendulum-v1/vecnormalize.pkl")]
    numbers = [(vec.obs_rms.mean.tobytes(), vec.ret_rms.var.tobytes(), vec.obs_rms.count) for vec in statistics]
    evaluations = np.load(files["evaluations.npz"])
    episodes = [line.split(",")[:2] for line in files["0.monitor.csv"].read_text().splitlines()[1:]]
    kept = {key: value for key, value in result.items() if key not in timed}
    return kept, sorted(files), parameters, numbers, {name: evaluations[name].tolist() for name in evaluations}, episodes


def test_killed_comparison_continues_inside_its_run_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for spec in plan(whole, **ALONE_SETTINGS).specs:
        perform(spec, whole, lambda steps: None, checkpoint_every=250)
    process = Command(tmp_path, *ALONE_OPTIONS, "--out", killed, run_processes=True)
    process.wait_for(lambda: list(killed.rglob("checkpoints/step_000000000500")))
    process.send(signal.SIGKILL)
    for run in processes_of(killed):
        os.kill(run, signal.SIGKILL)
    process.end()
    wait_for(lambda: not processes_of(killed))
    assert not list(killed.rglob("seed_0.json"))
    output = output_of(tmp_path, *ALONE_OPTIONS, "--out", killed, run_processes=True)
    assert "1 interrupted run continues from a checkpoint." in output
    assert "Continuing from" in (killed / "agents/a/Pendulum-v1/seed_0.log").read_text()
    for seed in range(2):
        assert left_by(killed, seed) == left_by(whole, seed)
    files = left_by(whole, 0)[1]
    assert not any("checkpoints" in name for name in files)
    # The best model has the statistics of its own time.
    numbers = left_by(whole, 0)[3]
    assert numbers[0][2] < numbers[1][2]
    assert "95% interval" in output
    summary = json.loads((killed / "summary.json").read_text())
    assert (summary["comparisons"], summary["baseline"]) == ([], "a")
    assert (killed / "report.html").stat().st_size > 20_000


def test_interrupted_by_ctrl_c_in_its_first_run_it_continues_there(tmp_path):
    out = tmp_path / "out"
    process = Command(tmp_path, *ALONE_OPTIONS, "--out", "out", run_processes=True)
    process.wait_for(lambda: list(out.rglob("checkpoints/step_000000000250")))
    process.send(signal.SIGINT)
    assert process.end().returncode == 130
    (made,) = plan(out, **ALONE_SETTINGS).specs[:1]
    run = unfinished_run(made, out)
    # The end of a run writes the state of that moment.
    assert max(int(path.name[5:]) for path in run.glob("checkpoints/step_*")) % 250 != 0
    # Other settings are another run.
    assert unfinished_run(replace(made, steps=4000), out) is None
    for file in run.glob("checkpoints/step_*/manifest.json"):
        file.write_text("spoilt")
    assert perform(made, out, lambda steps: None)["timesteps"] == list(range(150, 1501, 150))


def test_runs_without_checkpoints_begin_again_and_say_so(tmp_path):
    class Nothing:
        def run(self, spec, progress):
            return True

        def end(self):
            pass

    specs = plan(tmp_path).specs
    for spec in specs:
        spec.agent_folder(tmp_path).mkdir(parents=True)
    console = Console(record=True, width=200)
    perform_runs(specs, tmp_path, Nothing(), 1, console)
    text = console.export_text()
    assert text.count("Interrupted runs of sb3 begin again") == 1
    assert "continue" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_of_progress_where_no_bars_are_seen(tmp_path, monkeypatch, terminal):
    """Two runs of 1,500 steps tell of 300 at a time, 3 seconds each: every second time there is a line."""
    clock = iter(np.arange(0.0, 1000.0, 3.0))
    monkeypatch.setattr("sb3_ddpg_scratch.terminal.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(ProgressLines, "seconds_between", 6.0)

    class Steady:
        def run(self, spec, progress):
            for steps in range(300, spec.steps + 1, 300):
                progress(steps)
            return True

        def end(self):
            pass

    specs = plan(tmp_path, **ALONE_SETTINGS).specs
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    perform_runs(specs, tmp_path, Steady(), 1, console)
    lines = [line for line in console.file.getvalue().splitlines() if "about" in line]
    told = [] if terminal else ["600 of 3,000 steps (20%) after 0:00:06, about 0:00:24 left"]
    assert lines[:1] == told
    assert len(lines) == (0 if terminal else 6)


def test_failed_runs_are_told_and_the_others_go_on(tmp_path, monkeypatch, summarized):
    made = plan(tmp_path / "out", seeds=3)

    def run(self, spec, progress):
        if (spec.arm, spec.seed) == ("sb3", 1):
            write_whole(spec.log_file(self.out), "one\ntwo\n[ValueError] it broke\n")
            return False
        progress(spec.steps)
        fake = {"spec": asdict(spec), "timesteps": [300], "seconds": [1.0], "returns": [-5.0], "return_stds": [0.0]}
        fake |= {"hyperparameters": {}, "versions": {}, "machine": {}, "training_seconds": 1.0, "updates": 3}
        write_whole(spec.result_file(self.out), json.dumps(fake))
        return True

    monkeypatch.setattr(processes.RunProcesses, "run", run)
    console = Console(record=True, width=300)
    outcome = run_comparison(made, console, "command")
    text = console.export_text()
    assert [(spec.arm, spec.seed) for spec in outcome.failed] == [("sb3", 1)]
    assert "Failed: sb3, seed 1, on Pendulum-v1. See" in text
    assert "[ValueError] it broke" in text
    (results,) = summarized
    assert len(results.runs) == 5
    ((arm, env, seed, why),) = results.missing
    assert (arm, env, seed) == ("sb3", "Pendulum-v1", 1)
    assert "seed_1.log" in why


def test_threads_and_jobs_fit_the_cores(tmp_path, monkeypatch):
    seen = []

    def perform_runs(specs, out, executor, jobs, console):
        seen.append((jobs, executor.threads))
        return []

    monkeypatch.setattr("sb3_ddpg_scratch.compare.comparison.perform_runs", perform_runs)
    monkeypatch.setattr("sb3_ddpg_scratch.compare.comparison.usable_cores", lambda: 8)
    monkeypatch.setattr("sb3_ddpg_scratch.compare.comparison.try_out", lambda specs: None)
    for jobs, threads in ((100, 1), (100, 3), (2, 2), (1, 16)):
        run_comparison(plan(tmp_path, jobs=jobs, threads=threads), Console(quiet=True), "command")
    assert seen == [(8, 1), (2, 3), (2, 2), (1, 16)]
    limits = processes.thread_limits(3)
    assert limits["OMP_NUM_THREADS"] == limits["MKL_NUM_THREADS"] == "3"
    assert os.environ.get("XLA_FLAGS", "") in limits["XLA_FLAGS"]


def test_only_known_code_runs_in_a_run(tmp_path, monkeypatch):
    known = []
    only_known_code = loop.only_known_code
    monkeypatch.setattr(loop, "only_known_code", lambda *parts: known.append(only_known_code(*parts)) or known[-1])
    settings = {"policy": "MlpPolicy", "n_timesteps": 60, "learning_starts": 30, "policy_kwargs": {"net_arch": [4]}}
    spec = RunSpec("a", "scratch_ddpg", "Pendulum-v1", 0, 60, 2, 1, "cpu", settings)
    ticks = []
    perform(spec, tmp_path, ticks.append, checkpoint_every=20)
    assert ticks == list(range(1, 61))
    assert known == [True]


class Paid(gym.Env):
    """Pays what the action is, ten times."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(1, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock += 1
        return np.zeros(1, np.float32), float(action[0]), self.clock == 10, False, {}


def test_random_policy_is_uniform():
    gym.register("Paid-v0", Paid)
    score = random_score("Paid-v0", episodes=400)
    # Ten actions of mean 3 and variance 16/12 in each of 400 episodes: four standard errors.
    assert abs(score - 30) < 4 * np.sqrt(10 * 16 / 12 / 400)
    assert score == random_score("Paid-v0", episodes=400)
    assert score != random_score("Paid-v0", episodes=400, seed=1)


@pytest.mark.parametrize("env_id", ["Reach-v0", "Pendulum-v1"])
def test_success_rates_are_those_of_the_evaluations(tmp_path, env_id):
    settings = {
        "policy": "MultiInputPolicy" if env_id == "Reach-v0" else "MlpPolicy",
        "n_timesteps": 60,
        "learning_starts": 30,
    }
    settings |= {"batch_size": 8, "buffer_size": 1000, "policy_kwargs": {"net_arch": [4]}}
    spec = RunSpec("a", "scratch_ddpg", env_id, 0, 60, 3, 10, "cpu", settings)
    rates = perform(spec, tmp_path, lambda step: None)["success_rates"]
    written = np.load(next(tmp_path.rglob("evaluations.npz")))
    if env_id == "Pendulum-v1":
        assert "successes" not in written
        assert rates == []
    else:
        assert len(rates) == 3
        np.testing.assert_allclose(rates, written["successes"].mean(axis=1), rtol=1e-6)
