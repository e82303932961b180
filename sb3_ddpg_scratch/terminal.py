"""Text on a terminal."""

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line as it is: names and paths in it are never broken, colored or taken for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
