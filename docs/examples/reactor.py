"""A stirred-tank reactor with an exothermic reaction, which runs away when it gets too hot."""

import gymnasium as gym
import numpy as np

LITERS, HEAT_CAPACITY, HEAT_OF_REACTION, COOLING = 100.0, 239.0, 5e4, 7e4  # L, J/(L K), J/mol, J/(min K)
FEED_CONCENTRATION, MINUTES, SUBSTEPS, TOO_HOT = 1.0, 0.1, 20, 400.0  # mol/L, a step's length, K


class Reactor(gym.Env):
    """
    Hold the concentration of A at a setpoint, by the feed and the jacket's temperature.

    An episode is 20 minutes long, in 200 steps; above 400 K it ends as a runaway, with a reward of -20.
    """

    metadata = {  # noqa: RUF012
        "render_modes": [],
        "observation_names": [
            *("concentration [mol/L]", "setpoint [mol/L]", "temperature [K]", "jacket [K]", "feed temperature [K]"),
            *("pressure [Pa]", "heat of reaction [kW]"),
        ],
        "action_names": ["feed [L/min]", "jacket setpoint [K]"],
    }
    observation_space = gym.spaces.Box(-np.inf, np.inf, (7,), np.float32)
    action_space = gym.spaces.Box(np.array([80.0, 280.0], np.float32), np.array([130.0, 330.0], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random.uniform
        self.setpoint, self.feed_temperature = draw(0.4, 0.6), draw(347.0, 353.0)
        self.concentration, self.temperature, self.jacket = draw(0.4, 0.6), draw(345.0, 355.0), 314.0
        return self._observe(), {}

    def step(self, action):
        feed, jacket_setpoint = (float(value) for value in action)
        for _ in range(SUBSTEPS):
            rate, dilution, dt = self._rate(), feed / LITERS, MINUTES / SUBSTEPS
            cooling = COOLING * (self.jacket - self.temperature) / (LITERS * HEAT_CAPACITY)
            warming = dilution * (self.feed_temperature - self.temperature) + cooling
            self.concentration += dt * (dilution * (FEED_CONCENTRATION - self.concentration) - rate)
            self.temperature += dt * (warming + rate * HEAT_OF_REACTION / HEAT_CAPACITY)
            self.jacket += dt * (jacket_setpoint - self.jacket) / 0.3
            if self.temperature > TOO_HOT:
                break
        runaway = bool(self.temperature > TOO_HOT)
        reward = -20.0 if runaway else -10 * abs(self.concentration - self.setpoint)
        return self._observe(), reward, runaway, False, {"runaway": runaway}

    def _rate(self):
        """Of the reaction, in mol/(L min): Arrhenius' law."""
        return 7.2e10 * np.exp(-8750.0 / self.temperature) * self.concentration

    def _observe(self):
        pressure = 3e5 * np.exp(5000.0 * (1 / 373.0 - 1 / self.temperature))
        heat = LITERS * HEAT_OF_REACTION * self._rate() / 60e3
        state = [self.concentration, self.setpoint, self.temperature, self.jacket, self.feed_temperature, pressure, heat]
        return np.array(state, np.float32)


gym.register("Reactor-v0", entry_point=Reactor, max_episode_steps=200)
