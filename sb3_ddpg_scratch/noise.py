"""
Action noise: Ornstein-Uhlenbeck, Gaussian and colored, one process per environment in one array.

Noise is in units of normalized actions: SB3 adds it to actions scaled to [-1, 1], clips the sum to [-1, 1], and only then
scales it to the environment's bounds.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from stable_baselines3.common.noise import ActionNoise

from sb3_ddpg_scratch.errors import ArgumentError, near
from sb3_ddpg_scratch.validation import check_number, check_whole_number


class VectorNoise(ActionNoise):
    """
    The base of all noises: seeding, the schedule of sigma, and the number of environments.

    A noise starts with one environment and returns arrays of the shape of ``mean``; with n > 1 environments
    (:meth:`set_n_envs`, which ``ScratchDDPG`` calls) the shape is ``(n, *mean.shape)``. All entries are independent.

    With several environments SB3's own algorithms copy the noise once for each (``VectorizedActionNoise``). A deep copy
    therefore gets its own generator, spawned from this one's; otherwise all environments would explore with the same
    numbers. Pickling keeps the generator as it is.

    :param mean: mean of the noise, of the action's shape
    :param sigma: standard deviation of one draw, a number or of the action's shape, not negative
    :param final_sigma: sigma after ``decay_steps`` environment steps, reached linearly; ``None`` for a constant sigma
    :param decay_steps: length of the schedule in environment steps (of all environments together)
    :param seed: seed of this noise's generator. ``None``: ``ScratchDDPG`` seeds it from its own seed; elsewhere the
        seed is drawn from NumPy's global generator (which SB3 seeds) at the first call
    :raises ArgumentError: for values out of range, or shapes that differ
    """

    def __init__(
        self,
        mean: ArrayLike,
        sigma: ArrayLike,
        final_sigma: ArrayLike | None = None,
        decay_steps: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.mean = np.array(mean, dtype=np.float64)
        if not np.all(np.isfinite(self.mean)):
            raise ArgumentError("mean", mean, "finite")
        self.initial_sigma = self._like_mean("sigma", sigma, minimum=0.0)
        if (final_sigma is None) != (decay_steps is None):
            raise ArgumentError(
                "final_sigma, decay_steps", (final_sigma, decay_steps), "both given or both None", "Give the other one too."
            )
        if decay_steps is not None:
            check_whole_number("decay_steps", decay_steps, 1)
        if seed is not None:
            check_whole_number("seed", seed, 0)
        self.final_sigma = None if final_sigma is None else self._like_mean("final_sigma", final_sigma, minimum=0.0)
        self.decay_steps = decay_steps
        self.seed = seed
        self.n_envs = 1
        self.num_steps = 0
        self._generator: np.random.Generator | None = None if seed is None else _generator_from(seed)

    def _like_mean(self, name: str, value: ArrayLike, minimum: float = -np.inf) -> np.ndarray:
        array = _broadcast(name, value, self.mean.shape, "mean")
        if not np.all(np.isfinite(array)) or np.any(array < minimum):
            raise ArgumentError(name, value, "finite" + (f" and at least {minimum:g}" if np.isfinite(minimum) else ""))
        return array

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviation of the next draw, of the mean's shape."""
        if self.final_sigma is None or self.decay_steps is None:
            return self.initial_sigma
        share = min(self.num_steps / self.decay_steps, 1.0)
        return self.initial_sigma + share * (self.final_sigma - self.initial_sigma)

    @property
    def generator(self) -> np.random.Generator:
        if self._generator is None:
            self._generator = _generator_from(np.random.randint(2**31, size=4))
        return self._generator

    def seed_from(self, seed: int, overwrite: bool = True) -> None:
        """
        Seed the generator, unless the noise was given its own seed.

        :param seed: usually the algorithm's seed
        :param overwrite: whether to reseed a generator that is already in use
        """
        if self.seed is None and (overwrite or self._generator is None):
            self._generator = _generator_from((seed, _NOISE_STREAM))

    def set_n_envs(self, n_envs: int) -> None:
        """Use one process per environment. Existing processes continue; new ones start at their initial value."""
        check_whole_number("n_envs", n_envs, 1)
        self.n_envs = n_envs

    def of_one_env(self) -> Self:
        """A copy for a single environment, the first one, that draws from the same generator."""
        single = copy(self)
        single.set_n_envs(1)
        return single

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """
        Restart the processes at the end of an episode. The schedule of sigma continues.

        :param indices: the environments whose episode ended; ``None`` for all
        """

    def restart(self) -> None:
        """Restart all processes at the start of training. The schedule of sigma continues."""

    def __call__(self) -> np.ndarray:
        """The noise of the next step, float32, of shape ``mean.shape``, or ``(n_envs, *mean.shape)`` if n_envs > 1."""
        generator = self._generator or self.generator
        sigma = self.initial_sigma if self.final_sigma is None else self.sigma
        noise = self._advance(generator, sigma).astype(np.float32)
        self.num_steps += self.n_envs
        return noise if self.n_envs > 1 else noise[0]

    @abstractmethod
    def _advance(self, generator: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
        """The next noise, of shape ``(n_envs, *mean.shape)``."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        for name, value in self.__dict__.items():
            setattr(duplicate, name, value.copy() if isinstance(value, np.ndarray) else value)
        if self._generator is not None:
            duplicate._generator = self._generator.spawn(1)[0]
        return duplicate

    def __repr__(self) -> str:
        schedule = "" if self.final_sigma is None else f", final_sigma={self.final_sigma}, decay_steps={self.decay_steps}"
        return f"{type(self).__name__}(mean={self.mean}, sigma={self.initial_sigma}{schedule}, n_envs={self.n_envs})"


class OUNoise(VectorNoise):
    """
    Ornstein-Uhlenbeck noise, correlated in time, as used for exploration in the DDPG paper
    (Lillicrap et al. 2015, section 3 and supplement section 7; Uhlenbeck and Ornstein 1930).

    ``x <- x + theta (mean - x) dt + sigma sqrt(dt) N(0, 1)``, and the noise is the new x.

    The paper and most implementations use ``dt=1``, the default here: with theta 0.15 the correlation is 0.85 from one
    step to the next, gone after some 7 steps, and x has a standard deviation of 1.9 sigma. SB3's
    ``OrnsteinUhlenbeckActionNoise`` defaults to ``dt=0.01``: each step moves x by only 0.1 sigma, the correlation lasts
    some 670 steps (several episodes of Pendulum), and the long-run deviation is 1.8 sigma. The formula is the same; pass
    ``dt=0.01`` for SB3's process.

    :param mean: value that the process returns to, of the action's shape
    :param sigma: scale of the random part, a number or of the action's shape
    :param theta: speed of the return to the mean, per unit of time
    :param dt: length of a step in that unit
    :param initial_noise: x at the start, a number or of the action's shape; ``None`` for 0
    :param reset_on_episode: whether :meth:`reset`, which SB3 calls after each episode, sets x back to ``initial_noise``;
        otherwise only :meth:`restart` does
    :param final_sigma: see :class:`VectorNoise`
    :param decay_steps: see :class:`VectorNoise`
    :param seed: see :class:`VectorNoise`
    :raises ArgumentError: for values out of range, shapes that differ, or ``theta * dt >= 2``, where x would diverge
    """

    def __init__(
        self,
        mean: ArrayLike,
        sigma: ArrayLike,
        theta: float = 0.15,
        dt: float = 1.0,
        initial_noise: ArrayLike | None = None,
        reset_on_episode: bool = True,
        final_sigma: ArrayLike | None = None,
        decay_steps: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(mean, sigma, final_sigma, decay_steps, seed)
        check_number("theta", theta, 0)
        check_number("dt", dt, 0, low_allowed=False)
        if theta * dt >= 2:
            raise ArgumentError("theta * dt", theta * dt, "below 2, or the noise diverges", "Lower theta or dt.")
        self.theta = theta
        self.dt = dt
        self.initial_noise = self._like_mean("initial_noise", 0.0 if initial_noise is None else initial_noise)
        self.reset_on_episode = reset_on_episode
        self.state = self.initial_noise[None].copy()

    def _advance(self, generator: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
        drift = self.theta * (self.mean - self.state) * self.dt
        diffusion = sigma * np.sqrt(self.dt) * generator.standard_normal(self.state.shape)
        self.state = self.state + drift + diffusion
        return self.state

    def reset(self, indices: Iterable[int] | None = None) -> None:
        if self.reset_on_episode:
            self.state[slice(None) if indices is None else list(indices)] = self.initial_noise

    def restart(self) -> None:
        self.state[:] = self.initial_noise

    def set_n_envs(self, n_envs: int) -> None:
        super().set_n_envs(n_envs)
        kept = self.state[:n_envs]
        fresh = np.broadcast_to(self.initial_noise, (n_envs - len(kept), *self.mean.shape))
        self.state = np.concatenate([kept, fresh])


class GaussianNoise(VectorNoise):
    """
    Gaussian noise: independent draws from N(mean, sigma^2) at every step.

    With ``random_probability``, some steps' noise is uniform in [-2, 2] instead, which makes their actions almost random. It
    helps to explore tasks with goals (Plappert et al. 2018, https://arxiv.org/abs/1802.09464, with probability 0.3).

    :param mean: mean of the noise, of the action's shape
    :param sigma: standard deviation, a number or of the action's shape
    :param final_sigma: see :class:`VectorNoise`
    :param decay_steps: see :class:`VectorNoise`
    :param seed: see :class:`VectorNoise`
    :param random_probability: probability of uniform noise, for each environment and step, in [0, 1]
    :raises ArgumentError: for values out of range, or shapes that differ
    """

    # For noises saved by versions without it.
    random_probability = 0.0

    def __init__(
        self,
        mean: ArrayLike,
        sigma: ArrayLike,
        final_sigma: ArrayLike | None = None,
        decay_steps: int | None = None,
        seed: int | None = None,
        random_probability: float = 0.0,
    ) -> None:
        super().__init__(mean, sigma, final_sigma, decay_steps, seed)
        check_number("random_probability", random_probability, 0, 1)
        self.random_probability = random_probability

    def _advance(self, generator: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
        noise: np.ndarray = self.mean + sigma * generator.standard_normal((self.n_envs, *self.mean.shape))
        if self.random_probability:
            chosen = generator.random(self.n_envs) < self.random_probability
            noise[chosen] = generator.uniform(-2, 2, noise.shape)[chosen]
        return noise


class ColoredNoise(VectorNoise):
    """
    Noise with a power spectrum of ``1 / f^beta`` (Eberhard et al. 2023, https://openreview.net/forum?id=hQ9V5QN27eS): white
    with beta 0, pink with 1, red with 2. The larger beta, the longer the noise pushes in one direction.

    Each environment and action dimension has a sequence of ``length`` draws: white noise whose Fourier transform is multiplied
    by ``max(f, 1 / length)^(-beta / 2)`` (Timmer and König 1995), scaled so that a draw has standard deviation sigma. Another
    sequence follows after ``length`` steps.

    :param mean: mean of the noise, of the action's shape
    :param sigma: standard deviation of one draw, a number or of the action's shape
    :param beta: exponent of the spectrum, not negative
    :param length: steps of a sequence, best those of an episode
    :param reset_on_episode: whether :meth:`reset`, which SB3 calls after each episode, begins another sequence; otherwise
        only :meth:`restart` does
    :param final_sigma: see :class:`VectorNoise`
    :param decay_steps: see :class:`VectorNoise`
    :param seed: see :class:`VectorNoise`
    :raises ArgumentError: for values out of range, or shapes that differ
    """

    def __init__(
        self,
        mean: ArrayLike,
        sigma: ArrayLike,
        beta: float = 1.0,
        length: int = 1000,
        reset_on_episode: bool = True,
        final_sigma: ArrayLike | None = None,
        decay_steps: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(mean, sigma, final_sigma, decay_steps, seed)
        check_number("beta", beta, 0)
        check_whole_number("length", length, 2)
        self.beta, self.length, self.reset_on_episode = beta, length, reset_on_episode
        # Each environment's sequence, and how many of its draws have been used.
        self.state = np.zeros((0, length, *self.mean.shape), np.float32)
        self.used = np.zeros(0, np.int64)
        self.set_n_envs(1)

    def _sequence(self, generator: np.random.Generator) -> np.ndarray:
        frequencies = np.abs(np.fft.fftfreq(self.length))
        amplitudes = np.maximum(frequencies, 1 / self.length) ** (-self.beta / 2)
        amplitudes /= np.sqrt(np.mean(amplitudes**2))
        white = generator.standard_normal((*self.mean.shape, self.length))
        return np.moveaxis(np.fft.ifft(np.fft.fft(white) * amplitudes).real, -1, 0)

    def _advance(self, generator: np.random.Generator, sigma: np.ndarray) -> np.ndarray:
        for env in np.flatnonzero(self.used == self.length):
            self.state[env], self.used[env] = self._sequence(generator), 0
        drawn = self.state[np.arange(self.n_envs), self.used]
        self.used += 1
        return self.mean + sigma * drawn

    def reset(self, indices: Iterable[int] | None = None) -> None:
        if self.reset_on_episode:
            self.used[slice(None) if indices is None else list(indices)] = self.length

    def restart(self) -> None:
        self.used[:] = self.length

    def set_n_envs(self, n_envs: int) -> None:
        super().set_n_envs(n_envs)
        added = max(n_envs - len(self.used), 0)
        self.state = np.concatenate([self.state[:n_envs], np.zeros((added, *self.state.shape[1:]), np.float32)])
        self.used = np.concatenate([self.used[:n_envs], np.full(added, self.length)])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        duplicate = super().__deepcopy__(memo)
        duplicate.restart()
        return duplicate


# Separates the noise's draws from those of environments with the same seed.
_NOISE_STREAM = 0x0DD96

# Class and default sigma by name, RL Zoo's names included: the paper's sigma for OU, 0.1 for the others.
_KINDS: dict[str, tuple[type[VectorNoise], float]] = {
    "ou": (OUNoise, 0.2),
    "ornstein-uhlenbeck": (OUNoise, 0.2),
    "gaussian": (GaussianNoise, 0.1),
    "normal": (GaussianNoise, 0.1),
    "colored": (ColoredNoise, 0.1),
    "pink": (ColoredNoise, 0.1),
}

NoiseSpec = ActionNoise | str | Mapping[str, Any] | None


def make_noise(spec: NoiseSpec, action_shape: tuple[int, ...]) -> ActionNoise | None:
    """
    Build the action noise that a name or a dict describes, or check the shape of an existing one.

    ``"ou"`` is ``OUNoise`` with sigma 0.2 (the paper's), ``"gaussian"`` is ``GaussianNoise`` and ``"pink"`` or ``"colored"``
    ``ColoredNoise`` with sigma 0.1. A dict has
    the key ``type`` and any arguments of that class; a number applies to every action dimension (also as the mean,
    0 unless given), as in ``{"type": "ou", "sigma": 0.1, "initial_noise": 1.0, "reset_on_episode": False}``.

    :raises ArgumentError: for an unknown name or key, or a noise whose shape is not the action's
    """
    if spec is None:
        return None
    if isinstance(spec, ActionNoise):
        shape = _shape_of(spec)
        if shape is not None and shape != tuple(action_shape):
            raise ArgumentError(
                "action_noise", spec, f"of the action's shape {tuple(action_shape)}, not {shape}", "Check its mean and sigma."
            )
        return spec
    settings: dict[str, Any] = {"type": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    kind = settings.pop("type", None)
    if kind not in _KINDS:
        allowed = f"an ActionNoise, one of None, {', '.join(map(repr, _KINDS))}, or a dict with such a name as its 'type'"
        raise ArgumentError("action_noise", spec, allowed, near(str(kind), _KINDS))
    noise_class, default_sigma = _KINDS[kind]
    settings = {"mean": 0.0, "sigma": default_sigma} | settings
    for name in ("mean", "sigma", "final_sigma", "initial_noise"):
        if settings.get(name) is not None:
            settings[name] = _broadcast(f"action_noise[{name!r}]", settings[name], action_shape, "action")
    try:
        return noise_class(**settings)
    except TypeError as error:
        raise ArgumentError("action_noise", spec, f"a dict of {noise_class.__name__}'s arguments ({error})") from error


def check_noise_sample(sample: np.ndarray, action_shape: tuple[int, ...], n_envs: int) -> None:
    """Reject noise that would be broadcast over action dimensions or environments."""
    shape = np.shape(sample)
    if shape != (n_envs, *action_shape) and not (n_envs == 1 and shape == action_shape):
        expected = action_shape if n_envs == 1 else (n_envs, *action_shape)
        raise ArgumentError("action_noise", f"array of shape {shape}", f"of shape {expected} for {n_envs} environment(s)")


def sigma_of(noise: ActionNoise | None) -> np.ndarray | None:
    """A noise's ``sigma``, or SB3's ``_sigma``: 0 without noise, ``None`` if it has neither."""
    inner = getattr(noise, "noises", None)
    source = inner[0] if inner else noise
    sigma = 0.0 if noise is None else getattr(source, "sigma", getattr(source, "_sigma", None))
    return None if sigma is None else np.asarray(sigma, np.float64)


def _broadcast(name: str, value: ArrayLike, shape: tuple[int, ...], whose: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
        if array.shape in ((), shape):
            return np.broadcast_to(array, shape).copy()
    except (TypeError, ValueError):
        pass
    raise ArgumentError(name, value, f"a number or an array of the {whose}'s shape {shape}")


def _shape_of(noise: ActionNoise) -> tuple[int, ...] | None:
    """The shape of one environment's noise if known without drawing from it, else None."""
    if isinstance(noise, VectorNoise):
        return noise.mean.shape
    base: Any = getattr(noise, "base_noise", noise)
    if hasattr(base, "noise_prev"):
        # SB3's Ornstein-Uhlenbeck process draws one number per entry of its mean, whatever the shape of its sigma.
        return np.shape(base._mu)
    if hasattr(base, "_mu") and hasattr(base, "_sigma"):
        return np.broadcast_shapes(np.shape(base._mu), np.shape(base._sigma))
    return None


def _generator_from(seed: ArrayLike) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(np.atleast_1d(seed).astype(np.uint64).tolist()))
