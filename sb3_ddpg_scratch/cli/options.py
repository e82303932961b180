"""Options that several subcommands share."""

from typing import Annotated

import typer

# demo adds a few thousand to the seed, for its evaluations.
MAX_SEED = 2**32 - 10_000
GymPackages = Annotated[
    list[str] | None, typer.Option(help="A module to import, as it registers environments or defines classes; once for each.")
]
