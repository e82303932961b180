"""
Comparisons of arms on environments with several seeds, from experiment to report; also of the presets with one another.

The public names are imported on first use, since they need the ``compare`` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_ddpg_scratch.errors import require

if TYPE_CHECKING:
    from sb3_ddpg_scratch.compare.comparison import run_comparison
    from sb3_ddpg_scratch.compare.experiment import experiment_from, read_experiment
    from sb3_ddpg_scratch.compare.plan import plan_comparison
    from sb3_ddpg_scratch.compare.report import figures, score_table, verdict_table
    from sb3_ddpg_scratch.compare.results_file import read_results

PACKAGES = ("pandas", "plotly", "matplotlib")
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
__all__ = [
    "experiment_from",
    "figures",
    "plan_comparison",
    "read_experiment",
    "read_results",
    "run_comparison",
    "score_table",
    "verdict_table",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require(f"{__name__}.{name}", "compare", *PACKAGES)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
