"""The counts and results of callbacks, so that evaluations and logs continue when training is resumed."""

import warnings
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.checkpoint.environments import capture_vec_env, restore_vec_env
from sb3_ddpg_scratch.checkpoint.object_state import qualified_name
from sb3_ddpg_scratch.errors import CheckpointError
from sb3_ddpg_scratch.known_code import callbacks_in

# The counters of each class. A callback's other attributes are its settings, which the resumed training may change.
_COUNTED: dict[Any, tuple[str, ...]] = {
    BaseCallback: ("n_calls", "num_timesteps"),
    EvalCallback: (
        *("best_mean_reward", "last_mean_reward", "evaluations_results", "evaluations_timesteps", "evaluations_length"),
        *("evaluations_successes", "_is_success_buffer"),
    ),
    EveryNTimesteps: ("last_time_trigger",),
    StopTrainingOnMaxEpisodes: ("n_episodes",),
    StopTrainingOnNoModelImprovement: ("last_best_mean_reward", "no_improvement_evals"),
}


def environments_of(root: BaseCallback) -> list[VecEnv]:
    found = (getattr(callback, "eval_env", None) for callback in callbacks_in(root))
    return [env for env in found if isinstance(env, VecEnv)]


def capture_callbacks(root: BaseCallback) -> list[dict[str, Any]]:
    """The counts of a callback and of those it calls, and the states of their evaluation environments."""
    states = []
    for callback in callbacks_in(root):
        state: dict[str, Any] = {"class": qualified_name(callback)}
        state["counted"] = {name: getattr(callback, name) for name in _names_of(callback)}
        if isinstance(getattr(callback, "eval_env", None), VecEnv):
            state["eval_env"] = capture_vec_env(callback.eval_env)  # type: ignore[attr-defined]
        if hasattr(callback, "get_training_state"):
            state["own"] = callback.get_training_state()
        states.append(state)
    return states


def restore_callbacks(root: BaseCallback, states: list[dict[str, Any]]) -> None:
    """Restore callbacks from states of the same class, in order; callbacks without one start fresh."""
    waiting = list(states)
    for callback in callbacks_in(root):
        state = next((state for state in waiting if state["class"] == qualified_name(callback)), None)
        if state is None:
            continue
        waiting.remove(state)
        vars(callback).update({name: value for name, value in state["counted"].items() if name in _names_of(callback)})
        if "eval_env" in state and isinstance(getattr(callback, "eval_env", None), VecEnv):
            try:
                restore_vec_env(callback.eval_env, state["eval_env"])  # type: ignore[attr-defined]
            except CheckpointError as error:
                warnings.warn(f"Evaluations start fresh, on another environment than before. {error}", stacklevel=2)
        if "own" in state:
            callback.set_training_state(state["own"])  # type: ignore[attr-defined]


def _names_of(callback: BaseCallback) -> list[str]:
    names = [name for cls, names in _COUNTED.items() if isinstance(callback, cls) for name in names]
    return [name for name in names if hasattr(callback, name)]
