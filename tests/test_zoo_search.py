"""The space that is tuned: every sample makes a model, and a stored trial makes the same settings again."""

import optuna
import pytest
from conftest import PointEnv

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.updates import UPDATERS
from sb3_ddpg_scratch.validation import check_arguments
from sb3_ddpg_scratch.zoo import convert_scratch_ddpg_params, sample_scratch_ddpg_params

NO_HER = {"using_her_replay_buffer": False, "her_kwargs": {}}


def sample(number, additional_args=NO_HER, dict_observations=False):
    """(settings, trial) for each of a number of random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    samples = []
    for _ in range(number):
        trial = study.ask()
        trial.set_user_attr("dict_observations", dict_observations)
        samples.append((sample_scratch_ddpg_params(trial, 2, 1, dict(additional_args)), trial))
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
    assert {policy.get("action_layer") for policy in policies} == {None, 0, 1}
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
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(5):
        trial = study.ask()
        trial.set_user_attr("may_normalize", False)
        settings = sample_scratch_ddpg_params(trial, 2, 1, dict(NO_HER))
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
