"""A heated tank, the PI controller that has run it so far, and the log of that."""

import gymnasium as gym
import numpy as np

SECONDS, STEPS = 10.0, 100  # a step's length, and an episode's
GAIN, LAG, AMBIENT = 0.8, 200.0, 20.0  # K per % of power, s, deg C
PROPORTIONAL, INTEGRAL = 3.0, 0.03  # of the controller, %/K and %/(K s)


class Heater(gym.Env):
    """
    Bring the water to a setpoint, which changes once in an episode, while somebody draws hot water now and then. A step's
    reward is 1 minus a fifth of the error in K, but at least -1.
    """

    metadata = {  # noqa: RUF012
        "render_modes": [],
        "observation_names": [
            *("water [C]", "setpoint [C]", "integral of the error [K s]"),
        ],
        "action_names": ["power [%]"],
    }
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(0.0, 100.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random.uniform
        self.setpoint, self.water = draw(40.0, 60.0), draw(35.0, 60.0)
        self.integral, self.steps = (self.water - AMBIENT) / GAIN / INTEGRAL, 0
        return self._observe(), {}

    def step(self, action):
        self.water += SECONDS / LAG * (AMBIENT + GAIN * float(action[0]) - self.water)
        if self.np_random.random() < 0.03:
            self.water -= 5.0
        error = self.setpoint - self.water
        self.integral = float(np.clip(self.integral + SECONDS * error, 0.0, 100.0 / INTEGRAL))
        self.steps += 1
        if self.steps == STEPS // 2:
            self.setpoint = self.np_random.uniform(40.0, 60.0)
        return self._observe(), max(1.0 - abs(error) / 5.0, -1.0), False, self.steps == STEPS, {}

    def _observe(self):
        return np.array([self.water, self.setpoint, self.integral], np.float32)


def controller(observation):
    """PI: the power for an observation."""
    water, setpoint, integral = observation
    return np.clip([PROPORTIONAL * (setpoint - water) + INTEGRAL * integral], 0.0, 100.0)


def run(policy, episodes, seed=0, corrections=0.0):
    """
    What a plant's log has: a row for each step of these episodes. ``corrections`` is the standard deviation, in %, of what
    operators add to the power.
    """
    env, rows, rng = Heater(), [], np.random.default_rng(seed)
    for episode in range(episodes):
        observation, over = env.reset(seed=seed + episode)[0], False
        while not over:
            action = np.clip(policy(observation) + corrections * rng.normal(size=1), 0.0, 100.0)
            following, reward, terminated, over, _ = env.step(action)
            rows.append((observation, action, reward, terminated, over, following))
            observation = following
    names = ("observations", "actions", "rewards", "terminations", "truncations", "next_observations")
    return dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))


def score(policy, episodes=20):
    """The mean return of episodes that are not in the log; ``policy`` is a function, or a model."""
    act = policy if callable(policy) else lambda observation: policy.predict(observation, deterministic=True)[0]
    return float(run(act, episodes, seed=10_000)["rewards"].sum() / episodes)


gym.register("Heater-v0", entry_point=Heater)


def table():
    """Print the table of the documentation: scores for three seeds, and the worst episode on the way."""
    import warnings

    from sb3_ddpg_scratch import ScratchDDPG

    warnings.simplefilter("ignore")
    policy = {"net_arch": [64, 64], "normalize_observations": True}
    settings = dict(policy_kwargs=policy, gamma=0.95, device="cpu", action_noise="gaussian")
    print("| Corrections | `bc_alpha` | offline | worst episode of `learn` | after it |", "|---|---|---|---|---|", sep="\n")
    for corrections in (0.0, 3.0, 10.0, None):
        for alpha in (None,) if corrections is None else (None, 0.0, 2.5):
            rows = []
            for seed in range(3):
                model = ScratchDDPG("MlpPolicy", Heater(), bc_alpha=alpha, demonstration_share=0.5, seed=seed, **settings)
                offline = np.nan
                if corrections is not None:
                    model.add_transitions(run(controller, 50, corrections=corrections))
                    offline = score(model.learn_offline(5000))
                model.learn(2000)
                rows.append((offline, min(episode["r"] for episode in model.ep_info_buffer), score(model)))
            columns = (", ".join(f"{value:.0f}" for value in column) for column in zip(*rows, strict=True))
            print(f"| {corrections} | {alpha} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    table()
