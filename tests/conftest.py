"""Environments and helpers that several test files share."""

import multiprocessing
import shutil
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in `nohup make test &`: the tests of Ctrl-C, and the processes that they start, need Python's own handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What forked processes need not import: those of SB3's SubprocVecEnv, and those of ``commands``.
multiprocessing.set_forkserver_preload(["stable_baselines3", "gymnasium", "numba", "optuna", "scipy.stats", "yaml"])


class PointEnv(gym.Env):
    """
    A point pushed about a plane, with two action dimensions of different, asymmetric bounds.

    :param observation: "vector", "dict" or "image"
    :param end: "truncated" or "terminated" after ``length`` steps
    :param length: steps of an episode
    """

    def __init__(self, observation: str = "vector", end: str = "truncated", length: int = 20) -> None:
        self.kind, self.end, self.length = observation, end, length
        self.action_space = spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([1.0, 3.0], np.float32))
        vector = spaces.Box(-10, 10, (3,), np.float32)
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = {
            "vector": vector,
            "dict": spaces.Dict({"vector": vector, "image": image}),
            "image": image,
        }[observation]

    def _observe(self):
        vector = np.array([*self.position, self.clock / self.length], np.float32)
        image = np.zeros((36, 36, 1), np.uint8)
        x, y = np.clip((self.position + 10) * 1.8, 0, 35).astype(int)
        image[x, y] = 255
        return {"vector": vector, "dict": {"vector": vector, "image": image}, "image": image}[self.kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        self.clock = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, np.float32)), f"action {action} is out of bounds"
        self.position = np.clip(self.position + 0.1 * np.asarray(action) - 0.1, -10, 10)
        self.clock += 1
        over = self.clock >= self.length
        reward = -float(np.square(self.position).sum())
        return self._observe(), reward, over and self.end == "terminated", over and self.end == "truncated", {}


class Observing(gym.Env):
    """Random observations of any space, with asymmetric action bounds; the reward depends on both."""

    action_space = spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([1.0, 3.0], np.float32))

    def __init__(self, space, action_space=None):
        self.observation_space = space
        if action_space is not None:
            self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        observation = self.observation_space.sample()
        reward = float(np.mean(spaces.flatten(self.observation_space, observation))) / 100 - float(np.square(action).mean())
        ends = self.np_random.random()
        return observation, reward, ends < 0.05, ends > 0.9, {}


gym.register("Point-v0", PointEnv)
gym.register("PointDict-v0", PointEnv, kwargs={"observation": "dict"})
gym.register("PointImage-v0", PointEnv, kwargs={"observation": "image"})
gym.register("PointTerminated-v0", PointEnv, kwargs={"end": "terminated"})


class Written(KVWriter):
    """Keeps everything that a logger writes."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def close(self):
        pass


POLICY_OF = {"vector": "MlpPolicy", "dict": "MultiInputPolicy", "image": "CnnPolicy"}


def snapshot(model) -> dict[str, th.Tensor]:
    """Copies of all parameters and buffers of a model's policy."""
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def same(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    """Whether two snapshots are equal to the last bit."""
    return a.keys() == b.keys() and all(th.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def _fresh_generators():
    """Every test begins with the same random numbers, whatever ran before it."""
    np.random.seed(12345)
    th.manual_seed(12345)


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]


def wait_until(page, expression):
    # From outside: the page's content security policy lets nothing be evaluated inside it.
    limit = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < limit, expression
        page.wait_for_timeout(50)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed, in which the page could be opened")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a page as a reader would, and afterwards finds no script error, and nothing fetched from anywhere."""
    contexts, wrong = [], []

    def open_it(path, width=1280, scheme="light", touch=False):
        screen = {"viewport": {"width": width, "height": 850}, "has_touch": touch, "is_mobile": touch}
        context = browser.new_context(color_scheme=scheme, offline=True, **screen)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached", timeout=30_000)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []
