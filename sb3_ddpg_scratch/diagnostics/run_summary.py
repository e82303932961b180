"""The outcome of a run, in numbers and sentences."""

from dataclasses import dataclass

import numpy as np

from sb3_ddpg_scratch.diagnostics.recording_reader import Recording
from sb3_ddpg_scratch.report.formatting import duration, number, percent

WINDOW = 10
"""Number of episodes in the moving average, and in the first and last returns."""
LATEST = 3
"""Number of measurements, and of comparisons of Q with training returns, that the final numbers average over."""
NOTABLE_SHARE = 0.1


def moving_average(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """For each value, the mean of it and the ``window - 1`` before it (fewer at the start)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)


@dataclass
class Summary:
    """Numbers at a run's end, NaN if not recorded; ``return_error`` is the standard error of the change in return."""

    steps: int
    episodes: int
    seconds: float
    first_return: float
    last_return: float
    return_error: float
    q: float
    obtained: float
    noise_free: bool
    saturated: float

    @property
    def overestimation(self) -> float:
        """How much the critic's value exceeds the return obtained."""
        return self.q - self.obtained

    @property
    def is_compared(self) -> bool:
        return not np.isnan(self.overestimation)


def summarize(recording: Recording) -> Summary:
    returns = recording.tables["episode"]["return"]
    first, last = returns[:WINDOW], returns[-WINDOW:]
    enough = len(returns) >= 2 * WINDOW
    error = np.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last)) if enough else np.nan
    evaluations, updates = recording.tables["evaluation"], recording.tables["update"]
    compared = np.flatnonzero(np.isfinite(evaluations["q"] - evaluations["discounted_return"]))
    # An evaluation compares hundreds of states, a training episode only its first.
    noise_free = bool(len(compared)) and evaluations["noise_free"][compared[-1]] == 1
    compared = compared[-1:] if noise_free else compared[-LATEST:]
    return Summary(
        steps=recording.last_step,
        episodes=len(returns),
        seconds=_mean(updates["seconds"][-1:]),
        first_return=_mean(first),
        last_return=_mean(last),
        return_error=float(error),
        q=_mean(evaluations["q"][compared]),
        obtained=_mean(evaluations["discounted_return"][compared]),
        noise_free=bool(noise_free),
        saturated=_mean(updates["saturated"][-LATEST:]),
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def in_words(recording: Recording, summary: Summary) -> str:
    sentences = [_training(recording, summary), _returns(summary), _critic(summary), _warnings(recording)]
    return " ".join(sentence for sentence in sentences if sentence)


def _training(recording: Recording, summary: Summary) -> str:
    how = "Trained for" if recording.ended else "Not finished: the recording ends after"
    episodes = "1 episode" if summary.episodes == 1 else f"{summary.episodes:,} episodes"
    return f"{how} {summary.steps:,} steps ({episodes}) in {duration(summary.seconds)}."


def _returns(summary: Summary) -> str:
    if summary.episodes == 0:
        return "No episode ended."
    if np.isnan(summary.return_error):
        return f"The mean return was {number(summary.last_return)}; too few episodes to see a change."
    change = summary.last_return - summary.first_return
    # Within two standard errors, a change cannot be told from chance.
    if abs(change) <= 2 * summary.return_error:
        return f"The return hardly changed: {number(summary.first_return)} at first, {number(summary.last_return)} at the end."
    verb = "rose" if change > 0 else "fell"
    return f"The return {verb} from {number(summary.first_return)} to {number(summary.last_return)}."


def _critic(summary: Summary) -> str:
    if not summary.is_compared:
        return ""
    share = abs(summary.overestimation) / max(abs(summary.obtained), 1e-12)
    if share <= NOTABLE_SHARE:
        return f"The critic is about right: it promises {number(summary.q)}, and {number(summary.obtained)} was obtained."
    direction = "more" if summary.overestimation > 0 else "less"
    return (
        f"The critic promises {direction} than is obtained: {number(summary.q)} against {number(summary.obtained)}, "
        f"off by {percent(share)}."
    )


def _warnings(recording: Recording) -> str:
    if not recording.warnings:
        return "No sign of divergence." if len(recording.tables["update"]["step"]) else "Nothing was measured."
    found = "was a sign" if len(recording.warnings) == 1 else "were signs"
    return f"There {found} of divergence: see below."
