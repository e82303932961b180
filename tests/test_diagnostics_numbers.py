"""The numbers behind the report: over-estimation, signs of divergence, and the summary in words."""

import math

import numpy as np
import pytest
from conftest import PointEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic
from sb3_ddpg_scratch.diagnostics.divergence import DivergenceWatch, largest_return
from sb3_ddpg_scratch.diagnostics.overestimation import compare_episode, discounted_returns, evaluate
from sb3_ddpg_scratch.diagnostics.recording_reader import COLUMNS, Recording
from sb3_ddpg_scratch.diagnostics.run_summary import in_words, moving_average, summarize
from sb3_ddpg_scratch.report.formatting import duration, number, span


def test_discounted_returns_in_closed_form():
    assert discounted_returns([1.0, 1.0, 1.0], 0.5).tolist() == [1.75, 1.5, 1.0]
    # A reward of 1 for ever is worth 1 / (1 - gamma): with the tail's worth put in, so is every step of it.
    np.testing.assert_allclose(discounted_returns([1.0] * 7, 0.9, tail_value=10.0), 10.0)
    assert discounted_returns([], 0.9).shape == (0,)


def test_comparison_of_an_episode():
    q_values = np.array([5.0, 4.0, 3.0])
    ended = compare_episode(q_values, [1.0, 1.0, 1.0], 0.5, None)
    assert ended == (4.0, pytest.approx((1.75 + 1.5 + 1) / 3), 0.0, 3)
    # Cut off: tail weights are 1/8, 1/4 and 1/2, none above one half.
    cut = compare_episode(q_values, [1.0, 1.0, 1.0], 0.5, 8.0)
    assert cut == (4.0, pytest.approx((2.75 + 3.5 + 5) / 3), pytest.approx(7 / 24), 3)
    # With gamma 0.9 all weights are above one half: only the first state is compared.
    assert compare_episode(q_values, [1.0, 1.0, 1.0], 0.9, 10.0) == (5.0, pytest.approx(10.0), pytest.approx(0.729), 1)


@pytest.mark.parametrize("normalized", [False, True])
def test_evaluation_plays_the_policy_without_noise(normalized):
    training = make_vec_env(PointEnv, seed=1)
    training = VecNormalize(training) if normalized else training
    model = ScratchDDPG(
        "MlpPolicy", training, gamma=0.8, seed=0, device="cpu", buffer_size=200, policy_kwargs={"net_arch": [8]}
    )
    model.learn(60)
    normalize = model.get_vec_normalize_env()
    env = make_vec_env(PointEnv, seed=2)
    comparison, return_mean = evaluate(ActorCritic(model), env, 1, normalize)

    same = PointEnv()
    observation, _ = same.reset(seed=2)
    rewards, q_values = [], []
    scale = 1.0 if normalize is None else 1 / np.sqrt(normalize.ret_rms.var + normalize.epsilon)

    def look(observation):
        observation = observation if normalize is None else normalize.normalize_obs(observation)
        action, _ = model.predict(observation, deterministic=True)
        batch, _ = model.policy.obs_to_tensor(observation)
        return action, model.critic(batch, model.actor(batch))[0].item()

    truncated = False
    while not truncated:
        action, q_value = look(observation)
        observation, reward, _, truncated, _ = same.step(action)
        rewards.append(reward)
        q_values.append(q_value)
    tail = look(observation)[1]
    weights = 0.8 ** np.arange(20, 0, -1)
    obtained = [
        scale * np.dot(rewards[t:], 0.8 ** np.arange(20 - t)) + weights[t] * tail for t in range(20) if weights[t] <= 0.5
    ]
    assert comparison.states == len(obtained) == 17
    assert comparison.discounted_return == pytest.approx(np.mean(obtained), rel=1e-4)
    assert comparison.q == pytest.approx(np.mean(q_values[:17]), rel=1e-4)
    assert return_mean == pytest.approx(sum(rewards), rel=1e-5)


HEALTHY = {"q_abs_mean": 5.0, "saturated": 0.2, "actor_grad_norm": 0.1, "critic_loss": 1.0}


def test_signs_of_divergence_are_said_once_after_three_measurements():
    watch = DivergenceWatch(actor_size=100, epsilon=1e-8)
    bound = largest_return(2.0, 0.9)
    assert bound == pytest.approx(20)
    assert largest_return(1.0, 1.0) == math.inf
    for _ in range(5):
        assert watch.look(HEALTHY, bound) == {}
    growing = [watch.look(HEALTHY | {"q_abs_mean": size}, bound) for size in (21.0, 25.0, 30.0, 40.0)]
    assert [list(findings) for findings in growing] == [[], [], ["q_beyond_bound"], []]
    assert "30" in growing[2]["q_beyond_bound"]
    assert "20" in growing[2]["q_beyond_bound"]
    assert watch.active == {"q_beyond_bound"}
    watch.look(HEALTHY, bound)
    assert watch.active == set()


def test_a_critic_that_shrinks_into_the_bound_is_not_called_diverging():
    watch = DivergenceWatch(100, 1e-8)
    for size in (30.0, 28.0, 26.0, 24.0, 22.0, 19.0):
        assert watch.look(HEALTHY | {"q_abs_mean": size}, 20.0) == {}
    # No reward but 0 seen yet: nothing is known of the largest return.
    for size in (1.0, 2.0, 3.0, 4.0):
        assert watch.look(HEALTHY | {"q_abs_mean": size}, 0.0) == {}


def test_saturated_vanished_and_not_finite():
    watch = DivergenceWatch(100, 1e-8)
    stuck = HEALTHY | {"saturated": 1.0, "actor_grad_norm": 0.9e-7}
    said = [name for _ in range(4) for name in watch.look(stuck, 20.0)]
    assert said == ["saturated", "vanished_gradient"]
    alive = DivergenceWatch(100, 1e-8)
    assert [alive.look(HEALTHY | {"actor_grad_norm": 1.1e-7}, 20.0) for _ in range(4)] == [{}] * 4
    ((name, text),) = watch.look(HEALTHY | {"critic_loss": math.nan}, 20.0).items()
    assert name == "not_finite"
    assert "critic_loss" in text


def test_moving_average():
    values = np.array([4.0, 2.0, 0.0, -2.0])
    assert moving_average(values, 2).tolist() == [4, 3, 1, -1]
    assert moving_average(values, 10).tolist() == [4, 3, 2, 1]
    assert moving_average(np.array([])).shape == (0,)


def recording_of(returns, q=(), obtained=(), saturated=(), ended=True, warnings=(), noise_free=0):
    def table(kind, **columns):
        rows = max([len(column) for column in columns.values()], default=0)
        empty = {name: np.full(rows, np.nan) for name in COLUMNS[kind]}
        return (
            empty
            | {"step": 200.0 * np.arange(1, rows + 1)}
            | {name: np.array(column, float) for name, column in columns.items()}
        )

    tables = {
        "episode": table("episode", **{"return": returns}),
        "evaluation": table("evaluation", q=q, discounted_return=obtained, noise_free=[noise_free] * len(q)),
        "update": table("update", saturated=saturated, seconds=[5.0] * len(saturated)),
    }
    return Recording("x", {}, tables, warnings=list(warnings), ended=ended)


def test_summary_by_hand():
    recording = recording_of(
        [-100.0, -102.0] * 5 + [-50.0] * 3 + [-10.0, -12.0] * 5, [0, -5, -6, -7], [0, -10, -10, -10], [1, 0, 0, 0.6]
    )
    summary = summarize(recording)
    assert (summary.steps, summary.episodes, summary.first_return, summary.last_return) == (4600, 23, -101, -11)
    assert summary.overestimation == pytest.approx(4)
    assert summary.saturated == pytest.approx(0.2)
    # An evaluation without noise is of many states: the last one alone counts.
    evaluated = summarize(recording_of([1.0], [0, -5, -7], [0, -10, -10], noise_free=1))
    assert (evaluated.overestimation, evaluated.noise_free) == (3, True)
    words = in_words(recording, summary)
    assert "4,600 steps (23 episodes) in 5\u00a0s" in words
    assert "The return rose from −101 to −11." in words
    assert "promises more than is obtained: −6 against −10, off by 40%" in words
    assert "No sign of divergence." in words


def test_words_do_not_claim_more_than_there_is():
    alike = recording_of([0.0, 10.0] * 10)
    assert "hardly changed" in in_words(alike, summarize(alike))
    fell = recording_of([0.0, 1.0] * 5 + [-10.0, -11.0] * 5, ended=False)
    assert "The return fell" in in_words(fell, summarize(fell))
    assert "Not finished" in in_words(fell, summarize(fell))
    assert "Nothing was measured" in in_words(fell, summarize(fell))
    few = recording_of([1.0])
    assert "too few episodes" in in_words(few, summarize(few))
    none = recording_of([])
    assert "No episode ended" in in_words(none, summarize(none))
    warned = recording_of([1.0], saturated=[1.0], warnings=[{"step": 1, "name": "saturated", "text": ""}])
    assert "a sign of divergence: see below" in in_words(warned, summarize(warned))
    right = recording_of([1.0] * 20, [-10.4], [-10.0])
    assert "about right" in in_words(right, summarize(right))


def test_numbers_as_they_are_written():
    assert [number(value) for value in (-1234.5, 0.001234, 12.3456, 0.0, -1e-9, math.nan, math.inf)] == [
        "−1,234",
        "0.00123",
        "12.3",
        "0",
        "−1e−09",
        "–",
        "∞",
    ]
    assert number(3.0, sign=True) == "+3"
    assert [duration(seconds) for seconds in (5, 600, 9000)] == ["5\u00a0s", "10\u00a0min", "2.5\u00a0h"]
    assert [span(counts) for counts in ([], [3, 3], [5, 2, 3])] == ["no", "3", "2 to 5"]
