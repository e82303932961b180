"""Options that several subcommands share."""

from typing import Annotated

import typer

# demo adds a few thousand to the seed, for its evaluations.
MAX_SEED = 2**32 - 10_000
OneFile = Annotated[bool, typer.Option("--one-file", help="Put Plotly (5 MB) into the page, not into a file beside it.")]
GymPackages = Annotated[
    list[str] | None, typer.Option(help="A module to import, as it registers environments or defines classes; once for each.")
]
