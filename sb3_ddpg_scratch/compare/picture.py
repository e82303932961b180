"""The main figure of a comparison as a picture for papers."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.curves import Curve

COLORS = ("#0b61a4", "#b8460e", "#0a7a55", "#7a2fa3", "#8a6100", "#b3246b", "#3f4a56", "#00707f")
MOST_COLUMNS = 3
DOTS_PER_INCH = 200


def draw(curves: Mapping[str, Sequence[Curve]], summary: Mapping[str, Any], path: Path) -> None:
    """
    Draw the learning curves over environment steps: a panel for each environment.

    :param curves: of each environment, of all arms
    :param summary: of the comparison
    :param path: PNG file to write
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(len(curves), MOST_COLUMNS)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(4.6, 3.6 * columns), 0.6 + 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for (env, own), axes in zip(curves.items(), panels.flat, strict=False):
        for curve in own:
            color = COLORS[curve.number % len(COLORS)]
            axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.17, linewidth=0)
            (handles[curve.arm],) = axes.plot(curve.steps, curve.middle, color=color, linewidth=1.6)
        random = summary["random_scores"].get(env)
        if random is not None:
            handles["random policy"] = axes.axhline(random, color="0.5", linestyle=":", linewidth=1)
        axes.set_title(_literal(env), fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("return", fontsize=10)
    labels = [_literal(arm) for arm in handles]
    figure.legend(list(handles.values()), labels, loc="outside upper center", ncols=4, frameon=False)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_whole(path, content.getvalue())


def _literal(text: str) -> str:
    # Matplotlib would set what stands between dollar signs as mathematics.
    return text.replace("$", r"\$")
