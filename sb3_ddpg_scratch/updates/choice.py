"""Which updater makes the next updates: the fastest that supports the networks as they are at that moment."""

import math
import warnings
from typing import Any

from sb3_ddpg_scratch.networks import Actor
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater
from sb3_ddpg_scratch.updates.compiled_actor import CompiledActor
from sb3_ddpg_scratch.updates.inspection import every_reason
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings

Updater = CompiledUpdater | AutogradUpdater
_SET_TRAINING_MODE = ScratchDDPGPolicy.set_training_mode

# The updaters to try for each name, from the fastest to the one that supports everything.
_TO_TRY: dict[str, tuple[type[Updater], ...]] = {
    "auto": (CompiledUpdater, AnalyticUpdater, AutogradUpdater),
    "compiled": (CompiledUpdater, AnalyticUpdater, AutogradUpdater),
    "analytic": (AnalyticUpdater, AutogradUpdater),
    "autograd": (AutogradUpdater,),
}
UPDATERS = tuple(_TO_TRY)
# Time of an update relative to a compiled one, by the widest hidden layer, from the tables in docs/benchmarks.md.
_COSTS = (
    (128, {"compiled": 1.0, "analytic": 15.0, "autograd": 15.0}),
    (320, {"compiled": 1.0, "analytic": 1.9, "autograd": 2.0}),
    (math.inf, {"compiled": 1.0, "analytic": 1.6, "autograd": 1.8}),
)


def why_not_compiled_with(settings: UpdateSettings, buffer: Any) -> str | None:
    """What of an update, besides its networks, the kernels do not compute."""
    if settings.bc_alpha is not None:
        return "bc_alpha adds behavior cloning"
    return "replay is prioritized" if getattr(buffer, "is_prioritized", False) else None


class UpdaterChoice:
    """
    Picks the fastest updater that supports the networks before each series of updates, from ``name`` (one of
    :data:`UPDATERS`) on. If it is another one, a warning says why, once per reason. If ``verbose``, the first training
    prints which it is.
    """

    def __init__(self, name: str, verbose: int = 0) -> None:
        self.wanted = name
        self._announced = verbose < 1
        self._updaters = [updater() for updater in _TO_TRY[name]]
        self._may_compile = name in ("auto", "compiled")
        self.compiled_actor = CompiledActor()
        self._last: Updater | _Readings = _Readings({}, {})
        self._known_reasons: set[str] = set()
        self._just_trained: CompiledUpdater | None = None
        self.trust(False)

    def trust(self, nothing_changes: bool | None) -> None:
        """Set whether networks and optimizers stay unchanged after the next look; ``None`` until a rollout finds out."""
        self.trusted = nothing_changes
        # What was found when nothing could change any more.
        self._settled: CompiledUpdater | None = None
        self._actor_settled = False
        self._just_trained = None

    def objection(self, networks: Networks) -> str | None:
        """Why the requested updater cannot train these networks; ``None`` if it can."""
        return self._updaters[0].objection(networks)

    def expect(self, reason: str | None) -> None:
        """Suppress the warning for this reason."""
        self._known_reasons |= {reason} if reason else set()

    def choose(self, networks: Networks, obstacle: str | None = None) -> tuple[Updater, str | None]:
        """
        The fastest updater for these networks, and why it is not the requested one, if so. ``obstacle`` is what besides the
        networks rules out the compiled one.
        """
        reason = self._updaters[0].objection(networks) or (obstacle if self._may_compile else None)
        if reason is None:
            return self._updaters[0], None
        return next(updater for updater in self._updaters[1:] if updater.objection(networks) is None), reason

    def pick(self, networks: Networks, obstacle: str | None = None) -> Updater:
        """The fastest updater for these networks, with a warning if it is not the requested one."""
        if self._settled is not None and obstacle is None:
            return self._settled
        updater, reason = self.choose(networks, obstacle)
        if self.trusted and isinstance(updater, CompiledUpdater):
            self._settled = updater
        if reason is not None and reason not in self._known_reasons:
            self._known_reasons.add(reason)
            warnings.warn(f"Using the {updater.name!r} updater while {reason}.", stacklevel=4)
        return updater

    def may_act(self, actor: Actor) -> bool:
        """Whether the compiled actor can replace this one."""
        if self._actor_settled:
            return True
        may = self._may_compile and self.compiled_actor.objection(actor) is None
        self._actor_settled = may and bool(self.trusted)
        return may

    def train(self, policy: ScratchDDPGPolicy, networks: Networks, *arguments: Any) -> None:
        obstacle = why_not_compiled_with(arguments[3], arguments[0])
        self._last = updater = self.pick(networks, obstacle)
        if not self._announced:
            self._announced = True
            print(self._announcement(updater, networks, obstacle))
        self._just_trained = updater if isinstance(updater, CompiledUpdater) else None
        if self._just_trained is None:
            policy.set_training_mode(True)
        updater.train(networks, *arguments)
        if self._just_trained is not None:
            self._set_flags(policy, self._just_trained, True)

    def end_training_mode(self, policy: ScratchDDPGPolicy) -> None:
        """``policy.set_training_mode(False)``, in a fiftieth of the time where a compiled update has just been made."""
        if self._just_trained is None:
            policy.set_training_mode(False)
        else:
            self._set_flags(policy, self._just_trained, False)
            self._just_trained = None

    @staticmethod
    def _set_flags(policy: ScratchDDPGPolicy, updater: CompiledUpdater, mode: bool) -> None:
        if type(policy).set_training_mode is not _SET_TRAINING_MODE or "set_training_mode" in vars(policy):
            policy.set_training_mode(mode)
            return
        # Compiled updates are the same in both modes.
        vars(policy)["training"] = mode
        for attributes in updater.trained_modules:
            attributes["training"] = mode

    def _announcement(self, updater: Updater, networks: Networks, obstacle: str | None) -> str:
        said = f"Training with the {updater.name!r} updater"
        fastest = self._updaters[0].name
        if updater.name == fastest:
            return f"{said}."
        width = max(getattr(networks.actor, "net_arch", ()), default=0)
        costs = next(costs for widest, costs in _COSTS if width <= widest)
        cost = costs[updater.name] / costs[fastest]
        slower = f", about {cost:.2g} x slower than {fastest!r}" if cost > 1 else ""
        reasons = every_reason(networks, fastest == "compiled") + ([obstacle] if obstacle else [])
        return f"{said}{slower}: {', '.join(reasons)}."

    def losses_are_finite(self) -> bool:
        """Of the last update."""
        return self._last.losses_are_finite()

    def read_losses(self) -> dict[str, float]:
        return self._last.read_losses()

    def read_statistics(self) -> dict[str, float]:
        return self._last.read_statistics()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy inspects and allocates for its own networks; only the readings are kept.
        state = (self._known_reasons.copy(), self._announced, self.read_losses(), self.read_statistics())
        return UpdaterChoice, (self.wanted,), state

    def __setstate__(self, state: tuple[set[str], bool, dict[str, float], dict[str, float]]) -> None:
        self._known_reasons, self._announced, losses, statistics = state
        self._last = _Readings(losses, statistics)


class _Readings:
    """The last readings of an updater, kept in its copies."""

    def __init__(self, losses: dict[str, float], statistics: dict[str, float]) -> None:
        self._losses, self._statistics = losses, statistics

    def losses_are_finite(self) -> bool:
        return all(map(math.isfinite, self._losses.values()))

    def read_losses(self) -> dict[str, float]:
        return self._losses

    def read_statistics(self) -> dict[str, float]:
        return self._statistics
