"""Output on a terminal, and the command given there."""

import shlex
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(console: Console, text: str) -> None:
    """Print a line verbatim: names and paths are not wrapped, highlighted or read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_bars(console: Console) -> Progress:
    """One bar per task, with its description and the time left."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def command_line() -> str:
    return shlex.join(["sb3-ddpg-scratch", *sys.argv[1:]])
