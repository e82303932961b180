"""
Arms compared on environments with several seeds: experiment, runs, statistics, verdict and report; the presets side by side.

What a program or notebook needs is exported here and imported on first use, since it needs the ``compare`` extra.
"""

from importlib import import_module
from typing import Any

from sb3_ddpg_scratch.errors import require

PACKAGES = ("pandas", "scipy", "rliable", "plotly", "matplotlib")
_MODULES = {
    "experiment_from": "experiment",
    "figures": "report",
    "plan_comparison": "plan",
    "read_experiment": "experiment",
    "read_results": "results_file",
    "run_comparison": "comparison",
    "score_table": "report",
    "verdict_table": "report",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require(f"{__name__}.{name}", "compare", *PACKAGES)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
