"""Options that several subcommands share."""

from typing import Annotated

import typer

GymPackages = Annotated[
    list[str] | None, typer.Option(help="A module to import, as it registers environments or defines classes; once for each.")
]
