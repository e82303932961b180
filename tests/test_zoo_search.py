"""The space that is tuned: every sample makes a model, and a stored trial makes the same settings again."""

import optuna
import pytest
import torch as th
from conftest import PointEnv

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.updates import UPDATERS
from sb3_ddpg_scratch.validation import check_arguments
from sb3_ddpg_scratch.zoo import convert_scratch_ddpg_params, sample_scratch_ddpg_params
from sb3_ddpg_scratch.zoo.search import check_search

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}


def sample(number, additional_args=NO_HER, dict_observations=False):
    """(settings, trial) for each of a number of random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    samples = []
    for _ in range(number):
        trial = study.ask()
        known = additional_args | {"dict_observations": dict_observations}
        samples.append((sample_scratch_ddpg_params(trial, 2, 1, known), trial))
    return samples


@pytest.fixture(scope="module")
def samples():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return sample(200)


def test_whole_space_is_searched(samples):
    settings = [settings for settings, _ in samples]
    noises = [entry["action_noise"] for entry in settings]
    assert {noise and noise["type"] for noise in noises} == {None, "gaussian", "ou", "pink"}
    assert {bool(noise and "decay_steps" in noise) for noise in noises} == {True, False}
    policies = [entry["policy_kwargs"] for entry in settings]
    assert {policy.get("norm") for policy in policies} == {None, "layer", "batch"}
    assert {policy.get("action_layer") for policy in policies} == {0, 1}
    assert len({str(policy["net_arch"]) for policy in policies}) == 6
    assert {(policy.get("scale_factor"), policy["normalize_observations"]) for policy in policies} == {
        *((None, False), (None, True), (4, False), (4, True))
    }
    assert {entry["max_grad_norm"] for entry in settings} == {None, 0.5, 1.0, 10.0}
    assert {entry["n_steps"] for entry in settings} == {1, 3, 5}
    assert {entry["train_freq"] for entry in settings} == set(range(1, 11))
    for name in ("learning_rate", "qf_learning_rate", "tau", "gamma"):
        assert len({entry[name] for entry in settings}) == 200
    assert all(0.97 <= entry["gamma"] < 1 for entry in settings)
    assert {entry["batch_size"] for entry in settings} == {16, 32, 64, 128, 256, 512, 1024}


def test_stored_parameters_make_the_same_settings(samples):
    for settings, trial in samples:
        assert convert_scratch_ddpg_params(trial.params) == settings


def test_every_trial_has_the_same_parameters(samples):
    """What the Zoo's sampler (multivariate TPE) needs, to draw them jointly."""
    assert len({tuple(trial.params) for _, trial in samples}) == 1
    assert len({str(trial.distributions) for _, trial in samples}) == 1


def test_every_sample_makes_a_model(samples):
    for settings, _ in samples:
        model = ScratchDDPG("MlpPolicy", PointEnv(), buffer_size=50, device="cpu", _init_setup_model=False, **settings)
        check_arguments(model, UPDATERS)
    for settings, _ in samples[::16]:
        model = ScratchDDPG("MlpPolicy", PointEnv(), buffer_size=50, learning_starts=10, device="cpu", **settings)
        model.learn(15)
        assert 1 <= model._n_updates <= 20


def test_dict_observations_have_no_n_step_returns():
    for settings, _ in sample(5, dict_observations=True):
        settings["policy_kwargs"]["features_extractor_kwargs"] = {"cnn_output_dim": 8}
        assert "n_steps" not in settings
        ScratchDDPG("MultiInputPolicy", PointEnv("dict"), buffer_size=50, device="cpu", **settings)


def test_where_nothing_is_to_be_normalized_it_is_not_sampled():
    for settings, trial in sample(5, NO_HER | {"may_normalize": False}):
        assert "normalize_observations" not in trial.params
        settings["policy_kwargs"]["features_extractor_kwargs"] = {"features_dim": 8}
        ScratchDDPG("CnnPolicy", PointEnv("image"), buffer_size=50, device="cpu", **settings)


def test_her_is_sampled_over_what_was_set():
    her = {"using_her_replay_buffer": True, "her_kwargs": {"copy_info_dict": True, "n_sampled_goal": 9}}
    for settings, trial in sample(5, her):
        kwargs = settings["replay_buffer_kwargs"]
        assert "n_steps" not in settings
        assert kwargs["copy_info_dict"] is True
        assert kwargs["n_sampled_goal"] == trial.params["n_sampled_goal"] <= 5
        assert kwargs["goal_selection_strategy"] in ("final", "episode", "future")


def test_what_is_fixed_is_not_sampled():
    fixed = {"learning_rate": 1e-3, "gamma": 0.9, "batch_size": 32, "gradient_steps": 4, "noise_type": "normal"}
    fixed |= {"policy_kwargs": {"net_arch": [16, 16]}}
    for settings, trial in sample(20, NO_HER | {"fixed": fixed}):
        assert set(settings) == {"qf_learning_rate", "tau", "max_grad_norm", "n_steps", "policy_kwargs"}
        assert set(settings["policy_kwargs"]) == {"norm", "action_layer", "normalize_observations"}
        assert not {"learning_rate", "one_minus_gamma", "batch_size_pow", "net_arch", "noise_kind"} & set(trial.params)
    (settings, _), *_ = sample(1, NO_HER | {"fixed": {"action_noise": "ou", "train_freq": 2}})
    assert not {"action_noise", "train_freq", "gradient_steps"} & set(settings)


@pytest.mark.parametrize("part", ["norm", "action_layer", "optimizer_class"])
def test_residual_networks_are_sampled_where_they_fit_what_is_fixed(part):
    fixed = {"norm": "layer", "action_layer": 1, "optimizer_class": th.optim.RMSprop}[part]
    layers = [settings["policy_kwargs"] for settings, _ in sample(40, NO_HER | {"fixed": {"policy_kwargs": {part: fixed}}})]
    assert {len(layer["net_arch"]) for layer in layers} == {2, 3}
    assert not any("scale_factor" in layer or part in layer for layer in layers)


def test_residual_policies_get_residual_networks():
    for settings, trial in sample(10, NO_HER | {"residual": True, "fixed": {"policy_kwargs": {"scale_factor": 2}}}):
        assert set(settings["policy_kwargs"]) == {"net_arch", "normalize_observations"}
        assert convert_scratch_ddpg_params(trial.params) == settings
        ScratchDDPG("SimbaPolicy", PointEnv(), buffer_size=50, device="cpu", **settings)


@pytest.mark.parametrize(("budget", "largest"), [(400, 32), (4_000, 128), (20_480, 1024), (1_000_000, 1024)])
def test_ranges_are_in_proportion_to_the_budget(budget, largest):
    made = sample(200, NO_HER | {"budget": budget})
    assert max(settings["batch_size"] for settings, _ in made) == largest
    steps = [trial.params["noise_decay_steps"] for _, trial in made]
    assert budget / 10 <= min(steps) < 0.2 * budget < 0.9 * budget < max(steps) <= budget


def test_a_search_space_of_ones_own():
    search = {"learning_rate": [1e-4, 1e-2, "log"], "train_freq": [1, 4, "linear"], "policy_kwargs.norm": [None, "layer"]}
    search["policy_kwargs.net_arch"] = [[8], [8, 8]]
    made = sample(60, NO_HER | {"search": search, "fixed": {"learning_rate": 1e-3}})
    for settings, trial in made:
        assert set(settings) == {"learning_rate", "train_freq", "gradient_steps", "policy_kwargs"}
        assert 1e-4 <= settings["learning_rate"] <= 1e-2
        assert convert_scratch_ddpg_params(trial.params) == settings
    assert {settings["train_freq"] for settings, _ in made} == {1, 2, 3, 4}
    assert {str(settings["policy_kwargs"]) for settings, _ in made} == {
        str({"norm": norm, "net_arch": layers}) for norm in (None, "layer") for layers in ([8], [8, 8])
    }
    check_search(search, "search")
    bad = [{}, [1], {"tau": 1}, {"tau": []}, {"tau": [2, 1, "log"]}, {"tau": [0, 1, "log"]}, {"tau": ["a", "b", "linear"]}]
    for space in bad:
        with pytest.raises(ArgumentError, match="search"):
            check_search(space, "search")
