"""Text on a terminal."""

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line verbatim: names and paths are not wrapped, highlighted or read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
