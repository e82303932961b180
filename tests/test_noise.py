"""The noises against closed forms, and their contract with SB3's algorithms."""

import copy
import functools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)

from sb3_ddpg_scratch import ArgumentError, ColoredNoise, GaussianNoise, OUNoise, ScratchDDPG
from sb3_ddpg_scratch.noise import make_noise

SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 500, "learning_starts": 1000}


def paths(noise, steps: int) -> np.ndarray:
    return np.array([noise() for _ in range(steps)], dtype=np.float64)


@pytest.mark.parametrize(("theta", "dt", "sigma"), [(0.15, 1.0, 0.2), (0.15, 0.01, 0.2), (0.5, 1.0, 1.0)])
def test_ou_matches_its_closed_form(theta, dt, sigma):
    """An AR(1) process of coefficient c = 1 - theta dt: variance after k steps, stationary limit, autocorrelation."""
    noise = OUNoise(np.zeros(1), sigma, theta, dt, seed=0)
    noise.set_n_envs(20_000)
    decay = 1 - theta * dt
    history = paths(noise, 60)[:, :, 0]
    for k in (1, 2, 10, 60):
        variance = sigma**2 * dt * (1 - decay ** (2 * k)) / (1 - decay**2)
        # The standard error of a variance over n draws is variance * sqrt(2 / n): four of them.
        assert history[k - 1].var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 20_000))
        assert abs(history[k - 1].mean()) < 4 * np.sqrt(variance / 20_000)
    for lag in (1, 5, 20):
        expected = decay**lag * np.sqrt((1 - decay ** (2 * (60 - lag))) / (1 - decay**120))
        assert np.corrcoef(history[-1], history[-1 - lag])[0, 1] == pytest.approx(expected, abs=4 / np.sqrt(20_000))


def test_ou_reaches_the_stationary_variance():
    noise = OUNoise(np.zeros(1), 0.3, seed=1)
    noise.set_n_envs(50_000)
    last = paths(noise, 80)[-1]
    assert last.var() == pytest.approx(0.3**2 / (1 - 0.85**2), rel=4 * np.sqrt(2 / 50_000))


def test_ou_by_hand():
    """Without randomness x goes from 1 to the mean 3 by a quarter of the gap in each step of dt = 0.5, theta = 0.5."""
    noise = OUNoise(np.array([3.0]), 0.0, theta=0.5, dt=0.5, initial_noise=1.0)
    np.testing.assert_allclose(paths(noise, 3)[:, 0], [1.5, 1.875, 2.15625])
    noise.reset()
    assert noise()[0] == 1.5


def test_ou_is_sb3s_process_for_the_same_draws(monkeypatch):
    theirs = OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.3 * np.ones(2), theta=0.2, dt=0.01)
    ours = OUNoise(np.zeros(2), 0.3, theta=0.2, dt=0.01, seed=4)
    generator = copy.deepcopy(np.random.default_rng(np.random.SeedSequence([4])))
    monkeypatch.setattr(np.random, "normal", lambda size: generator.standard_normal((1, *size))[0])
    np.testing.assert_array_equal(paths(ours, 50), paths(theirs, 50))


def test_gaussian_has_its_moments_and_no_memory():
    noise = GaussianNoise(np.array([0.5, -1.0]), np.array([0.1, 2.0]), seed=0)
    draws = paths(noise, 40_000)
    np.testing.assert_allclose(draws.mean(0), [0.5, -1.0], atol=4 * 2 / np.sqrt(40_000))
    np.testing.assert_allclose(draws.std(0), [0.1, 2.0], rtol=4 / np.sqrt(2 * 40_000))
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 4 / np.sqrt(40_000)


def test_some_steps_are_random():
    """A step is random in all dimensions or in none; the others have the draws of plain noise."""
    noise = GaussianNoise([0.0, 0.0], 0.01, seed=0, random_probability=0.3)
    noise.set_n_envs(4)
    drawn = np.array([noise() for _ in range(5000)]).reshape(-1, 2)
    random = np.abs(drawn).max(axis=1) > 0.06
    # Uniform draws of which both are that small are one in a thousand.
    assert random.mean() == pytest.approx(0.3, abs=0.01)
    assert drawn[random].mean(axis=0) == pytest.approx([0, 0], abs=0.06)
    assert drawn[random].var(axis=0) == pytest.approx([4 / 3, 4 / 3], rel=0.05)
    assert drawn[~random].std(axis=0) == pytest.approx([0.01, 0.01], rel=0.05)
    assert abs(np.corrcoef(drawn[random].T)[0, 1]) < 0.05
    with pytest.raises(ArgumentError, match=r"random_probability must be a number in \[0, 1\], got 1.5"):
        GaussianNoise([0.0], 0.1, random_probability=1.5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_colored_noise_has_its_spectrum(beta):
    """At the frequency k / n the mean power is that at 1 / n, over k^beta; the variance is sigma^2 whatever beta is."""
    noise = ColoredNoise(np.zeros(1), 0.3, beta, length=64, seed=0)
    noise.set_n_envs(20_000)
    drawn = paths(noise, 64)[:, :, 0]
    # Of the noise alone: by the sum that defines a discrete Fourier transform.
    waves = np.exp(-2j * np.pi * np.outer(np.arange(33), np.arange(64)) / 64)
    power = (np.abs(waves @ drawn) ** 2).mean(axis=1)
    expected = power[1] / np.maximum(np.arange(33), 1.0) ** beta
    np.testing.assert_allclose(power[1:32], expected[1:32], rtol=5 / np.sqrt(20_000))
    # Real at both ends: twice the variance.
    np.testing.assert_allclose(power[[0, 32]], expected[[0, 32]], rtol=8 / np.sqrt(20_000))
    # Parseval: the powers of all 64 frequencies add up to 64^2 variances.
    assert (power.sum() + power[1:32].sum()) / 64**2 == pytest.approx(0.09, rel=0.02)
    np.testing.assert_allclose(drawn.var(axis=1), 0.09, rtol=6 * np.sqrt(2 / 20_000))


def test_a_sequence_lasts_for_its_length_or_an_episode():
    noise = ColoredNoise(np.zeros((2, 1)), 1.0, beta=2.0, length=50, seed=0)
    noise.set_n_envs(3)
    first = paths(noise, 50)
    second = paths(noise, 20)
    # Red noise moves little from one step to the next, and anywhere with a new sequence.
    moved = np.abs(np.diff(np.concatenate([first, second]), axis=0)).mean(axis=(1, 2, 3))
    assert moved[49] > 2 * np.delete(moved, 49).max()
    expected = copy.copy(noise)
    expected.state, expected.used = noise.state.copy(), noise.used.copy()
    noise.reset(indices=[1])
    found, ongoing = noise(), noise.mean + expected.state[:, 20]
    np.testing.assert_allclose(found[[0, 2]], ongoing[[0, 2]], rtol=1e-6)
    assert (found[1] != ongoing[1]).all()
    np.testing.assert_array_equal(noise.used, [21, 1, 21])
    noise.reset_on_episode = False
    noise.reset()
    np.testing.assert_array_equal(noise.used, [21, 1, 21])
    noise.restart()
    assert (noise.used == 50).all()


def test_pink_noise_by_name_continues_after_saving(tmp_path):
    model = make_model(2, {"type": "pink", "sigma": 0.4, "final_sigma": 0.2, "decay_steps": 60, "length": 40}).learn(30)
    noise = model.action_noise
    assert (type(noise), noise.beta, noise.sigma[0]) == (ColoredNoise, 1.0, pytest.approx(0.3))
    assert len(set(noise.state[:, 0, 0])) == 2
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model").action_noise
    np.testing.assert_array_equal(paths(loaded, 20), paths(noise.of_one_env(), 20))


@pytest.mark.parametrize("noise_class", [OUNoise, GaussianNoise, functools.partial(ColoredNoise, beta=0.2)])
def test_dimensions_and_environments_are_independent(noise_class):
    noise = noise_class(np.zeros(3), 1.0, seed=2)
    noise.set_n_envs(4)
    columns = paths(noise, 20_000).reshape(20_000, 12)[::10]
    correlations = np.corrcoef(columns.T) - np.eye(12)
    # OU draws ten steps apart still correlate with themselves (0.2), which widens the spread by sqrt(1.08).
    assert np.abs(correlations).max() < 5 / np.sqrt(2_000)


def test_shapes_follow_the_environments():
    noise = OUNoise(np.zeros((2, 3)), 0.1)
    assert noise().shape == (2, 3)
    assert noise().dtype == np.float32
    noise.set_n_envs(5)
    assert noise().shape == (5, 2, 3)
    noise.set_n_envs(2)
    assert noise().shape == (2, 2, 3)
    noise.set_n_envs(1)
    assert noise().shape == (2, 3)


def test_reset_is_per_environment():
    noise = OUNoise(np.zeros(2), 0.5, initial_noise=np.array([1.0, -1.0]), seed=0)
    noise.set_n_envs(3)
    paths(noise, 10)
    before = noise.state.copy()
    noise.reset(indices=[1])
    np.testing.assert_array_equal(noise.state[1], [1.0, -1.0])
    np.testing.assert_array_equal(noise.state[[0, 2]], before[[0, 2]])
    noise.reset()
    np.testing.assert_array_equal(noise.state, [[1.0, -1.0]] * 3)


def test_without_reset_on_episode_only_restart_resets():
    noise = OUNoise(np.zeros(1), 0.0, initial_noise=1.0, reset_on_episode=False)
    assert noise()[0] == pytest.approx(0.85)
    noise.reset()
    assert noise()[0] == pytest.approx(0.85**2)
    noise.restart()
    assert noise()[0] == pytest.approx(0.85)


def test_sigma_changes_linearly_and_a_reset_does_not_undo_it():
    noise = GaussianNoise(np.zeros(1), 1.0, final_sigma=0.2, decay_steps=4)
    seen = []
    for _ in range(6):
        seen.append(noise.sigma[0])
        noise()
        noise.reset()
        noise.restart()
    np.testing.assert_allclose(seen, [1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_sigma_counts_the_steps_of_all_environments():
    noise = GaussianNoise(np.zeros(1), 1.0, final_sigma=0.0, decay_steps=100)
    noise.set_n_envs(10)
    paths(noise, 5)
    assert noise.sigma[0] == pytest.approx(0.5)


def test_the_drawn_spread_is_sigma():
    noise = GaussianNoise(np.zeros(1), 1.0, final_sigma=0.1, decay_steps=10_000)
    noise.set_n_envs(10_000)
    first, second = paths(noise, 2)
    assert first.std() == pytest.approx(1.0, rel=0.03)
    assert second.std() == pytest.approx(0.1, rel=0.03)


def test_seeds():
    assert np.array_equal(paths(OUNoise(np.zeros(2), 1.0, seed=3), 5), paths(OUNoise(np.zeros(2), 1.0, seed=3), 5))
    assert not np.array_equal(paths(OUNoise(np.zeros(2), 1.0, seed=3), 5), paths(OUNoise(np.zeros(2), 1.0, seed=4), 5))
    noise = OUNoise(np.zeros(2), 1.0, seed=3)
    noise.seed_from(9)
    assert np.array_equal(paths(noise, 5), paths(OUNoise(np.zeros(2), 1.0, seed=3), 5))


def test_unseeded_noise_follows_numpys_global_seed():
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        draws.append(paths(GaussianNoise(np.zeros(1), 1.0), 3))
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize("noise", [OUNoise(np.zeros(2), 1.0, seed=0), ColoredNoise(np.zeros(2), 1.0, length=3, seed=0)])
def test_a_pickle_continues_and_a_copy_diverges(noise):
    noise()
    twin, copied = pickle.loads(pickle.dumps(noise)), copy.deepcopy(noise)
    future = paths(noise, 5)
    np.testing.assert_array_equal(paths(twin, 5), future)
    assert not np.any(paths(copied, 5) == future)


@pytest.mark.parametrize("seed", [None, 5])
def test_in_sb3s_algorithm_every_environment_has_its_own_noise(seed):
    env = make_vec_env("Pendulum-v1", n_envs=3, seed=0)
    model = DDPG("MlpPolicy", env, action_noise=OUNoise(np.zeros(1), 0.3, seed=seed), seed=0, **SMALL).learn(60)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    sample = model.action_noise()
    assert sample.shape == (3, 1)
    assert len(np.unique(sample)) == 3


def test_sb3s_algorithm_seeds_the_noise():
    def actions():
        noise = GaussianNoise(np.zeros(1), 0.3)
        model = DDPG("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), action_noise=noise, seed=3, **SMALL).learn(30)
        return model.replay_buffer.actions[:30].copy()

    np.testing.assert_array_equal(actions(), actions())


def make_model(n_envs=1, noise="ou", seed=0, **extra):
    return ScratchDDPG(
        "MlpPolicy", make_vec_env("Pendulum-v1", n_envs=n_envs, seed=0), action_noise=noise, seed=seed, **SMALL, **extra
    )


def test_the_model_seeds_the_noise():
    runs = [make_model(seed=seed).learn(20).action_noise.state for seed in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_learning_again_continues_the_process():
    model = make_model()
    model.learn(30)
    state, steps = model.action_noise.state.copy(), model.action_noise.num_steps
    model._setup_learn(10, reset_num_timesteps=False)
    np.testing.assert_array_equal(model.action_noise.state, state)
    model._setup_learn(10, reset_num_timesteps=True)
    np.testing.assert_array_equal(model.action_noise.state, np.zeros((1, 1)))
    assert model.action_noise.num_steps == steps == 30


def test_the_end_of_an_episode_resets_the_process_or_not():
    """Pendulum's episodes are 200 steps long: right after them a process without randomness is at its beginning."""
    noise = {"type": "ou", "sigma": 0.0, "initial_noise": 1.0, "theta": 0.01}
    for reset, expected in ((True, 1.0), (False, 0.99**200)):
        model = make_model(2, noise | {"reset_on_episode": reset}).learn(400)
        np.testing.assert_allclose(model.action_noise.state, expected)


@pytest.mark.parametrize("noise", ["ou", "pink", "sb3"])
@pytest.mark.parametrize(("saved", "loaded"), [(1, 3), (3, 1), (3, 2)])
def test_size_follows_a_change_of_environments_after_loading(tmp_path, noise, saved, loaded):
    spec = NormalActionNoise(np.zeros(1), np.ones(1)) if noise == "sb3" else noise
    make_model(saved, spec).learn(30).save(tmp_path / "model")
    model = ScratchDDPG.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=loaded))
    model.learn(30)
    assert np.shape(model.action_noise()) == ((1,) if loaded == 1 else (loaded, 1))


@pytest.mark.parametrize("noise", ["ou", "gaussian", "pink"])
@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_sb3_trains_what_two_environments_trained(tmp_path, noise, n_envs):
    model = make_model(2, noise).learn(30)
    model.save(tmp_path / "model")
    assert np.shape(model.action_noise()) == (2, 1)
    loaded = DDPG.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=n_envs))
    loaded.num_timesteps = loaded.learning_starts = 0
    actions = loaded.learn(60).replay_buffer.actions[: 60 // n_envs]
    # Some are clipped to 1; copies of the same noise would leave at most 30.
    assert actions.size == 60
    assert len(np.unique(actions)) > 50


def test_saved_noise_continues_where_it_was(tmp_path):
    model = make_model(noise={"type": "ou", "sigma": 0.3, "final_sigma": 0.1, "decay_steps": 100}).learn(50)
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model")
    assert loaded.action_noise.sigma[0] == pytest.approx(0.2)
    np.testing.assert_array_equal(paths(loaded.action_noise, 5), paths(model.action_noise, 5))


def test_names_and_dicts():
    assert make_noise(None, (2,)) is None
    ou = make_noise("ou", (2,))
    assert (type(ou), ou.theta, ou.dt, list(ou.sigma), list(ou.mean)) == (OUNoise, 0.15, 1.0, [0.2, 0.2], [0, 0])
    gaussian = make_noise({"type": "gaussian", "sigma": [0.1, 0.3]}, (2,))
    assert (type(gaussian), list(gaussian.sigma)) == (GaussianNoise, [0.1, 0.3])
    assert type(make_noise("normal", (2,))) is GaussianNoise
    tch = make_noise({"type": "ou", "sigma": 0.1, "initial_noise": 1, "reset_on_episode": False}, (2,))
    assert list(tch.state[0]) == [1, 1]
    assert not tch.reset_on_episode


class Constant(ActionNoise):
    """A custom noise whose shape is unknown before it is called."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self):
        return self.value


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("oo", ["action_noise must be", "'oo'", "'ou'", "'gaussian'"]),
        ("gausian", ["Did you mean 'gaussian'?"]),
        (3, ["action_noise must be", "got 3."]),
        ({"sigma": 0.1}, ["type"]),
        ({"type": "ou", "sigm": 0.1}, ["sigm"]),
        ({"type": "pink", "beta": -1}, ["beta", "-1"]),
        ({"type": "colored", "length": 1}, ["length", "1"]),
        ({"type": "gaussian", "theta": 0.1}, ["theta"]),
        ({"type": "ou", "sigma": [0.1, 0.2]}, ["sigma", "(1,)"]),
        ({"type": "ou", "sigma": "much"}, ["sigma", "much"]),
        ({"type": "ou", "sigma": -0.1}, ["sigma", "at least 0"]),
        (OUNoise(np.zeros(2), 0.1), ["(1,)", "(2,)"]),
        (NormalActionNoise(np.zeros(3), np.ones(3)), ["(1,)", "(3,)"]),
        (OrnsteinUhlenbeckActionNoise(np.zeros(()), np.ones(1)), ["(1,)", "()"]),
    ],
)
def test_invalid_noise_is_rejected_at_construction(spec, words):
    with pytest.raises(ArgumentError) as error:
        make_model(noise=spec)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros(()), np.zeros((2, 1))])
def test_a_noise_is_never_broadcast(value):
    with pytest.raises(ArgumentError, match="of shape"):
        make_model(noise=Constant(value)).learn(10)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"theta": -1}, "theta"),
        ({"theta": 2.0}, "theta * dt"),
        ({"dt": 0}, "dt"),
        ({"sigma": np.nan}, "sigma"),
        ({"sigma": np.ones(3)}, "sigma"),
        ({"mean": np.array([np.inf, 0])}, "mean"),
        ({"initial_noise": np.zeros(3)}, "initial_noise"),
        ({"final_sigma": 0.1}, "decay_steps"),
        ({"decay_steps": 10}, "final_sigma"),
        ({"final_sigma": 0.1, "decay_steps": 0}, "decay_steps"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_arguments(arguments, word):
    with pytest.raises(ArgumentError, match=word.replace("*", r"\*")):
        OUNoise(**{"mean": np.zeros(2), "sigma": 0.1} | arguments)


@settings(max_examples=50, deadline=None)
@given(
    theta=st.floats(0, 1.9),
    sigma=st.floats(0, 5),
    n_envs=st.integers(1, 6),
    shape=st.lists(st.integers(1, 3), min_size=0, max_size=2).map(tuple),
)
def test_every_process_follows_the_recurrence(theta, sigma, n_envs, shape):
    """With any settings: each value is the last one, pulled toward the mean, plus sigma times the generator's draw."""
    noise = OUNoise(np.zeros(shape), sigma, theta, seed=1)
    noise.set_n_envs(n_envs)
    draws = np.random.default_rng(np.random.SeedSequence([1]))
    x = np.zeros((n_envs, *shape))
    for _ in range(4):
        x = (1 - theta) * x + sigma * draws.standard_normal((n_envs, *shape))
        expected = x if n_envs > 1 else x[0]
        np.testing.assert_allclose(noise(), expected, rtol=1e-5, atol=1e-6)
