"""What a comparison is made of: arms from texts and files, their settings, and everything that is refused before a run."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from sb3_ddpg_scratch import ArgumentError
from sb3_ddpg_scratch.cli import main
from sb3_ddpg_scratch.cli.compare import write_example
from sb3_ddpg_scratch.compare.comparison import check_folder, claim_folder
from sb3_ddpg_scratch.compare.experiment import (
    KEYS,
    Arm,
    experiment_from,
    parse_arm,
    read_experiment,
    shipped_experiments,
    with_options,
)
from sb3_ddpg_scratch.compare.plan import arm_settings, plan_comparison, try_out
from sb3_ddpg_scratch.zoo.yaml_settings import default_file, read_settings

PENDULUM = {"envs": ["Pendulum-v1"], "seeds": 2, "out": "unused"}


def plan(**settings):
    return plan_comparison(experiment_from(PENDULUM | settings))


def test_arm_from_text():
    arm = parse_arm("a-1=td3:learning_rate=1e-4,policy_kwargs={net_arch: [8, 8], n_critics: 2},device_name='a,b',gamma=0.9")
    overrides = {
        "learning_rate": 1e-4,
        "policy_kwargs": {"net_arch": [8, 8], "n_critics": 2},
        "device_name": "a,b",
        "gamma": 0.9,
    }
    assert arm == Arm("a-1", "td3", None, None, overrides)
    assert parse_arm("ours=scratch_ddpg:preset=tch_rs,tau=0.01") == Arm("ours", "scratch_ddpg", "tch_rs", None, {"tau": 0.01})
    zoo = "dict(net_arch=[8, 8], n_critics=2)"
    assert parse_arm(f"z=td3:policy_kwargs={zoo},gamma=0.9").overrides == {"policy_kwargs": zoo, "gamma": 0.9}
    assert parse_arm("sb3=ddpg") == Arm("sb3", "ddpg", None, None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddpg", "NAME=ALGO"),
        ("a=", "NAME=ALGO"),
        ("=ddpg", "NAME=ALGO"),
        ("../a=ddpg", "NAME=ALGO"),
        ("a=ddpg:", "NAME=ALGO"),
        ("a=ddpg:gamma", "'gamma' is not key=value"),
        ("a=ddpg:gamma=", "'gamma=' is not key=value"),
        ("a=ddpg:gamma=0.9,0.8", "'0.8' is not key=value"),
        ("a=ddpg:gamma=0.9,gamma=0.8", "given twice"),
        ("a=ddpg:policy_kwargs={net_arch: [8", "YAML understands"),
        ("a=ddpg:gamma=!!python/object/apply:os.system [id]", "YAML understands"),
        ("a=scratch_ddpg:preset=tch_rs,yaml=ddpg", "preset cannot be combined with yaml"),
    ],
)
def test_bad_arm(text, message):
    with pytest.raises(ArgumentError, match=message):
        parse_arm(text)


def test_default_arms_differ_in_the_algorithm_alone():
    specs = plan().specs
    assert [(spec.arm, spec.algo, spec.seed) for spec in specs] == [
        ("ours", "scratch_ddpg", 0),
        ("sb3", "ddpg", 0),
        ("ours", "scratch_ddpg", 1),
        ("sb3", "ddpg", 1),
    ]
    assert specs[0].settings == specs[1].settings
    assert {spec.settings["n_timesteps"] for spec in plan(envs=["Humanoid-v5"]).specs} == {2_000_000}
    settings = specs[0].settings
    assert (settings["noise_type"], settings["noise_std"], settings["learning_starts"]) == ("normal", 0.1, 10_000)
    assert settings["policy_kwargs"] == {"net_arch": [400, 300]}
    assert {(spec.steps, spec.evaluations, spec.eval_episodes) for spec in specs} == {(20_000, 20, 10)}
    assert plan().baseline == "sb3"


def test_settings_and_overrides():
    arm = parse_arm("a=scratch_ddpg:preset=plotly_notebook,policy_kwargs.norm=layer,learning_rate=lin_1e-3,action_noise=ou")
    settings = arm_settings(arm, "Pendulum-v1")
    assert settings["policy_kwargs"] == {"net_arch": [256, 256], "activation_fn": "relu", "action_layer": 0, "norm": "layer"}
    assert (settings["learning_rate"], settings["action_noise"], settings["batch_size"]) == ("lin_1e-3", "ou", 128)
    # Text that the Zoo would evaluate has become data.
    sac = arm_settings(parse_arm("a=sac"), "MountainCarContinuous-v0")
    expln = {} if version("rl_zoo3") == "2.9.0" else {"use_expln": True}
    assert sac["policy_kwargs"] == {"log_std_init": -3.67, "net_arch": [64, 64]} | expln
    ours = yaml.safe_load(default_file().read_text())["Pendulum-v1"]
    assert arm_settings(parse_arm("a=scratch_ddpg"), "Pendulum-v1")["action_noise"] == ours["action_noise"]


def test_settings_of_a_file(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("default: {n_timesteps: 1e3, policy: MlpPolicy, tau: 0.1}")
    settings = arm_settings(Arm("a", "td3", None, str(path), {"gamma": 0.5}), "Pendulum-v1")
    assert settings == {"n_timesteps": 1000.0, "policy": "MlpPolicy", "tau": 0.1, "gamma": 0.5}


def test_steps_are_the_baselines_for_every_arm():
    arms = ["s=sac", "d=ddpg"]
    assert {spec.steps for spec in plan(arms=arms, envs=["LunarLanderContinuous-v3"]).specs} == {500_000}
    assert {spec.steps for spec in plan(arms=arms, envs=["LunarLanderContinuous-v3"], baseline="d").specs} == {300_000}
    assert {spec.steps for spec in plan(arms=arms, steps=15_000).specs} == {15_000}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ["a=ddpgg", "b=td3"]}, "arm a: algorithm must be .*, got 'ddpgg'. Did you mean 'ddpg'"),
        ({"arms": ["a=ddpg:gama=0.9", "b=td3"]}, "arm a: key must be .*, got 'gama'. Did you mean 'gamma'"),
        (
            {"arms": ["a=ddpg:policy_delay=2", "b=td3"]},
            "arm a: key must be a setting of DDPG or of RL Zoo, got 'policy_delay'",
        ),
        ({"arms": ["a=ddpg:policy_kwargs.norm=layer", "b=td3"]}, "policy_kwargs: key must be .*, got 'norm'"),
        ({"arms": ["a=ddpg:policy_kwargs=print(1)", "b=td3"]}, "never run as code"),
        ({"arms": ["a=ddpg:n_timesteps=5", "b=td3"]}, "give --steps for all of them"),
        ({"arms": ["a=ddpg", "a=td3"]}, "arms must be different names, got 'a'"),
        ({"arms": ["a=scratch_ddpg:preset=tchrs", "b=td3"]}, "Did you mean 'tch_rs'"),
        ({"arms": ["a=td3:yaml=nowhere.yml", "b=ddpg"]}, "nowhere.yml"),
        ({"arms": []}, "arms must be "),
        ({"envs": ["Pendulum-v7"]}, "Did you mean 'Pendulum-v1'"),
        ({"envs": ["CartPole-v1"]}, "action_space must be "),
        ({"envs": None}, "^--env is required"),
        ({"envs": 5}, "envs must be .*, got 5"),
        ({"out": 5}, "out must be .*, got 5"),
        ({"arms": {"a": {"algo": "ddpg", "yaml": 3}, "b": "td3"}}, "arm a: yaml must be .*, got 3"),
        ({"arms": {"a": {"gamma": 0.9}, "b": "td3"}}, "arms: a must be .*'algo'"),
        ({"seeds": 1}, "seeds must be .*at least 2, got 1"),
        ({"seeds": "many"}, "seeds must be .*, got 'many'"),
        ({"steps": 10_000}, "--steps must be at least 10001 .when ours makes its first update.*, got 10000"),
        ({"evaluations": 0}, "evaluations must be .*at least 1, got 0"),
        ({"gym_packages": [1]}, "gym_packages must be a list of modules' names"),
        ({"margin": 0}, "margin must be .*, got 0"),
        ({"baseline": "sb33"}, "one of the arms"),
        ({"envs": {"Pendulum-v1": {"seed": 3}}}, "envs: Pendulum-v1: key must be .*, got 'seed'. Did you mean 'seeds'"),
        ({"envs": {"Pendulum-v1": {"seeds": 1}}}, "envs: Pendulum-v1: seeds must be .*at least 2, got 1"),
        ({"envs": {"Pendulum-v1": 3}}, "envs must be .*a mapping from them to their own seeds, steps"),
        ({"checkpoint_every": 0}, "checkpoint_every must be .*, got 0"),
        ({"step": 100}, "key must be .*, got 'step'. Did you mean 'steps'"),
    ],
)
def test_bad_experiment(settings, message):
    with pytest.raises(ArgumentError, match=message):
        plan(**settings)


def test_arm_that_cannot_be_set_up_is_named_before_any_run():
    specs = plan(arms=["a=ddpg:train_freq=[1, week]", "b=td3"]).specs
    with pytest.raises(ArgumentError, match=r"arm a must be .*set up on Pendulum-v1"):
        try_out(specs)


def test_environments_may_differ_in_steps_and_seeds(tmp_path):
    own = {"Pendulum-v1": {"steps": 11_000, "seeds": 3}, "Reacher-v5": None, "Pusher-v5": {"evaluations": 50}}
    content = {"arms": {"a": "scratch_ddpg"}, "envs": own, "seeds": 2, "steps": 20_000, "out": tmp_path}

    def planned(options):
        specs = plan_comparison(experiment_from(with_options(content, options))).specs
        return {(spec.env_id, spec.steps, spec.evaluations): spec.seed for spec in specs}

    assert planned({}) == {("Pendulum-v1", 11_000, 20): 2, ("Reacher-v5", 20_000, 20): 1, ("Pusher-v5", 20_000, 50): 1}
    # Options win in every environment, and choose from those of the file without losing what it says of them.
    assert planned({"envs": ["Pendulum-v1"], "steps": 15_000}) == {("Pendulum-v1", 15_000, 20): 2}
    assert planned({"envs": ["Ant-v5"], "seeds": 4}) == {("Ant-v5", 20_000, 20): 3}


def test_one_arm_is_its_own_baseline():
    made = plan(arms=["a=scratch_ddpg"])
    assert made.baseline == "a"
    assert [(spec.arm, spec.seed) for spec in made.specs] == [("a", 0), ("a", 1)]
    assert (
        made.specs[0].settings["policy_kwargs"] == yaml.safe_load(default_file().read_text())["Pendulum-v1"]["policy_kwargs"]
    )


def test_experiment_of_the_results_uses_the_shipped_settings():
    specs = plan_comparison(experiment_from(read_experiment("results") | {"out": "unused"})).specs
    shipped = read_settings(default_file())
    assert {spec.arm for spec in specs} == {"scratch_ddpg"}
    assert all(spec.settings == shipped[spec.env_id] | {"n_timesteps": spec.steps} for spec in specs)
    seeds = {env_id: sum(spec.env_id == env_id for spec in specs) for env_id in {spec.env_id for spec in specs}}
    assert len(seeds) == 14
    assert min(seed for env_id, seed in seeds.items() if not env_id.startswith(("Ant", "Humanoid"))) >= 5


@pytest.mark.parametrize("name", [name for name in shipped_experiments() if name not in ("results", "robotics")])
def test_shipped_experiments_set_up(name):
    content = read_experiment(name) | {"out": "unused", "seeds": 2}
    for needs, package in (("hindsight", "gymnasium_robotics"), ("networks", "mujoco")):
        if name == needs:
            pytest.importorskip(package)
    made = plan_comparison(experiment_from(content))
    try_out(made.specs)
    first, second = (spec.settings for spec in made.specs[:2])
    differing = {key for key in first | second if first.get(key) != second.get(key)}
    expected = {
        "ou_vs_gaussian": {"action_noise"},
        "layer_norm": {"policy_kwargs"},
        "hindsight": {"replay_buffer_kwargs"},
        "networks": {"policy_kwargs"},
        "td3_changes": {"policy_kwargs", "policy_delay", "target_policy_noise", "target_noise_clip"},
    }
    assert differing == expected[name]
    assert [spec.diagnostics for spec in made.specs[:2]] == [name == "td3_changes"] * 2
    assert not any(spec.diagnostics for spec in made.specs[2:])


def test_networks_differ_in_nothing_else():
    """Each kind with and without normalized observations, in arms next to each other."""
    arms = read_experiment("networks")["arms"]
    others = [{key: value for key, value in arm.items() if key not in ("policy", "policy_kwargs")} for arm in arms.values()]
    assert all(arm == others[0] for arm in others)
    kinds = [(arm.get("policy"), dict(arm["policy_kwargs"])) for arm in arms.values()]
    normalizes = [kwargs.pop("normalize_observations", False) for _, kwargs in kinds]
    assert normalizes == [False, True] * 3
    assert kinds[::2] == kinds[1::2]
    assert [name.removesuffix("_normalized") for name in arms] == ["mlp"] * 2 + ["layer_norm"] * 2 + ["simba"] * 2


def test_ou_noise_of_the_exercise_is_of_the_gaussians_size():
    arms = read_experiment("ou_vs_gaussian")["arms"]
    ou, gaussian = arms["ou"]["action_noise"], arms["gaussian"]["action_noise"]
    stationary = ou["sigma"] / (1 - (1 - ou["theta"] * ou["dt"]) ** 2) ** 0.5
    assert stationary == pytest.approx(gaussian["sigma"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ou_vs_gausian", "Did you mean 'ou_vs_gaussian'"), ("code.yml", "without code"), ("list.yml", "a mapping")],
)
def test_bad_experiment_file(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.yml").write_text("arms: !!python/name:os.system")
    (tmp_path / "list.yml").write_text("[1]")
    with pytest.raises(ArgumentError, match=message):
        read_experiment(name)


def test_folder_may_grow_but_not_change(tmp_path):
    out = tmp_path / "out"
    specs = plan().specs
    check_folder(specs, out)
    claim_folder(specs, out)
    check_folder(specs, out)
    more = plan(seeds=3, arms=["ours=scratch_ddpg:yaml=ddpg", "sb3=ddpg", "td3=td3"]).specs
    check_folder(more, out)
    before = (out / "experiment.json").read_text()
    cases = [
        ([replace(spec, steps=30_000) for spec in specs], "ours, Pendulum-v1, steps was 20000, is 30000"),
        (
            plan(arms=["ours=scratch_ddpg:preset=rl_zoo,tau=0.1", "sb3=ddpg"]).specs,
            "ours, Pendulum-v1, settings, tau .*is 0.1",
        ),
        (plan(arms=["ours=scratch_ddpg:yaml=ddpg", "b=ddpg"]).specs, "sb3 on Pendulum-v1 is in it"),
        ([spec for spec in specs if spec.seed == 0], "seeds were 2, are 1"),
    ]
    for other, message in cases:
        with pytest.raises(ArgumentError, match=message):
            check_folder(other, out)
    assert (out / "experiment.json").read_text() == before


def test_folder_of_something_else(tmp_path):
    specs = plan().specs
    check_folder(specs, tmp_path)
    (tmp_path / "thesis.txt").write_text("two years")
    with pytest.raises(ArgumentError, match="new, empty, or the folder of this comparison"):
        check_folder(specs, tmp_path)
    with pytest.raises(ArgumentError, match="There is a file of that name"):
        check_folder(specs, tmp_path / "thesis.txt")
    (tmp_path / "experiment.json").write_text(json.dumps([1]))
    with pytest.raises(ArgumentError, match="--out"):
        check_folder(specs, tmp_path)


def test_the_example_has_every_key_and_is_an_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sb3-ddpg-scratch", "compare", "--example", "own.yml"])
    with pytest.raises(SystemExit):
        main()
    assert "Wrote own.yml" in capsys.readouterr().out
    content = read_experiment("own.yml")
    assert set(content) == set(KEYS)
    plan = plan_comparison(experiment_from(content))
    assert {spec.arm for spec in plan.specs} == {"plain", "layer_norm"}
    with pytest.raises(ArgumentError, match=r"--example must be a new file, got 'own.yml'"):
        write_example(Path("own.yml"))
