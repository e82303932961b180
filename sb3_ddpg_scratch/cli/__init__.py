"""The command ``sb3-ddpg-scratch``, with one module per subcommand or small group of them."""

from typing import Annotated

import gymnasium as gym
import typer
from rich.console import Console
from rich.markup import escape

from sb3_ddpg_scratch import __version__
from sb3_ddpg_scratch.cli import bench, compare, demo, export, parity, report, zoo
from sb3_ddpg_scratch.errors import (
    ArgumentError,
    CheckpointError,
    EnvironmentOutputError,
    ExportError,
    MissingPackageError,
    ModelFileError,
)
from sb3_ddpg_scratch.gym_packages import add_current_folder

# Exit statuses; Typer itself uses the second after Ctrl-C.
WRONG_INPUT, INTERRUPTED = 2, 130

REPORTED = (
    *(ArgumentError, CheckpointError, EnvironmentOutputError, ExportError, MissingPackageError, ModelFileError),
    *(gym.error.Error, OSError),
)

app = typer.Typer(
    name="sb3-ddpg-scratch",
    help="DDPG written by hand inside Stable-Baselines3's API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"sb3-ddpg-scratch {__version__}")
        raise typer.Exit


for command in (parity.parity, demo.demo, report.report, bench.bench, compare.compare, export.export):
    app.command()(command)
zoo.add_zoo_commands(app)


def main() -> None:
    """Run the command; on invalid input or an interruption, print a message instead of a traceback."""
    console = Console(stderr=True)
    add_current_folder()
    try:
        app()
    except REPORTED as error:
        text = str(error) or repr(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        console.print(f"[bold red]Error:[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise SystemExit(WRONG_INPUT) from error
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            console.print("Interrupted.")
        raise
