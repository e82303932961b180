"""The benchmark: what it computes, by hand, and that every contender can be measured."""

import json
from dataclasses import replace

import pytest
from rich.progress import Progress
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from typer.testing import CliRunner

from sb3_ddpg_scratch.bench import parts, schedule
from sb3_ddpg_scratch.bench import workload as workload_module
from sb3_ddpg_scratch.bench.rounds import HEADINGS, Setting, table, write_measurements
from sb3_ddpg_scratch.bench.schedule import plan
from sb3_ddpg_scratch.bench.uses import guard_of, make_callback, rows_of
from sb3_ddpg_scratch.bench.worker import make_model
from sb3_ddpg_scratch.bench.workload import CALLBACK, CONTENDERS, DICT, USES, WRAPPER, Workload, installed, measure, missing
from sb3_ddpg_scratch.cli import app
from sb3_ddpg_scratch.gym_packages import RegisteredEnv
from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from sb3_ddpg_scratch.known_code import only_known_code

TINY = Workload("", (16, 12), 8, cores=1, seconds=0.05, filled=50)


def test_td3_and_layer_norm_are_timed_as_such(monkeypatch):
    made = []
    monkeypatch.setattr("sb3_ddpg_scratch.ScratchDDPG", lambda *args, **settings: made.append(settings))
    for workload in (replace(TINY, contender="compiled", td3=True), replace(TINY, contender="compiled", layer_norm=True)):
        make_model(workload)
    assert made[0]["policy_kwargs"] == {"net_arch": [16, 12], "n_critics": 2}
    assert (made[0]["policy_delay"], made[0]["target_policy_noise"]) == (2, 0.2)
    assert made[1]["policy_kwargs"] == {"net_arch": [16, 12], "norm": "layer"}
    assert replace(TINY, td3=True).setting == "[16,12]/8, TD3"
    assert replace(TINY, layer_norm=True).setting == "[16,12]/8, layer norm"


def test_hindsight_is_timed_on_an_environment_with_goals(monkeypatch):
    monkeypatch.setattr(workload_module, "find_spec", lambda name: name != "rltools" or None)
    planned = plan(RegisteredEnv("Pendulum-v1", ()), quick=False, cores=[1])
    found = {(one[0].env, one[0].setting): [workload.contender for workload in one] for one in planned if one[0].hindsight}
    assert found == {
        ("FetchReach-v4", f"{net_arch}/256, hindsight"): ["sb3", "autograd", "compiled"]
        for net_arch in ("[64,64]", "[256,256,256]")
    }
    monkeypatch.setattr(workload_module, "find_spec", lambda name: None if name == "gymnasium_robotics" else True)
    assert missing("hindsight") == "hindsight needs gymnasium_robotics"
    planned = plan(RegisteredEnv("Pendulum-v1", ()), quick=False, cores=[1])
    assert not any(workload.hindsight for one in planned for workload in one)


@pytest.mark.parametrize("contender", ["sb3", "compiled"])
def test_a_workload_with_goals_trains_on_hindsight_replay(contender):
    model = make_model(replace(TINY, contender=contender, hindsight=True, gym_packages=("tests.goal_envs",), env="Reach-v0"))
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert isinstance(model.replay_buffer, PackedHerReplayBuffer) == (contender == "compiled")


def test_what_rltools_lacks_is_said(monkeypatch):
    monkeypatch.setattr(workload_module, "find_spec", lambda name: None)
    monkeypatch.setattr(workload_module, "find_library", lambda name: None)
    monkeypatch.setattr(workload_module.shutil, "which", lambda name: None)
    assert missing("rltools") == "rltools needs rltools, a C++ compiler, BLAS (libopenblas-dev)"
    assert not installed("rltools")


def test_rltools_has_steps_and_no_updates():
    rounds = [{("rltools", 1): {"steps_per_s": 40.0}, ("compiled", 1): {"updates_per_s": 90.0, "steps_per_s": 50.0}}]
    first, second = (dict(zip(HEADINGS, row, strict=True)) for row in table(Setting("x", rounds=rounds)))
    assert (first["updates/s"], first["spread"], first["env steps/s"]) == ("-", "-", "40")
    assert second["vs RLtools"] == "- / 1.25"


@pytest.mark.parametrize("contender", [*CONTENDERS, "auto", "floor"])
def test_every_contender_is_measured_in_its_own_process(contender):
    if not installed(contender):
        pytest.skip(f"{contender} is not installed")
    result = measure(replace(TINY, contender=contender))
    assert result["updates_per_s"] > 10
    if contender != "floor":
        assert 10 < result["steps_per_s"] < 10**6
        assert 0.1 < result["setup_s"] < 120
        assert 50 < result["peak_mb"] < 10_000
        assert result["updater"] == contender or contender == "auto"


def test_rltools_is_measured_where_it_is_installed():
    if (reason := missing("rltools")) is not None:
        pytest.skip(reason)
    result = measure(replace(TINY, contender="rltools", td3=True, net_arch=(16, 16), filled=100))
    assert 10 < result["steps_per_s"] < 10**6
    assert "updates_per_s" not in result


def test_several_environments_and_updates():
    result = measure(replace(TINY, contender="analytic", n_envs=4, gradient_steps=4))
    assert result["steps_per_s"] > 10


def test_a_failure_is_reported_with_its_log():
    with pytest.raises(RuntimeError, match=r"analytic at \[16,12\]/8 failed:(.|\n)*Nowhere"):
        measure(replace(TINY, contender="analytic", env="Nowhere-v0"))


def hand_made() -> Setting:
    rounds = [
        {
            ("sb3", 1): {"updates_per_s": 100.0, "steps_per_s": 50.0, "setup_s": 3.0, "peak_mb": 300},
            ("sb3", 2): {"updates_per_s": 80.0, "steps_per_s": 60.0, "setup_s": 3.0, "peak_mb": 300},
            ("analytic", 1): {"updates_per_s": ours, "steps_per_s": 500.0, "setup_s": 3.2, "peak_mb": 310},
            ("floor", 1): {"updates_per_s": 1000.0},
        }
        for ours in (400.0, 700.0, 500.0)
    ]
    return Setting("[8,8]/4", rounds=rounds)


def test_ratios_are_within_rounds_at_the_better_number_of_cores():
    setting = hand_made()
    assert setting.best_cores("sb3", "updates_per_s") == 1
    assert setting.best_cores("sb3", "steps_per_s") == 2
    assert setting.ratios("analytic", "sb3", "updates_per_s") == [4.0, 7.0, 5.0]
    assert setting.ratios("analytic", "sb3", "steps_per_s") == [500 / 60] * 3
    assert setting.ratios("analytic", "sbx", "updates_per_s") == []
    rows = table(setting)
    ours = dict(zip(HEADINGS, rows[1], strict=True))
    assert ours == {
        "contender": "analytic",
        "cores": "1",
        "updates/s": "500",
        "spread": "400 to 700",
        "env steps/s": "500",
        "vs SB3": "5.00 / 8.33",
        "vs SBX": "- / -",
        "vs RLtools": "- / -",
        "x floor": "2.00",
        "set-up s": "3.2",
        "peak MB": "310",
    }
    assert dict(zip(HEADINGS, rows[0], strict=True))["cores"] == "1 / 2"


def test_json_holds_every_measurement(tmp_path):
    write_measurements([hand_made()], {"processor": "x"}, "the command", tmp_path / "a" / "b.json")
    content = json.loads((tmp_path / "a" / "b.json").read_text())
    assert content["command"] == "the command"
    assert [r[2]["updates_per_s"] for r in content["settings"][0]["rounds"]] == [400.0, 700.0, 500.0]


def test_rounds_are_interleaved_and_an_interruption_keeps_what_was_measured(monkeypatch):
    order = []

    def pretended(workload):
        if len(order) == 5:
            raise KeyboardInterrupt
        order.append((workload.contender, workload.cores))
        return {"updates_per_s": 1.0}

    monkeypatch.setattr(schedule, "measure", pretended)
    settings = [[replace(TINY, contender=name) for name in ("sb3", "analytic")]]
    kept = []
    results = schedule.run(settings, 3, Progress(disable=True), kept.append)
    assert len(kept) == 3
    assert order == [("sb3", 1), ("analytic", 1)] * 2 + [("sb3", 1)]
    assert [len(r) for r in results[0].rounds] == [2, 2, 1]


def test_a_failure_is_kept_and_the_others_continue(monkeypatch):
    def pretended(workload):
        if workload.contender == "sb3":
            raise RuntimeError("sb3 failed")
        return {"updates_per_s": 1.0}

    monkeypatch.setattr(schedule, "measure", pretended)
    kept = []
    settings = [[replace(TINY, contender=name) for name in ("sb3", "analytic")]]
    (setting,) = schedule.run(settings, 2, Progress(disable=True), lambda results: kept.append(len(results[0].rounds)))
    assert setting.failures == ["sb3 failed"] * 2
    assert setting.values("analytic", 1, "updates_per_s") == [1.0, 1.0]
    assert kept == [1, 2]


def test_command(tmp_path, monkeypatch):
    """The command itself, with processes replaced by numbers."""
    monkeypatch.setattr(
        schedule, "measure", lambda w: {"updates_per_s": 10.0 * w.cores, "steps_per_s": 5.0, "setup_s": 1, "peak_mb": 2}
    )
    path = tmp_path / "bench.json"
    result = CliRunner().invoke(app, ["bench", "--quick", "--json", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Pendulum-v1, [64,64]/64: 1 round(s)" in result.output
    assert "[64,64]/64, TD3: 1 round(s)" in result.output
    assert len(json.loads(path.read_text())["settings"]) == 4
    assert CliRunner().invoke(app, ["bench", "--env", "Nowhere-v0"]).exit_code != 0


def test_uses_are_what_they_are_called():
    """All at once: a callback and a wrapper that are nobody's known code, Dict observations, and SB3's own noise."""
    model = make_model(replace(TINY, contender="compiled", uses=USES[-1]))
    assert isinstance(model.env, VecNormalize)
    assert set(model.observation_space.spaces) == {"first", "second"}
    assert isinstance(model.action_noise, NormalActionNoise)
    model.learn(60, callback=make_callback(USES[-1]))
    for uses in ((CALLBACK,), (WRAPPER,), ()):
        model = make_model(replace(TINY, contender="compiled", uses=uses))
        _, callback = model._setup_learn(1, make_callback(uses))
        assert only_known_code(model, model.env, callback) == (uses == ())


def test_shares_of_uses_by_hand():
    """Two rounds: 0.5 and 0.7 of the fastest case, and 5 and 7 times SB3."""

    def round_of(ours, sb3):
        return {
            ("compiled", 1): {"steps_per_s": ours, "environment_us": 9.0, "guard_us": 4.0},
            ("sb3", 1): {"steps_per_s": sb3},
        }

    fastest = Setting("[64,64]/64", rounds=[round_of(1000, 100), round_of(2000, 100)])
    slower = Setting("[64,64]/64, Dict", rounds=[round_of(500, 100), round_of(1400, 200)])
    both = Setting("[64,64]/64, Dict, VecNormalize", rounds=[round_of(100, 100), round_of(200, 100)])
    assert rows_of([fastest, slower, both]) == [
        ["fastest case", "1,500", "1.00", "9.0 us", "100", "15.0 x"],
        ["Dict", "950", "0.60", "9.0 us", "150", "6.0 x"],
        ["all of these", "150", "0.10", "9.0 us", "100", "1.5 x"],
    ]
    assert guard_of([fastest, slower]) == 4.0


def test_uses_are_measured(monkeypatch):
    monkeypatch.setattr(schedule, "USES", ((), (DICT,)))
    monkeypatch.setattr(schedule, "measure", lambda workload: measure(replace(workload, seconds=0.05, filled=50)))
    result = CliRunner().invoke(app, ["bench", "--uses", "--quick"])
    assert result.exit_code == 0, result.output
    assert "fastest case" in result.output
    assert " Dict " in result.output
    assert "A look at networks and optimizers takes" in result.output


def test_mujoco_is_timed_beside_the_environment_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(workload_module, "find_spec", lambda name: name != "rltools" or None)
    for env, count in (("Pendulum-v1", 2), ("HalfCheetah-v5", 0)):
        planned = plan(RegisteredEnv(env, ()), quick=False, cores=[1])
        others = [one for one in planned if one[0].env not in (env, "FetchReach-v4")]
        assert [workloads[0].env for workloads in others] == ["HalfCheetah-v5"] * count
    monkeypatch.setattr(workload_module, "find_spec", lambda name: None if name == "mujoco" else True)
    assert all(one[0].env != "HalfCheetah-v5" for one in plan(RegisteredEnv("Pendulum-v1", ()), quick=False, cores=[1]))


def test_nested_parts_are_counted_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(parts.time, "perf_counter", lambda: clock[0])

    class Work:
        def outer(self):
            clock[0] += 2
            self.inner()
            self.inner()

        def inner(self):
            clock[0] += 5

    work, watch = Work(), parts.Stopwatch()
    with watch.timing(work, "outer", "out"), watch.timing(work, "inner", "in"):
        work.outer()
    assert watch.seconds == {"out": 2, "in": 10}
    assert not vars(work)
    with watch.timing(Work, "inner", "in"):
        pass
    assert "__wrapped__" not in vars(Work.inner)


def test_parts_of_a_step_make_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "STEPS", 40)
    found = parts.draw_parts(TINY, {"SB3's": "sb3", "ours": "compiled"}, tmp_path / "parts.png")
    assert set(found["ours"]) == {"environment", "one compiled call", "noise", "the rest"}
    assert set(found["SB3's"]) == {"environment", "acting", "storing", "batch", "update", "noise", "the rest"}
    assert all(value > 0 for of_one in found.values() for value in of_one.values())
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
