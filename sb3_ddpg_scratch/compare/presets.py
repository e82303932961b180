"""The presets as arms of a comparison in one environment, each with its own budget."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sb3_ddpg_scratch.compare.experiment import Arm, Experiment
from sb3_ddpg_scratch.compare.plan import Plan, arm_settings, check_budget, plan_comparison
from sb3_ddpg_scratch.validation import check_whole_number
from sb3_ddpg_scratch.zoo.registry import check_env
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, preset_file, preset_names, read_settings

# For presets without a budget for the environment: enough to learn Pendulum after 25,000 random steps.
DEFAULT_STEPS = 40_000


def plan_presets(env_id: str, presets: Sequence[str] = (), seeds: int = 3, steps: int | None = None, **settings: Any) -> Plan:
    """These presets, or all that have settings for the environment; other ``settings`` are those of an ``Experiment``."""
    check_whole_number("seeds", seeds, 1)
    env_id, packages = check_env(env_id, settings.pop("gym_packages", ()))
    budgets = {}
    for name in presets or preset_names():
        content = read_settings(preset_file(name))
        if presets or env_id in content or "default" in content:
            stated = int(arm_settings(_arm(name), env_id)["n_timesteps"]) if env_id in content else DEFAULT_STEPS
            budgets[name] = steps or stated
    # One seed shows how they learn, though not which is better, for which a comparison has two and more.
    sizes: dict[str, Any] = {"seeds": max(seeds, 2), "steps": max(budgets.values()), "gym_packages": packages}
    plan = plan_comparison(Experiment(tuple(map(_arm, budgets)), {env_id: {}}, **sizes, **settings))
    specs = [
        replace(spec, steps=budgets[spec.arm], settings=spec.settings | {"n_timesteps": budgets[spec.arm]})
        for spec in plan.specs
        if spec.seed < seeds
    ]
    for spec in specs:
        check_whole_number("steps", spec.steps, spec.evaluations)
        check_budget(spec, "Give more, or choose other presets by --preset.")
    return replace(plan, specs=specs)


def _arm(preset: str) -> Arm:
    return Arm(preset, ALGO, preset, None, {})
