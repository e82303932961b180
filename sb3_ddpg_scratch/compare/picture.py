"""Learning curves as a picture for papers: a grid of panels."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.curves import Curve

COLORS = ("#0b61a4", "#b8460e", "#0a7a55", "#7a2fa3", "#8a6100", "#b3246b", "#3f4a56", "#00707f")
MOST_COLUMNS = 3
DOTS_PER_INCH = 200

Panels = Mapping[str, Callable[[Any], None]]


def draw_comparison(curves: Mapping[str, Sequence[Curve]], summary: Mapping[str, Any], path: Path) -> None:
    """One panel for each environment with the curves of all arms."""
    handles: dict[str, Any] = {}

    def panel(env: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            for curve in curves[env]:
                color = COLORS[curve.number % len(COLORS)]
                axes.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.17, linewidth=0)
                (handles[curve.arm],) = axes.plot(curve.steps, curve.middle, color=color, linewidth=1.6)
            random = summary["random_scores"].get(env)
            if random is not None:
                handles["random policy"] = axes.axhline(random, color="0.5", linestyle=":", linewidth=1)
            axes.set_xlim(left=0)

        return draw

    _draw_panels({env: panel(env) for env in curves}, path, handles)


def draw_seeds(returns: Mapping[str, Mapping[int, tuple[Sequence[int], Sequence[float]]]], path: Path, title: str) -> None:
    """One panel for each arm with a thin line for each seed, given as steps and returns, and a bold one for their mean."""

    def panel(arm: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            lines = list(returns[arm].values())
            for steps, values in lines:
                axes.plot(steps, values, color="tab:blue", alpha=0.4, linewidth=1)
            length = min(len(values) for _, values in lines)
            mean = [sum(values) / len(lines) for values in zip(*(values[:length] for _, values in lines), strict=True)]
            axes.plot(lines[0][0][:length], mean, color="tab:blue", linewidth=2)

        return draw

    panels = {f"{arm} ({len(own)} seed{'s' if len(own) > 1 else ''})": panel(arm) for arm, own in returns.items()}
    _draw_panels(panels, path, title=title, sharey=True)


def _draw_panels(
    panels: Panels, path: Path, handles: Mapping[str, Any] | None = None, title: str = "", sharey: bool = False
) -> None:
    """A grid of titled panels, each drawn by its function, which may add handles for the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.6, 3.6 * columns), 0.7 + 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for (name, draw), axes in zip(panels.items(), grid.flat, strict=False):
        draw(axes)
        axes.set_title(_literal(name), fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("return", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    if handles:
        labels = [_literal(arm) for arm in handles]
        figure.legend(list(handles.values()), labels, loc="outside upper center", ncols=4, frameon=False)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_whole(path, content.getvalue())


def _literal(text: str) -> str:
    # Matplotlib would typeset what stands between dollar signs as mathematics.
    return text.replace("$", r"\$")
