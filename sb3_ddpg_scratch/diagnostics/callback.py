"""DiagnosticsCallback: records what DDPG is doing while it trains."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic, isolated
from sb3_ddpg_scratch.diagnostics.divergence import DivergenceWatch, largest_return
from sb3_ddpg_scratch.diagnostics.overestimation import discounted_returns, evaluate, evaluation_env, tail_value
from sb3_ddpg_scratch.diagnostics.probes import ProbeStates, for_each_part, has_enough_states
from sb3_ddpg_scratch.diagnostics.recording_reader import is_of_the_same_run
from sb3_ddpg_scratch.diagnostics.recording_writer import (
    POLICY_FILE,
    STATISTICS,
    RecordingWriter,
    describe,
    observation_statistics,
)
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.mixed_replay import replay_of
from sb3_ddpg_scratch.noise import sigma_of
from sb3_ddpg_scratch.observation_statistics import statistics_of
from sb3_ddpg_scratch.validation import check_choice, check_whole_number


class DiagnosticsCallback(BaseCallback):
    """
    Records what an off-policy actor-critic does while it trains: ``ScratchDDPG``, SB3's ``DDPG``, ``TD3`` and ``SAC``.

    ``out`` receives ``diagnostics.jsonl`` (see :mod:`sb3_ddpg_scratch.diagnostics.recording_writer`), the probe states and,
    at the end, the actor's weights; ``sb3-ddpg-scratch report OUT`` draws them. SB3's logger receives the numbers as
    ``diagnostics/...``. Training is not affected: its parameters are the same bit for bit with and without the callback.

    Every ``every`` updates, the callback draws a batch of its own from replay and measures the networks in evaluation
    mode: Q, TD targets, losses and gradients are those of an update on that batch, before clipping.

    Over-estimation is Q(s, mu(s)) against the discounted return that follows, see
    :mod:`sb3_ddpg_scratch.diagnostics.overestimation`: along noise-free episodes in ``eval_env``; without one, at the start
    of training episodes, whose returns also suffer from the noise. It is not measured for SAC, whose Q includes an entropy
    bonus that no reward shows.

    With ``VecNormalize``, episode returns are in the environment's units, while Q, targets, losses and over-estimation are
    in those of normalized rewards, which is what the critic learns; probe states are kept in the environment's units.

    :param out: folder of the run's recording. An earlier recording there is kept under a numbered name, with a warning, or
        continued when the training continues from a step above 0
    :param every: updates between two measurements
    :param probe_states: how many states to draw from replay, once it holds ten times as many, and to follow from then on
    :param snapshot_every: environment steps between two snapshots on the probe states, or a pair like ``(5, "episode")``
    :param eval_env: environment for noise-free episodes: an id, an environment, or a ``VecEnv`` of one; ``None`` for none
    :param eval_every: environment steps between two comparisons of Q with returns
    :param eval_episodes: noise-free episodes in each
    :param batch_size: transitions in a measurement; ``None`` for the model's ``batch_size``
    :param save_policy: whether to save the actor's weights at the end, which ``report --video`` needs
    :param seed: seed of the measurements' own random numbers
    :param verbose: 1 to print where the recording is; 0 for only the warnings
    :raises ArgumentError: for values out of range, and, when training begins, for a model that is not such an actor-critic
    """

    def __init__(
        self,
        out: Path | str,
        every: int = 3000,
        probe_states: int = 32,
        snapshot_every: int | tuple[int, str] = 3000,
        eval_env: str | gym.Env | VecEnv | None = None,
        eval_every: int = 3000,
        eval_episodes: int = 2,
        batch_size: int | None = None,
        save_policy: bool = True,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        frequency, unit = snapshot_every if isinstance(snapshot_every, (tuple, list)) else (snapshot_every, "step")
        check_choice("snapshot_every", unit, ("step", "episode"))
        counts = {"every": every, "probe_states": probe_states, "snapshot_every": frequency, "eval_every": eval_every}
        counts |= {"eval_episodes": eval_episodes, "batch_size": 1 if batch_size is None else batch_size}
        for name, value in counts.items():
            check_whole_number(name, value, 1)
        check_whole_number("seed", seed, 0)
        self.out = Path(out)
        if self.out.exists() and not self.out.is_dir():
            raise ArgumentError("out", str(out), "a folder", "There is a file of that name.")
        self.every = every
        self.probe_states = probe_states
        self.snapshot_frequency, self.snapshot_unit = frequency, unit
        self.eval_env = eval_env
        self.eval_every = eval_every
        self.eval_episodes = eval_episodes
        self.batch_size = batch_size
        self.save_policy = save_policy
        self.seed = seed
        self._networks: ActorCritic
        self._watch: DivergenceWatch
        self._normalize: VecNormalize | None = None
        self._own_env: VecEnv | None = None
        self._writer: RecordingWriter | None = None

    def _init_callback(self) -> None:
        self._networks = ActorCritic(self.model)
        self._generator = np.random.default_rng(self.seed)
        with self._isolated():
            self._own_env = None if self.eval_env is None else evaluation_env(self.model, self.eval_env, self.seed)

    def _on_training_start(self) -> None:
        self._normalize = self.model.get_vec_normalize_env()
        self._gamma: float = self._networks.model.gamma
        self._started = time.perf_counter()
        description = describe(self.model)
        resumes = self.num_timesteps > 0 and is_of_the_same_run(self.out, description)
        if not resumes or not hasattr(self, "_probes"):
            self._begin_run()
            self._probes = ProbeStates.load(self.out) if resumes else None
        self._single = self.training_env.num_envs == 1
        self._monitored = all(self.training_env.env_is_wrapped(Monitor))
        self._returns = np.zeros(self.training_env.num_envs)
        self._lengths = np.zeros(self.training_env.num_envs, int)
        self._followed: list[float] | None = None
        self._promised = 0.0
        try:
            self._writer = RecordingWriter(self.out, description, self.num_timesteps if resumes else None)
        except OSError as error:
            raise ArgumentError("out", str(self.out), f"a folder that can be written to ({error.strerror})") from error
        if self.verbose >= 1:
            print(f"Diagnostics are recorded in {self._writer.path}")

    def _begin_run(self) -> None:
        actor = self._networks.model.actor
        epsilon = float(actor.optimizer.param_groups[0].get("eps", 1e-8))
        self._watch = DivergenceWatch(sum(parameter.numel() for parameter in actor.parameters()), epsilon)
        self._largest_reward = 0.0
        self._episodes = 0
        # Updates of earlier trainings do not belong to this run.
        self._next_update = self._updates() + 1
        self._next_snapshot = self._next_evaluation = 0
        by_step = (self.snapshot_frequency,) if self.snapshot_unit == "step" else ()
        self._stride = max(min(self.every, self.eval_every, *by_step) // 100, 1)
        self._last_snapshot = -1

    def _on_training_end(self) -> None:
        self._look(last=True)
        if self.save_policy:
            self._or_stop_recording(self._save_policy)
        self._write("end", seconds=time.perf_counter() - self._started)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._own_env is not None and isinstance(self.eval_env, str):
            self._own_env.close()
            self._own_env = None

    def _save_policy(self) -> None:
        content = io.BytesIO()
        policy = self._networks.model.policy
        statistics = statistics_of(policy)
        weights = policy.actor.state_dict() | ({} if statistics is None else statistics.state_dict(prefix=STATISTICS))
        weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        th.save({"actor": weights, "normalization": observation_statistics(self._normalize)}, content)
        write_whole(self.out / POLICY_FILE, content.getvalue())

    def _on_step(self) -> bool:
        # Called at every environment step: do as little as possible.
        rewards, dones = self.locals["rewards"], self.locals["dones"]
        if self._single:
            largest, ended = abs(rewards[0]), dones[0]
        else:
            largest, ended = np.abs(rewards).max(), dones.any()
        if largest > self._largest_reward:
            self._largest_reward = float(largest)
        if self._followed is not None:
            self._followed.append(float(rewards[0]))
        if not self._monitored:
            self._returns += rewards if self._normalize is None else self._normalize.get_original_reward()
            self._lengths += 1
        if ended:
            self._end_episodes(np.flatnonzero(dones))
        # Not in every step: a hundredth of the shortest interval is precise enough.
        if self.n_calls % self._stride == 0:
            self._look()
        return True

    def _end_episodes(self, ended: np.ndarray) -> None:
        infos = self.locals["infos"]
        for index in ended:
            episode = infos[index].get("episode")
            if not self._monitored or episode is None:
                episode = {"r": self._returns[index], "l": self._lengths[index]}
                self._returns[index], self._lengths[index] = 0.0, 0
            self._episodes += 1
            self._write("episode", env=int(index), **{"return": float(episode["r"]), "length": int(episode["l"])})
        if ended[0] == 0 and self.eval_env is None and not self._networks.has_entropy_bonus:
            self._follow_episodes(infos[0])

    def _follow_episodes(self, info: dict[str, Any]) -> None:
        """At the end of the first environment's episode, compare it if it was followed, and follow the next one if due."""
        if self._followed is not None:
            with self._isolated():
                tail = tail_value(self._networks, info, self._normalize, normalized=True)
            obtained = float(discounted_returns(self._followed, self._gamma, tail or 0.0)[0])
            weight = 0.0 if tail is None else self._gamma ** len(self._followed)
            self._write_comparison(self._promised, obtained, weight, noise_free=False)
            self._followed = None
        if self._updates() > 0 and self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = self.num_timesteps + self.eval_every
            first = for_each_part(lambda part: part[:1], self.locals["new_obs"])
            with self._isolated():
                self._promised = float(self._networks.value_of(first)[1][0])
            self._followed = []

    def _look(self, last: bool = False) -> None:
        updates = self._updates()
        if updates >= self._next_update:
            self._next_update = updates + self.every
            self._measure(updates)
        now = self.num_timesteps if self.snapshot_unit == "step" else self._episodes
        if now >= self._next_snapshot or last:
            self._snapshot(now, last)
        if self._own_env is not None and updates > 0 and self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = self.num_timesteps + self.eval_every
            self._evaluate()

    def _measure(self, updates: int) -> None:
        model = self._networks.model
        with self._isolated():
            batch = replay_of(model).sample(self.batch_size or model.batch_size, env=self._normalize)
            numbers = self._networks.measure(batch)
            largest_in_batch = float(batch.rewards.abs().max())
        largest_reward = max(self._largest_reward, largest_in_batch)
        bound = largest_return(largest_reward + numbers.pop("bonus"), self._gamma)
        findings = self._watch.look(numbers, bound if largest_reward > 0 else 0.0)
        sigma = sigma_of(model.action_noise)
        others = {"sigma": None if sigma is None else float(sigma.mean()), "largest_return": bound}
        seconds = time.perf_counter() - self._started
        self._write("update", n_updates=updates, seconds=seconds, **numbers, **others)
        for name, value in (numbers | others).items():
            if value is not None:
                self.logger.record(f"diagnostics/{name}", value)
        self.logger.record("diagnostics/diverging", len(self._watch.active))
        for name, text in findings.items():
            self._write("warning", name=name, text=text)
            print(f"Diverging, at environment step {self.num_timesteps}: {text}", file=sys.stderr)

    def _snapshot(self, now: int, last: bool) -> None:
        model = self._networks.model
        begun = self._updates() > 0 and has_enough_states(replay_of(model), self.probe_states)
        if (self._probes is None and not begun) or (last and self._last_snapshot == self.num_timesteps):
            return
        with self._isolated():
            if self._probes is None:
                probes = self._probes = ProbeStates.draw(model, self.probe_states)
                self._or_stop_recording(lambda: probes.save(self.out))
                self._write("probes", **probes.record())
            before = self._probes.dimensions
            snapshot = self._probes.snapshot(self._networks, self._normalize)
            if self._probes.dimensions != before:
                self._write("plane", **self._probes.plane())
            self._write("snapshot", **snapshot)
        self._last_snapshot = self.num_timesteps
        self._next_snapshot = now + self.snapshot_frequency

    def _evaluate(self) -> None:
        assert self._own_env is not None
        with self._isolated():
            comparison, return_mean = evaluate(self._networks, self._own_env, self.eval_episodes, self._normalize)
        self.logger.record("diagnostics/eval_return", return_mean)
        if self._networks.has_entropy_bonus:
            self._write("evaluation", return_mean=return_mean, noise_free=True)
        else:
            self._write_comparison(*comparison[:3], noise_free=True, return_mean=return_mean)

    def _write_comparison(self, q: float, obtained: float, tail_weight: float, **others: Any) -> None:
        self._write("evaluation", q=q, discounted_return=obtained, tail_weight=tail_weight, **others)
        self.logger.record("diagnostics/overestimation", q - obtained)

    def _updates(self) -> int:
        return self._networks.model._n_updates

    def _isolated(self) -> AbstractContextManager[None]:
        return isolated(self._networks.model, int(self._generator.integers(2**32)))

    def _write(self, kind: str, **values: Any) -> None:
        writer = self._writer
        if writer is not None:
            self._or_stop_recording(lambda: writer.write(kind, step=self.num_timesteps, **values))

    def _or_stop_recording(self, write: Callable[[], None]) -> None:
        # Hours of training are worth more than their diagnostics.
        try:
            write()
        except OSError as error:
            if self._writer is not None:
                print(f"Diagnostics end here, {self.out} cannot be written to: {error.strerror}.", file=sys.stderr)
            self._writer = None
