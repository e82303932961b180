"""RL Zoo's experiment manager for ScratchDDPG: registration, settings that become a model, continuing, diverged trials."""

import argparse
import shlex
import subprocess
import sys

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from torch import nn

from sb3_ddpg_scratch import ArgumentError, DivergenceError, GaussianNoise, OUNoise, ScratchDDPG
from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from sb3_ddpg_scratch.learning_rates import learning_rates
from sb3_ddpg_scratch.zoo import ALGO, ScratchExperimentManager, register
from sb3_ddpg_scratch.zoo.train import train_parser
from sb3_ddpg_scratch.zoo.yaml_settings import default_file, read_settings

gym.register("BitFlip-v0", lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=8))

TINY = {"n_timesteps": 60, "policy": "MlpPolicy", "learning_starts": 10, "batch_size": 8, "buffer_size": 500}


def manager_for(tmp_path, config, env_id="Pendulum-v1", params=None, **options):
    from rl_zoo3.exp_manager import ExperimentManager

    arguments = argparse.Namespace(algo=ALGO, env=env_id, env_kwargs=None)
    options = {"seed": 3, "verbose": 0, "eval_freq": -1, "device": "cpu", "log_interval": -1} | options
    manager = ExperimentManager(
        arguments, ALGO, env_id, str(tmp_path / "logs"), hyperparams=params, config=config and str(config), **options
    )
    assert type(manager) is ScratchExperimentManager
    return manager


def write_yaml(tmp_path, settings, section="default"):
    path = tmp_path / "settings.yml"
    path.write_text(yaml.safe_dump({section: TINY | settings}))
    return path


def model_of(tmp_path, settings, **options):
    experiment = manager_for(tmp_path, write_yaml(tmp_path, settings), **options).setup_experiment()
    assert experiment is not None
    return experiment[0]


def test_registered_in_every_map_however_it_was_imported():
    """Imported before or after ours, every module of the Zoo sees the algorithm and hands out our manager."""
    code = (
        "import argparse\n"
        "from rl_zoo3 import ALGOS as first\n"
        "from rl_zoo3.exp_manager import ExperimentManager\n"
        "import sb3_ddpg_scratch.zoo\n"
        "import rl_zoo3.enjoy, rl_zoo3.exp_manager, rl_zoo3.load_from_hub, rl_zoo3.train, rl_zoo3.utils, sys\n"
        "zoo = [module for name, module in sys.modules.items() if name.startswith('rl_zoo3')]\n"
        "holders = [module for module in zoo if hasattr(module, 'ALGOS')]\n"
        "assert len(holders) >= 5, holders\n"
        "assert all(module.ALGOS['scratch_ddpg'] is sb3_ddpg_scratch.ScratchDDPG for module in holders)\n"
        "for name in ('HYPERPARAMS_SAMPLER', 'HYPERPARAMS_CONVERTER'):\n"
        "    assert all('scratch_ddpg' in getattr(module, name) for module in zoo if hasattr(module, name))\n"
        "assert 'scratch_ddpg' in first\n"
        "def make(algo, env): return ExperimentManager(argparse.Namespace(), algo, env, 'logs')\n"
        "assert type(make('scratch_ddpg', 'Pendulum-v1')) is sb3_ddpg_scratch.zoo.ScratchExperimentManager\n"
        "assert type(make('ppo', 'CartPole-v1')) is ExperimentManager\n"
        "assert make('ddpg', 'Pendulum-v1').config.endswith('rl_zoo3/hyperparams/ddpg.yml')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_again_changes_nothing(tmp_path):
    register()
    register()
    assert manager_for(tmp_path, None).config == str(default_file())


def test_settings_become_a_model(tmp_path):
    model = model_of(
        tmp_path,
        {
            "learning_rate": "1e-4",
            "qf_learning_rate": "lin_2e-3",
            "action_noise": {"type": "ou", "sigma": 0.3, "final_sigma": 0.1, "decay_steps": 40},
            "train_freq": [1, "episode"],
            "gradient_steps": -1,
            "max_grad_norm": 0.5,
            "policy_kwargs": {
                "net_arch": {"pi": [8], "qf": [16, 12]},
                "activation_fn": "tanh",
                "norm": "layer",
                "action_layer": 1,
            },
        },
    )
    assert isinstance(model, ScratchDDPG)
    assert [learning_rates(model, left) for left in (1.0, 0.5, 0.0)] == [(1e-4, 2e-3), (1e-4, 1e-3), (1e-4, 0.0)]
    assert isinstance(model.action_noise, OUNoise)
    assert model.action_noise.decay_steps == 40
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (1, "episode")
    layers = {name: [type(layer) for layer in net] for name, net in (("pi", model.actor.mu), ("qf", model.critic.qf0))}
    assert layers["pi"] == [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear, nn.Tanh]
    assert layers["qf"] == [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear, nn.LayerNorm, nn.Tanh, nn.Linear]
    assert [layer.in_features for layer in model.critic.qf0 if isinstance(layer, nn.Linear)] == [3, 17, 12]


def test_texts_of_the_zoos_own_files_are_understood_and_never_run(tmp_path):
    text = "dict(net_arch=dict(pi=[8], qf=[9]), activation_fn=nn.ELU)"
    model = model_of(
        tmp_path, {"policy_kwargs": text, "noise_type": "normal", "noise_std": 0.1, "normalize": "dict(norm_obs=True)"}
    )
    assert model.policy.activation_fn is nn.ELU
    assert model.actor.mu[0].out_features == 8
    assert model.get_vec_normalize_env() is not None
    saved = yaml.load(
        (tmp_path / "logs" / ALGO / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml").read_text(), yaml.UnsafeLoader
    )
    assert saved["normalize"] == {"norm_obs": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"policy_kwargs": "open('ran', 'w')"},
        {"policy_kwargs": "dict(net_arch=[len(open('ran', 'w').name)])"},
        {"normalize": "__import__('os').mkdir('ran')"},
        {"replay_buffer_class": "open('ran', 'w')"},
        {"replay_buffer_kwargs": "open('ran', 'w')"},
        {"monitor_kwargs": "open('ran', 'w')"},
    ],
)
def test_code_in_a_file_is_refused(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        model_of(tmp_path, settings)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["linear_1e-3", "lin", "lin_fast", "lin_-1", "fast"])
@pytest.mark.parametrize("key", ["learning_rate", "qf_learning_rate"])
def test_bad_schedule_is_named(tmp_path, key, text):
    with pytest.raises(ArgumentError, match=rf"settings.yml: default: {key} must be .*lin_1e-3.*, got '{text}'"):
        model_of(tmp_path, {key: text})


def test_unknown_key_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ArgumentError, match=r"settings\.yml: Pendulum-v1: key must be .*, got 'taw'.*'tau'"):
        manager_for(tmp_path, write_yaml(tmp_path, {"taw": 1}, "Pendulum-v1")).setup_experiment()
    with pytest.raises(ArgumentError, match=r"-params over .*settings\.yml: default: key must be .*, got 'taw'"):
        manager_for(tmp_path, write_yaml(tmp_path, {}), params={"taw": 1}).setup_experiment()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "env_id", [name for name in read_settings(default_file()) if name in gym.registry and not name.endswith("-v4")]
)
def test_shipped_settings_build(tmp_path, monkeypatch, env_id):
    monkeypatch.chdir(tmp_path)  # where MuJoCo leaves its log
    settings = read_settings(default_file())[env_id]
    manager = manager_for(tmp_path, None, env_id, {"buffer_size": 200})
    model = manager.setup_experiment()[0]
    model.env.close()
    assert manager.n_timesteps == settings["n_timesteps"]
    noise, layers = settings["action_noise"], settings["policy_kwargs"]["net_arch"]
    assert type(model.action_noise) is {"ou": OUNoise, "gaussian": GaussianNoise}[noise["type"]]
    assert np.all(model.action_noise.sigma == noise["sigma"])
    hidden = [layer.out_features for layer in model.actor.mu if isinstance(layer, nn.Linear)][:-1]
    assert hidden == (layers["pi"] if isinstance(layers, dict) else layers)


def test_a_search_starts_from_what_the_file_fixes(tmp_path):
    settings = {"tau": 0.01, "policy_kwargs": {"net_arch": [5]}}
    settings["search"] = {"learning_rate": ["1e-4", "1e-2", "log"], "policy_kwargs.norm": [None, "layer"]}
    assert model_of(tmp_path, settings).tau == 0.01  # which takes no notice of the search
    options = {"optimize_hyperparameters": True, "eval_freq": 20, "n_evaluations": None}
    manager = manager_for(tmp_path, write_yaml(tmp_path, settings), **options)
    assert manager.setup_experiment() is None
    assert manager.n_evaluations == 3
    trial = optuna.create_study().ask()
    sampled = manager.sample(trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
    assert sampled["policy_kwargs"] == {
        "net_arch": [5],
        "norm": None if trial.params["policy_kwargs.norm"] == "null" else "layer",
    }
    assert set(sampled) == {"learning_rate", "policy_kwargs"}
    with pytest.raises(ArgumentError, match=r"settings.yml: default: search: key must be .*, got 'taw'.*'tau'"):
        model_of(tmp_path, {"search": {"taw": [1e-3, 1e-2, "log"]}})


@pytest.mark.parametrize(
    ("normalize", "own", "said"),
    [
        (True, False, "are normalized"),
        ({"norm_obs": False}, False, "are not normalized"),
        ({"norm_obs": False}, True, "are normalized"),
        (False, True, "are normalized"),
    ],
)
def test_what_normalizes_observations_is_known(tmp_path, capsys, normalize, own, said):
    settings = {"normalize": normalize, "policy_kwargs": {"net_arch": [4], "normalize_observations": own}}
    manager = manager_for(tmp_path, write_yaml(tmp_path, settings), verbose=1)
    manager.setup_experiment()
    assert f"observations {said}." in capsys.readouterr().out
    assert manager._may_normalize == (normalize is not True)


@pytest.mark.parametrize("settings", [{"policy": "SimbaPolicy"}, {"policy_kwargs": {"scale_factor": 2}}, {}])
def test_a_search_knows_residual_networks(tmp_path, settings):
    manager = manager_for(tmp_path, write_yaml(tmp_path, settings), optimize_hyperparameters=True)
    manager.setup_experiment()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), direction="maximize")
    study.enqueue_trial({"net_arch": "simba"})
    trial = study.ask()
    sampled = manager.sample(trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
    assert ("net_arch" in trial.params) == ("norm" in trial.params) == (not settings)
    assert isinstance(sampled["policy_kwargs"]["net_arch"], dict)
    study.tell(trial, 1.0)
    # What the command says is what the trial trained with.
    parsed = train_parser().parse_args(shlex.split(manager.command_of_best())[2:])
    assert parsed.hyperparams["policy_kwargs"] == sampled["policy_kwargs"]


def test_her_settings_train(tmp_path):
    path = tmp_path / "her.yml"
    her = {"n_timesteps": 60, "policy": "MultiInputPolicy", "replay_buffer_class": "HerReplayBuffer"}
    her["replay_buffer_kwargs"] = {"n_sampled_goal": 4, "goal_selection_strategy": "future"}
    path.write_text(yaml.safe_dump({"default": her}))
    tiny = {"learning_starts": 20, "batch_size": 8, "buffer_size": 500, "policy_kwargs": {"net_arch": [8]}}
    manager = manager_for(tmp_path, path, "BitFlip-v0", tiny, n_timesteps=60)
    model = manager.setup_experiment()[0]
    manager.learn(model)
    assert type(model.replay_buffer) is PackedHerReplayBuffer
    assert model.replay_buffer_class is HerReplayBuffer
    assert (model.replay_buffer.n_sampled_goal, model.replay_buffer.goal_selection_strategy.name) == (4, "FUTURE")
    assert model._n_updates > 0


def continued(tmp_path, settings, params=None):
    """A model trained for 60 steps, saved, and continued by another experiment with other settings."""
    manager = manager_for(tmp_path, write_yaml(tmp_path, settings))
    model = manager.setup_experiment()[0]
    manager.learn(model)
    manager.save_trained_model(model)
    agent = f"{manager.save_path}/Pendulum-v1.zip"
    again = manager_for(tmp_path, write_yaml(tmp_path, settings), params=params, trained_agent=agent)
    return model, again, again.setup_experiment()[0]


def test_continued_agent_keeps_its_noise(tmp_path):
    noise = {"type": "ou", "sigma": 0.3, "final_sigma": 0.1, "decay_steps": 1000}
    model, manager, loaded = continued(tmp_path, {"action_noise": noise, "qf_learning_rate": "lin_1e-3"})
    assert model.action_noise.num_steps == loaded.action_noise.num_steps == 60
    assert np.array_equal(loaded.action_noise.state, model.action_noise.state)
    manager.learn(loaded)
    assert loaded.action_noise.num_steps == 120
    assert loaded._n_updates == 2 * model._n_updates


@pytest.mark.parametrize("noise", [None, "gaussian", {"type": "ou", "sigma": 0.4}])
def test_continued_agent_gets_another_noise_if_asked(tmp_path, noise):
    _, _, loaded = continued(tmp_path, {"action_noise": {"type": "ou", "sigma": 0.3}}, {"action_noise": noise})
    found = loaded.action_noise
    expected = {"gaussian": (GaussianNoise, 0.1), "None": (type(None), None)}.get(str(noise), (OUNoise, 0.4))
    assert (type(found), None if found is None else found.sigma.item()) == expected


def test_continued_agent_keeps_its_n_step_returns(tmp_path):
    masks = {"handle_timeout_termination": False}
    _, _, loaded = continued(tmp_path, {"n_steps": 3, "gamma": 0.9, "replay_buffer_kwargs": masks})
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma) == (3, 0.9)


def test_diverged_trial_is_pruned(tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise DivergenceError("critic_loss=nan")

    monkeypatch.setattr(ScratchDDPG, "train", diverge)
    path = write_yaml(tmp_path, {})
    manager = manager_for(tmp_path, path, optimize_hyperparameters=True, n_evaluations=1, n_eval_episodes=1)
    assert manager.setup_experiment() is None
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(manager.objective, n_trials=1)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED]
