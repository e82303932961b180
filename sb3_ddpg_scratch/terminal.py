"""Output on a terminal, and the command given there."""

import shlex
import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(console: Console, text: str) -> None:
    """Print a line verbatim: names and paths are not wrapped, highlighted or read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_bars(console: Console) -> Progress:
    """One bar per task, with its description and the time left."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


class ProgressLines:
    """Prints a line now and then where the output is no terminal, which shows no bars: a log, a notebook, a pipe."""

    seconds_between = 20.0

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self.console, self.total, self.first = console, total, done
        self.begun = self.told = time.monotonic()

    def tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self.told < self.seconds_between or self.console.is_terminal or done <= self.first:
            return
        self.told, taken = now, now - self.begun
        left = taken * (self.total - done) / (done - self.first)
        spent, rest = (timedelta(seconds=max(round(seconds), 0)) for seconds in (taken, left))
        say(self.console, f"{done:,} of {self.total:,} steps ({done / self.total:.0%}) after {spent}, about {rest} left")


def command_line() -> str:
    return shlex.join(["sb3-ddpg-scratch", *sys.argv[1:]])
