"""Signs of diverging training, as sentences with advice."""

import math
from collections.abc import Mapping

PERSISTENCE = 3
"""A sign counts once this many consecutive measurements show it."""
ALL_SATURATED = 0.99


def largest_return(largest_reward: float, gamma: float) -> float:
    """A bound on the size of any discounted return: ``max |r| / (1 - gamma)``, the sum of the geometric series."""
    return largest_reward / (1 - gamma) if gamma < 1 else math.inf


class DivergenceWatch:
    """Checks each measurement and reports each sign once: NaN at once, the others after three measurements in a row."""

    def __init__(self, actor_size: int, epsilon: float) -> None:
        self.vanished_below = epsilon * math.sqrt(actor_size)
        self.active: set[str] = set()
        self.said: set[str] = set()
        self._streaks = {"q_beyond_bound": 0, "saturated": 0, "vanished_gradient": 0}
        self._q_before = 0.0

    def look(self, numbers: Mapping[str, float], bound: float) -> dict[str, str]:
        """New signs and their texts; ``bound`` is :func:`largest_return`, 0 while every reward has been 0."""
        q_size = numbers["q_abs_mean"]
        # A fresh critic may predict more than tiny rewards allow, but then its values shrink as it learns.
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
        details = {"bound": bound, "wrong": ", ".join(wrong)}
        return {name: _TEXTS[name].format(**numbers, **details) for name in fresh}


_TEXTS = {
    "q_beyond_bound": (
        "Q has grown to a mean size of {q_abs_mean:.4g}, beyond {bound:.4g}, the largest return that the rewards seen so far "
        "allow (max |r| / (1 - gamma)): the critic is diverging. Try a smaller learning rate for the critic, a smaller tau, "
        "gradient clipping, normalized rewards (VecNormalize), or TD3's twin critics."
    ),
    "saturated": (
        "{saturated:.0%} of the policy's actions are at their bounds: tanh passes almost no gradient there and the actor can "
        "hardly learn. Try a smaller learning rate for the actor, smaller or normalized observations and rewards "
        "(VecNormalize), LayerNorm, action_l2, or a longer random warm-up."
    ),
    "vanished_gradient": (
        "The actor's gradient has vanished (norm {actor_grad_norm:.2g}): the policy no longer changes. Try the remedies for "
        "saturated actions, larger rewards if they are tiny, or another seed."
    ),
    "not_finite": (
        "Not a finite number: {wrong}. The networks are no longer usable. Try a smaller learning rate, gradient clipping, "
        "and VecCheckNan to see whether the environment itself returns NaN."
    ),
}
