"""The subcommand ``report``. Plotly is imported only when it runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sb3_ddpg_scratch.cli.options import OneFile
from sb3_ddpg_scratch.errors import require


def report(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders in which DiagnosticsCallback recorded runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in DIR, or here for several.")] = None,
    video: Annotated[bool, typer.Option("--video", help="Also play an episode of each policy, as an animated GIF.")] = False,
    one_file: OneFile = False,
    model: Annotated[Path | None, typer.Option(help="For --video of one run: a saved model with the weights to play.")] = None,
) -> None:
    """Draw recorded runs side by side, as one HTML page that works offline."""
    require("report", "report", "plotly")
    from sb3_ddpg_scratch.diagnostics.report import default_path, write_report

    result = write_report(dirs, out or default_path(dirs), video, model, one_file)
    for problem in result.problems:
        Console(stderr=True).print(f"[yellow]Note:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    for path in [result.path, *result.videos]:
        typer.echo(f"Wrote {path}")
