"""The signs of a training that diverges, in words and with what to try."""

import math
from collections.abc import Mapping
from typing import NamedTuple

PERSISTENCE = 3
"""A sign counts when so many measurements in a row show it."""
ALL_SATURATED = 0.99


class Finding(NamedTuple):
    """
    :param name: "q_beyond_bound", "saturated", "vanished_gradient" or "not_finite"
    :param text: what is seen, and what to try
    """

    name: str
    text: str


def largest_return(largest_reward: float, gamma: float) -> float:
    """
    No discounted return can be larger in size: ``max |r| / (1 - gamma)``, the sum of the geometric series.

    :param largest_reward: largest size of a reward
    :param gamma: discount factor
    :return: the bound; infinite for ``gamma=1``
    """
    return largest_reward / (1 - gamma) if gamma < 1 else math.inf


class DivergenceWatch:
    """
    Looks at each measurement and says when something is wrong. Each sign is said once.

    - ``q_beyond_bound``: the mean size of Q is beyond the largest return that the rewards seen allow, and not shrinking.
    - ``saturated``: at least 99% of the policy's action components are at the bounds.
    - ``vanished_gradient``: the root mean square of the actor's gradient is below Adam's epsilon, where its steps die.
    - ``not_finite``: a number of the update is NaN or infinite; said at once, the others after three measurements in a row.

    :param actor_size: number of the actor's parameters
    :param epsilon: Adam's epsilon
    """

    def __init__(self, actor_size: int, epsilon: float) -> None:
        self.vanished_below = epsilon * math.sqrt(actor_size)
        self.active: set[str] = set()
        self.said: set[str] = set()
        self._streaks = {"q_beyond_bound": 0, "saturated": 0, "vanished_gradient": 0}
        self._q_before = 0.0

    def look(self, numbers: Mapping[str, float], bound: float) -> list[Finding]:
        """
        :param numbers: a measurement, with ``q_abs_mean``, ``saturated``, ``actor_grad_norm`` and the losses
        :param bound: :func:`largest_return`; 0 while no reward but 0 has been seen
        :return: the findings that have not been said before
        """
        q_size = numbers["q_abs_mean"]
        # A fresh critic may promise more than tiny rewards allow, but then its values shrink as it learns.
        shrinking = self._streaks["q_beyond_bound"] > 0 and q_size < self._q_before
        shown = {
            "q_beyond_bound": 0 < bound < q_size and not shrinking,
            "saturated": numbers["saturated"] >= ALL_SATURATED,
            "vanished_gradient": numbers["actor_grad_norm"] < self.vanished_below,
        }
        self._q_before = q_size
        for name, is_shown in shown.items():
            self._streaks[name] = self._streaks[name] + 1 if is_shown else 0
        self.active = {name for name, streak in self._streaks.items() if streak >= PERSISTENCE}
        wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
        if wrong:
            self.active.add("not_finite")
        fresh = sorted(self.active - self.said)
        self.said |= self.active
        return [Finding(name, _text(name, numbers, bound, wrong)) for name in fresh]


def _text(name: str, numbers: Mapping[str, float], bound: float, wrong: list[str]) -> str:
    if name == "q_beyond_bound":
        return (
            f"Q has grown to {numbers['q_abs_mean']:.4g} in the mean, beyond {bound:.4g}, the largest return that the rewards "
            "seen so far allow (max |r| / (1 - gamma)): the critic is diverging. Try a smaller learning rate for the critic, "
            "a smaller tau, a limit for gradients, normalised rewards (VecNormalize), or TD3's twin critics."
        )
    if name == "saturated":
        return (
            f"{numbers['saturated']:.0%} of the policy's actions are at their bounds: tanh passes next to no gradient there "
            "and the actor can hardly learn. Try a smaller learning rate for the actor, smaller or normalised observations "
            "and rewards (VecNormalize), LayerNorm, or a longer random warm-up."
        )
    if name == "vanished_gradient":
        return (
            f"The actor's gradient has vanished (norm {numbers['actor_grad_norm']:.2g}): the policy no longer changes. "
            "Try the remedies for saturated actions, larger rewards if they are tiny, or another seed."
        )
    return (
        f"Not a finite number: {', '.join(wrong)}. The networks are of no more use. Try a smaller learning rate, a limit for "
        "gradients, and VecCheckNan to see whether the environment itself returns NaN."
    )
