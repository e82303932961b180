"""The command that compares the presets: what is planned, run, skipped and reported."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from commands import perform_here
from matplotlib import image
from rich.console import Console
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.cli import app
from sb3_ddpg_scratch.compare.comparison import _table
from sb3_ddpg_scratch.compare.presets import markdown_table, plan_runs, run_presets, summarize, write_report
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.runs import processes
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result

ARGUMENTS = ["--preset", "simple_rl", "--seeds", "2", "--jobs", "2", "--steps", "480"]
ARGUMENTS += ["--evaluations", "12", "--eval-episodes", "2"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """(folder, output) of a tiny comparison, made by the command."""
    out = tmp_path_factory.mktemp("comparison") / "deep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.RunProcesses, "run", perform_here)
        result = CliRunner().invoke(app, ["presets", "--out", str(out), *ARGUMENTS])
    assert result.exit_code == 0, result.output
    return out, result.output


def specs_of(out):
    return plan_runs("Pendulum-v1", ["simple_rl"], 2, 480, 12, 2)


def test_runs_are_scored_by_their_last_ten_evaluations(comparison):
    out, _ = comparison
    results = [finished_result(spec, out) for spec in specs_of(out)]
    assert [result["spec"]["seed"] for result in results] == [0, 1]
    for result in results:
        folder = (
            out / "agents" / "simple_rl" / "Pendulum-v1" / f"seed_{result['spec']['seed']}" / "scratch_ddpg" / "Pendulum-v1_1"
        )
        evaluations = np.load(folder / "evaluations.npz")
        # simple_rl is trained in whole episodes, of 200 steps: what comes after the budget is not scored.
        assert evaluations["timesteps"].tolist() == list(range(40, 601, 40))
        assert result["timesteps"] == list(range(40, 481, 40))
        assert evaluations["results"].shape == (15, 2)
        assert result["score"] == pytest.approx(evaluations["results"][2:12].mean())
        model = ScratchDDPG.load(folder / "Pendulum-v1.zip")
        assert (model.num_timesteps, model._n_updates) == (600, result["updates"]) == (600, 600)
        assert result["training_seconds"] > 0 < result["evaluation_seconds"]
    assert results[0]["returns"] != results[1]["returns"]


def test_report(comparison):
    out, output = comparison
    scores = [finished_result(spec, out)["score"] for spec in specs_of(out)]
    summary = json.loads((out / "summary.json").read_text())
    row = summary["presets"]["simple_rl"]
    assert row["score_mean"] == pytest.approx(sum(scores) / 2)
    assert row["score_std"] == pytest.approx(abs(scores[0] - scores[1]) / np.sqrt(2))
    assert summary["runs_planned"] == summary["runs_finished"] == 2
    table = (out / "table.md").read_text()
    assert f"{scores[0]:.1f}, {scores[1]:.1f} | 480 | 600 |" in table
    assert table.splitlines()[-1] in output
    picture = image.imread(out / "learning_curves.png")
    assert picture.shape[0] > 200
    assert np.any(np.all(np.abs(picture[..., :3] - np.array([0x0B, 0x61, 0xA4]) / 255) < 0.01, axis=-1))
    assert not [path for path in out.rglob("*") if "tmp" in path.name]


def test_finished_runs_are_not_done_again(comparison, monkeypatch):
    out, _ = comparison
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: pytest.fail("a finished run was begun again"))
    result = CliRunner().invoke(app, ["presets", "--out", str(out), *ARGUMENTS])
    assert result.exit_code == 0
    assert "2 of 2 runs are finished already." in result.output


@pytest.mark.parametrize("change", [{"steps": 500}, {"settings": {}}, {"eval_episodes": 3}, {"env_id": "Ant-v5"}])
def test_run_with_other_settings_is_not_taken_for_it(comparison, change):
    out, _ = comparison
    spec = specs_of(out)[0]
    assert finished_result(spec, out) is not None
    assert finished_result(replace(spec, **change), out) is None


def test_spoilt_result_counts_as_none(tmp_path):
    spec = plan_runs("Pendulum-v1", ["simple_rl"], 1)[0]
    spec.result_file(tmp_path).parent.mkdir(parents=True)
    for text in ("", "{", "[]"):
        spec.result_file(tmp_path).write_text(text)
        assert finished_result(spec, tmp_path) is None


def test_failed_run_is_told_with_its_log(tmp_path):
    arguments = ["--preset", "simple_rl", "--seeds", "1", "--steps", "100", "--device", "hpu"]
    result = CliRunner().invoke(app, ["presets", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 1
    assert "Failed: simple_rl, seed 0" in result.output
    assert "hpu" in (tmp_path / "agents" / "simple_rl" / "Pendulum-v1" / "seed_0.log").read_text()
    assert not (tmp_path / "summary.json").exists()


def test_interrupted_comparison_leaves_what_is_finished(tmp_path, monkeypatch):
    specs = plan_runs("Pendulum-v1", ["blog_post"], 3)

    def run(self, spec, progress):
        if spec.seed == 1:
            raise KeyboardInterrupt
        progress(spec.steps)
        spec.result_file(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        spec.result_file(tmp_path).write_text(json.dumps(result_of(spec, [-3.0, -1.0])))
        return True

    monkeypatch.setattr(processes.RunProcesses, "run", run)
    with pytest.raises(KeyboardInterrupt):
        run_presets(specs, tmp_path, 1, Console(quiet=True), "command")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["runs_planned"] == 3
    assert summary["presets"]["blog_post"]["scores"]["0"] == -2.0


def result_of(spec, returns):
    return {
        "spec": asdict(spec),
        "timesteps": list(range(len(returns))),
        "returns": returns,
        "score": float(np.mean(returns)),
        "scored_evaluations": len(returns),
        "updates": 10,
        "training_seconds": 2.0,
    }


def test_summary_and_table_by_hand():
    spec = RunSpec("a", "scratch_ddpg", "Pendulum-v1", 0, 1000, 2, 5, "cpu", {})
    results = [result_of(replace(spec, seed=seed), [score]) for seed, score in enumerate([-1.0, -2.0, -6.0])]
    results.append(result_of(replace(spec, arm="b"), [-7.0]))
    summary = summarize(results)
    assert summary["a"]["score_mean"] == -3
    assert summary["a"]["score_std"] == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert summary["b"]["score_std"] is None
    lines = markdown_table(summary).splitlines()
    assert lines[2] == "| a | -3.0 ± 2.6 | -1.0, -2.0, -6.0 | 1,000 | 10 | 2 s |"
    assert lines[3] == "| b | -7.0 | -7.0 | 1,000 | 10 | 2 s |"


def test_what_is_not_finite_is_null_in_a_result_file_and_nan_in_the_summary(tmp_path):
    spec = RunSpec("a", "scratch_ddpg", "Pendulum-v1", 0, 1000, 2, 5, "cpu", {})
    write_json(spec.result_file(tmp_path), result_of(spec, [-1.0, float("nan")]) | {"score": float("nan")})
    json.loads(spec.result_file(tmp_path).read_text(), parse_constant=pytest.fail)
    read = finished_result(spec, tmp_path)
    assert read["returns"] == [-1.0, None]
    row = summarize([read, result_of(replace(spec, seed=1), [-7.0])])["a"]
    assert np.isnan(row["score_mean"])
    assert row["scores"]["1"] == -7.0
    write_report([read], 1, tmp_path, "the command")
    assert "| a | nan |" in (tmp_path / "table.md").read_text()
    table = _table(spec, read | {"seconds": [1.0, 2.0], "return_stds": [0.5, None]})
    assert table["mean_return"].dtype == table["std_return"].dtype == float
    np.testing.assert_array_equal(table["mean_return"], [-1.0, np.nan])


def test_report_of_runs_of_different_lengths(tmp_path):
    spec = RunSpec("a", "scratch_ddpg", "Pendulum-v1", 0, 1000, 2, 5, "cpu", {})
    results = [result_of(spec, [-1.0, -2.0, -3.0]), result_of(replace(spec, seed=1), [-1.0])]
    write_report(results, 4, tmp_path, "the command")
    text = (tmp_path / "table.md").read_text()
    assert "`the command`" in text
    assert "2 of 4" in text


def test_plan():
    budgets = {spec.arm: spec.steps for spec in plan_runs("Pendulum-v1", seeds=1)}
    own = {"tch_rs": 20_000, "plotly_notebook": 50_000, "simple_rl": 40_000, "blog_post": 20_000, "rl_zoo": 20_000}
    others = dict.fromkeys(["cleanrl", "lillicrap2015", "our_ddpg", "simba", "spinning_up", "tianshou"], 40_000)
    assert budgets == own | others
    assert {spec.steps for spec in plan_runs("Pendulum-v1", steps=25_001)} == {25_001}
    assert len(plan_runs("Pendulum-v1", ["tch_rs", "tch_rs"], seeds=4)) == 4
    assert "tch_rs" not in {spec.arm for spec in plan_runs("Hopper-v5")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "Pendulum-v7"}, "Did you mean 'Pendulum-v1'"),
        ({"env_id": "Pendulum-v1", "presets": ["cleanrll"]}, "Did you mean 'cleanrl'"),
        ({"env_id": "Hopper-v5", "presets": ["tch_rs"]}, "tch_rs.yml"),
        ({"env_id": "Pendulum-v1", "steps": 5}, "steps must be .*at least 20, got 5"),
        ({"env_id": "Pendulum-v1", "seeds": 0}, "seeds must be .*got 0"),
        (
            {"env_id": "Pendulum-v1", "steps": 25_000},
            r"--steps must be at least 25001 \(when cleanrl makes its first update on Pendulum-v1\), got 25000",
        ),
    ],
)
def test_bad_plan(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        plan_runs(**arguments)
