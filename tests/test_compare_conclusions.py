"""From results to the summary: scores, normalization, verdicts, and what is said of runs that diverged or are missing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_results import made_up_results
from rich.console import Console
from scipy import stats

from sb3_ddpg_scratch.compare.conclusions import show, summarize, worst_verdict
from sb3_ddpg_scratch.compare.results_file import read_results
from sb3_ddpg_scratch.compare.scores import scores_of
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.json_values import write_json

RANDOM = {"Pendulum-v1": -1200.0, "Lander-v3": -200.0}
SPREAD = np.linspace(-20, 20, 10)


def one_environment(offset=0.0, spread=1.0, seeds=10, **others):
    values = spread * SPREAD[:seeds]
    scores = {"ours": {"Pendulum-v1": values - 150 + offset}, "sb3": {"Pendulum-v1": values - 150}}
    return made_up_results(scores, RANDOM, "sb3", **others)


def of(summary, env, arm="ours"):
    return next(row for row in summary["comparisons"] if (row["env"], row["a"]) == (env, arm))


def test_summary_has_the_promised_content_and_true_numbers(tmp_path):
    results = one_environment(offset=5)
    summary = summarize(results, margin=0.1)
    write_json(tmp_path / "summary.json", summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    a, b = SPREAD - 145, SPREAD - 150
    arm = written["arms"]["ours"]
    np.testing.assert_allclose(arm["scores"]["Pendulum-v1"], a)
    assert arm["iqm"]["Pendulum-v1"] == pytest.approx(stats.trim_mean(a, 0.25))
    low, high = arm["ci"]["Pendulum-v1"]
    assert low < arm["iqm"]["Pendulum-v1"] < high
    (row,) = written["comparisons"]
    assert (row["env"], row["a"], row["b"]) == ("Pendulum-v1", "ours", "sb3")
    assert row["margin"] == pytest.approx(0.1 * 1050)
    assert row["difference"] == pytest.approx(5)
    assert row["welch_p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert row["p_improvement"] == pytest.approx(stats.mannwhitneyu(a, b).statistic / 100)
    assert row["verdict"] == "equivalent"
    assert row["seeds_needed"] == 3


@pytest.mark.parametrize(
    ("offset", "spread", "verdict"), [(0, 1, "equivalent"), (300, 1, "better"), (-300, 1, "worse"), (0, 30, "undecided")]
)
def test_verdicts(offset, spread, verdict, capsys):
    summary = summarize(one_environment(offset, spread), margin=0.1, resamples=200)
    assert of(summary, "Pendulum-v1")["verdict"] == verdict
    assert worst_verdict(summary) == verdict
    show(summary, Console(width=120))
    printed = capsys.readouterr().out
    assert verdict in printed
    assert ("seeds per arm" in " ".join(printed.split())) == (verdict == "undecided")


def test_score_is_the_mean_of_the_last_ten_evaluations():
    results = one_environment(evaluations=30)
    rows = results.evaluations
    mine = rows[(rows["arm"] == "ours") & (rows["seed"] == 4)].sort_values("step")
    expected = mine["mean_return"].to_numpy()[-10:].mean()
    # In whatever order the rows come.
    shuffled = rows.sample(frac=1, random_state=0)
    scores = scores_of(type(results)(results.runs, shuffled, RANDOM, "sb3", [], ""))
    assert scores.of("ours", "Pendulum-v1")[4] == pytest.approx(expected)
    assert scores.notes == []
    few = scores_of(one_environment(evaluations=4))
    assert few.of("ours", "Pendulum-v1") == pytest.approx(scores.of("ours", "Pendulum-v1"))
    assert few.score == "mean of a run's 4 evaluations"
    (note,) = few.notes
    assert "A quick look" in note


def two_environments(lander, baseline_lander):
    scores = {
        "ours": {"Pendulum-v1": SPREAD - 150, "Lander-v3": np.asarray(lander)},
        "sb3": {"Pendulum-v1": SPREAD - 150, "Lander-v3": np.asarray(baseline_lander)},
    }
    return made_up_results(scores, RANDOM, "sb3")


def test_overall_is_in_units_of_the_baselines_range():
    summary = summarize(two_environments(SPREAD + 240, SPREAD + 200), margin=0.1, resamples=200)
    # On the lander ours is 40 better, of a range of 400; on the pendulum the same: a mean of 5%.
    overall = of(summary, "overall")
    assert overall["difference"] == pytest.approx(0.05)
    assert overall["margin"] == 0.1
    assert overall["verdict"] == "equivalent"
    assert "5% higher" in overall["why"]
    assert summary["arms"]["sb3"]["iqm"]["overall"] == pytest.approx(1.0)
    assert set(summary["arms"]["ours"]["scores"]) == {"Pendulum-v1", "Lander-v3"}
    assert summary["environments"] == ["Pendulum-v1", "Lander-v3"]
    # Holm's correction for three comparisons: the smallest p by three, the next by two but no less than the first.
    lander, pendulum = of(summary, "Lander-v3"), of(summary, "Pendulum-v1")
    assert overall["welch_p"] < lander["welch_p"] < pendulum["welch_p"]
    assert overall["welch_p_corrected"] == pytest.approx(3 * overall["welch_p"])
    assert lander["welch_p_corrected"] == pytest.approx(max(2 * lander["welch_p"], 3 * overall["welch_p"]))
    assert pendulum["welch_p_corrected"] == pytest.approx(pendulum["welch_p"])


def test_a_baseline_below_the_random_policy_keeps_the_order():
    summary = summarize(two_environments(SPREAD - 500, SPREAD - 400), margin=0.1, resamples=200)
    assert of(summary, "Lander-v3")["verdict"] == "worse"
    assert of(summary, "overall")["difference"] < 0


def test_an_environment_without_a_range_is_left_out_of_the_whole():
    summary = summarize(two_environments(SPREAD - 150, SPREAD - 200), margin=0.1, resamples=200)
    assert of(summary, "overall")["difference"] == pytest.approx(0)
    assert any("overall is without Lander-v3" in note for note in summary["notes"])
    # A difference there is one all the same.
    assert of(summary, "Lander-v3")["verdict"] == "better"
    assert "No margin can be set" in of(summary, "Lander-v3")["why"]


def test_diverged_runs_count_as_the_worst():
    diverging = SPREAD - 150
    diverging[3:] = np.nan
    scores = {"ours": {"Pendulum-v1": diverging}, "sb3": {"Pendulum-v1": SPREAD - 150}}
    results = made_up_results(scores, RANDOM, "sb3")
    summary = summarize(results, margin=0.1, resamples=200)
    assert summary["arms"]["ours"]["scores"]["Pendulum-v1"][3:] == [None] * 7
    assert of(summary, "Pendulum-v1")["verdict"] == "worse"
    assert any("7 of 10 runs of ours on Pendulum-v1 ended without a score" in note for note in summary["notes"])
    json.dumps(summary, allow_nan=False)
    np.testing.assert_allclose(scores_of(results).of("ours", "Pendulum-v1")[3:], RANDOM["Pendulum-v1"])


def test_few_and_missing_runs(capsys):
    summary = summarize(one_environment(seeds=1), margin=0.1)
    row = of(summary, "Pendulum-v1")
    assert row["verdict"] == "undecided"
    assert row["welch_p"] is row["tost_p"] is row["p_improvement_ci"] is row["seeds_needed"] is None
    assert summary["arms"]["ours"]["ci"]["Pendulum-v1"] is None

    missing = [("td3", "Pendulum-v1", seed, "its process was killed") for seed in range(10)]
    summary = summarize(one_environment(missing=missing), margin=0.1, resamples=200)
    assert of(summary, "Pendulum-v1", "td3")["verdict"] == "undecided"
    assert "no finished run" in of(summary, "Pendulum-v1", "td3")["why"]
    assert of(summary, "Pendulum-v1")["verdict"] == "equivalent"
    assert worst_verdict(summary) == "undecided"
    assert summary["missing"][0] == {"arm": "td3", "env": "Pendulum-v1", "seed": 0, "why": "its process was killed"}
    show(summary, Console(width=120))
    assert "10 run(s) are missing" in capsys.readouterr().out

    results = one_environment(missing=missing)
    empty = type(results)([], results.evaluations.iloc[:0], {}, "sb3", missing, "")
    assert worst_verdict(summarize(empty, margin=0.1)) == "undecided"


def test_unequal_numbers_of_seeds():
    scores = {"ours": {"Pendulum-v1": SPREAD[:6] - 140}, "sb3": {"Pendulum-v1": SPREAD - 150}}
    row = of(summarize(made_up_results(scores, RANDOM, "sb3"), margin=0.1, resamples=200), "Pendulum-v1")
    assert row["seeds"] == {"a": 6, "b": 10}
    assert row["verdict"] == "equivalent"


@pytest.mark.parametrize("margin", [0, -0.1, float("nan")])
def test_a_margin_must_be_above_nothing(margin):
    with pytest.raises(ArgumentError, match="margin"):
        summarize(one_environment(), margin)


def test_worst_verdict_first():
    rank = lambda *verdicts: worst_verdict({"comparisons": [{"verdict": verdict} for verdict in verdicts]})  # noqa: E731
    assert rank("better", "undecided", "worse", "equivalent") == "worse"
    assert rank("better", "undecided", "equivalent") == "undecided"
    assert rank("better", "equivalent") == "equivalent"
    assert rank("better") == "better"
    assert rank() == "undecided"


@pytest.mark.parametrize("width", [30, 80, 200])
def test_names_are_never_broken_across_lines(width, capsys):
    env, arm = "MountainCarContinuousWithALongName-v0", "an_arm_with_a_long_name"
    scores = {arm: {env: SPREAD - 150}, "sb3": {env: SPREAD - 150}}
    summary = summarize(made_up_results(scores, {env: -1200.0}, "sb3"), margin=0.1, resamples=200)
    note = f"A note about {env} and {arm}, with [brackets]."
    show(summary | {"notes": [note]}, Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert note in lines
    assert any(env in line and arm in line and "equivalent" in line for line in lines)
    assert max(map(len, lines)) <= max(width, 140)


def test_failed_episodes_stand_beside_the_scores(tmp_path):
    results = one_environment(failure_rate={"ours": 0.254, "sb3": 0.0})

    def shown(results):
        summary, console = summarize(results, margin=0.1, resamples=200), Console(width=200, record=True)
        show(summary, console)
        return summary, " ".join(console.export_text().split())

    summary, text = shown(results)
    assert [summary["arms"][arm]["failed"] for arm in ("ours", "sb3")] == [{"Pendulum-v1": 0.254}, {"Pendulum-v1": 0}]
    assert "25.4% against 0%" in text
    assert "Failed episodes are those of the scored evaluations that terminated on Pendulum-v1." in text
    alone = replace(results, runs=[run for run in results.runs if run.arm == "ours"], baseline="ours")
    assert "25.4%" in shown(alone)[1]
    results.write(tmp_path / "results.json")
    named = read_results(tmp_path)
    named.runs[:] = [replace(run, hyperparameters={"failure_key": "runaway"}) for run in named.runs]
    assert "that had runaway on Pendulum-v1." in shown(named)[1]
    # Neither where there are none, nor in results of earlier versions, which did not count them.
    for rates in ({"ours": 0.0, "sb3": 0.0}, None):
        assert "ailed" not in shown(one_environment(failure_rate=rates))[1]
    content = json.loads((tmp_path / "results.json").read_text())
    del content["evaluations"]["failure_rate"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert "ailed" not in shown(read_results(tmp_path))[1]
