"""The command that compares the presets: what is planned, run, skipped and reported."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from commands import perform_here
from matplotlib import image
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.cli import app
from sb3_ddpg_scratch.compare import read_results, score_table
from sb3_ddpg_scratch.compare.comparison import _table
from sb3_ddpg_scratch.compare.plots import curves_of
from sb3_ddpg_scratch.compare.presets import plan_presets
from sb3_ddpg_scratch.compare.scores import scores_of
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.runs import processes
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result

ARGUMENTS = ["--preset", "simple_rl", "--preset", "blog_post", "--seeds", "2", "--jobs", "2", "--steps", "480"]
ARGUMENTS += ["--evaluations", "12", "--eval-episodes", "2"]


def plan_runs(env_id, presets=(), seeds=3, steps=None, **settings):
    return plan_presets(env_id, presets, seeds, steps, out="unused", **settings).specs


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
    specs = plan_runs("Pendulum-v1", ["simple_rl", "blog_post"], 2, 480, evaluations=12, eval_episodes=2)
    return [spec for spec in specs if spec.arm == "simple_rl"]


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
    results = read_results(out)
    table = score_table(results)
    assert table[table["arm"] == "simple_rl"]["score"].tolist() == pytest.approx(scores)
    assert results.baseline == "simple_rl"
    assert len(results.runs) == 4
    assert results.missing == []
    assert "Pendulum-v1" in output
    assert "blog_post" in output
    assert "simple_rl" in (out / "report.html").read_text()
    picture = image.imread(out / "learning_curves.png")
    assert picture.shape[0] > 200
    assert np.any(np.all(np.abs(picture[..., :3] - np.array([0x0B, 0x61, 0xA4]) / 255) < 0.01, axis=-1))
    assert not [path for path in out.rglob("*") if "tmp" in path.name]


def test_finished_runs_are_not_done_again(comparison, monkeypatch):
    out, _ = comparison
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: pytest.fail("a finished run was begun again"))
    result = CliRunner().invoke(app, ["presets", "--out", str(out), *ARGUMENTS])
    assert result.exit_code == 0
    assert "All 4 runs are finished already." in result.output


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


def test_what_cannot_be_set_up_is_an_error_before_any_run(tmp_path):
    arguments = ["--preset", "simple_rl", "--seeds", "1", "--steps", "100", "--device", "hpu"]
    result = CliRunner().invoke(app, ["presets", "--out", str(tmp_path), *arguments])
    assert isinstance(result.exception, ArgumentError)
    assert "arm simple_rl must be one that can be set up on Pendulum-v1" in str(result.exception)
    assert "hpu" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_each_has_its_own_budget_and_one_seed_shows_a_curve(tmp_path, monkeypatch):
    """One that fails is told with its log, and the others' curves are as long as their budgets."""

    def run(self, spec, progress):
        if spec.arm == "tch_rs":
            spec.log_file(tmp_path).parent.mkdir(parents=True, exist_ok=True)
            spec.log_file(tmp_path).write_text("what went wrong")
            return False
        write_json(spec.result_file(tmp_path), result_of(spec, [-3.0] * 20))
        return True

    monkeypatch.setattr(processes.RunProcesses, "run", run)
    arguments = [f"--preset={name}" for name in ("blog_post", "plotly_notebook", "tch_rs")]
    result = CliRunner().invoke(app, ["presets", "--out", str(tmp_path), "--seeds", "1", *arguments])
    assert result.exit_code == 1
    assert "Failed: tch_rs, seed 0" in result.output
    assert "what went wrong" in result.output
    (why,) = {row["why"] for row in json.loads((tmp_path / "summary.json").read_text())["comparisons"] if row["a"] != "tch_rs"}
    assert "One seed shows no spread" in why
    results = read_results(tmp_path)
    assert [(arm, seed) for arm, _, seed, _ in results.missing] == [("tch_rs", 0)]
    curves = {curve.arm: curve for curve in curves_of(results, scores_of(results))["Pendulum-v1"]}
    assert {arm: curve.steps[-1] for arm, curve in curves.items()} == {"blog_post": 20_000, "plotly_notebook": 50_000}
    # Another comparison takes the baseline's budget.
    assert results.protocol["Pendulum-v1"]["steps"] == 20_000


def result_of(spec, returns):
    return {
        "spec": asdict(spec),
        "timesteps": [spec.steps * (place + 1) // len(returns) for place in range(len(returns))],
        "returns": returns,
        "seconds": [1.0] * len(returns),
        "return_stds": [0.5] * len(returns),
        "hyperparameters": spec.settings,
        "versions": {},
        "machine": {},
        "score": float(np.mean(returns)),
        "scored_evaluations": len(returns),
        "updates": 10,
        "training_seconds": 2.0,
    }


def test_what_is_not_finite_is_null_in_a_result_file_and_nan_in_a_table(tmp_path):
    spec = RunSpec("a", "scratch_ddpg", "Pendulum-v1", 0, 1000, 2, 5, "cpu", {})
    write_json(spec.result_file(tmp_path), result_of(spec, [-1.0, float("nan")]) | {"return_stds": [0.5, float("nan")]})
    json.loads(spec.result_file(tmp_path).read_text(), parse_constant=pytest.fail)
    read = finished_result(spec, tmp_path)
    assert read["returns"] == [-1.0, None]
    table = _table(spec, read)
    assert table["mean_return"].dtype == table["std_return"].dtype == float
    np.testing.assert_array_equal(table["mean_return"], [-1.0, np.nan])


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
