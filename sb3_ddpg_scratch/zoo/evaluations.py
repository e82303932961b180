"""Callbacks of the experiments: what is saved beside a best model, lines of progress, and episodes that fail."""

from typing import Any

import numpy as np
from rich.console import Console
from rl_zoo3.callbacks import SaveVecNormalizeCallback, TrialEvalCallback
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback

from sb3_ddpg_scratch.terminal import ProgressLines


def keep_statistics(manager: ExperimentManager) -> None:
    """Save statistics beside each best model and checkpoint too: the end of training overwrites the Zoo's only file."""
    for callback in manager.callbacks:
        if isinstance(callback, CheckpointCallback):
            callback.save_vecnormalize = True
        elif isinstance(callback, EvalCallback):
            folders = (manager.params_path, manager.save_path)
            callback.callback_on_new_best = CallbackList([SaveVecNormalizeCallback(1, folder) for folder in folders])


class TrialEvaluation(TrialEvalCallback):
    """RL Zoo's, with lines of progress, and with the statistics of a trial's best model beside it."""

    def _on_training_start(self) -> None:
        self.lines = ProgressLines(Console(), self.locals["total_timesteps"])
        if self.best_model_save_path is not None:
            self.callback_on_new_best = SaveVecNormalizeCallback(1, self.best_model_save_path)
            self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        self.lines.tell(self.num_timesteps)
        return super()._on_step()


class TrainingProgress(BaseCallback):
    def _on_training_start(self) -> None:
        self.lines = ProgressLines(Console(), self.locals["total_timesteps"], self.num_timesteps)

    def _on_step(self) -> bool:
        self.lines.tell(self.num_timesteps)
        return True


class FailedEpisodes(BaseCallback):
    """
    Counts the episodes of an evaluation that fail: that end in a termination, or have a true value of ``key`` in an info.

    :param evaluation: prints their number if it prints its returns
    """

    def __init__(self, evaluation: EvalCallback, key: str | None = None) -> None:
        super().__init__(evaluation.verbose)
        self.evaluation, self.key = evaluation, key
        self.episodes: list[list[bool]] = []
        self._failing: dict[int, bool] = {}
        evaluation.callback = self
        # SB3 hands this to evaluate_policy, which calls it in every step.
        evaluation._log_success_callback = self._see  # type: ignore[method-assign]

    def _see(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        type(self.evaluation)._log_success_callback(self.evaluation, locals_, globals_)
        env, info, done = locals_["i"], locals_["info"], bool(locals_["done"])
        terminated = done and not info.get("TimeLimit.truncated", False)
        failed = terminated if self.key is None else bool(info.get(self.key, False))
        self._failing[env] = self._failing.get(env, False) or failed
        if done:
            number = len(self.evaluation.evaluations_timesteps)
            self.episodes += [[] for _ in range(number + 1 - len(self.episodes))]
            self.episodes[number].append(self._failing.pop(env))

    def _on_step(self) -> bool:
        self._failing = {}
        count = sum(self.episodes[-1])
        if self.verbose > 0 and (count or self.key):
            what = "terminated" if self.key is None else f"had {self.key}"
            print(f"{count} of {len(self.episodes[-1])} episodes {what}")
        return True

    def rates(self) -> np.ndarray:
        """The share of each evaluation's episodes that failed; NaN where it is not known."""
        return np.array([np.mean(episodes) if episodes else np.nan for episodes in self.episodes])

    def get_training_state(self) -> dict[str, Any]:
        return {"episodes": self.episodes}

    def set_training_state(self, state: dict[str, Any]) -> None:
        self.episodes = state["episodes"]
