"""The subcommand ``export``."""

from pathlib import Path
from typing import Annotated

import typer

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.model_file import load_vec_normalize


def export(
    model: Annotated[Path, typer.Argument(help="A saved model (.zip).")],
    out: Annotated[Path, typer.Option(help="The file: .onnx, or .pt2 for torch.export.")],
    vecnormalize: Annotated[
        Path | None, typer.Option(help="VecNormalize's statistics, for a model trained with them.")
    ] = None,
) -> None:
    """Write a model's policy for use without this package: observation in, action in environment units out."""
    if not model.is_file():
        raise ArgumentError("MODEL", str(model), "a saved model")
    if out.suffix not in (".onnx", ".pt2"):
        raise ArgumentError("--out", str(out), "a file that ends in .onnx or .pt2")
    loaded = ScratchDDPG.load(model, device="cpu", buffer_size=1)
    statistics = None if vecnormalize is None else load_vec_normalize(vecnormalize, None)
    write = loaded.export_onnx if out.suffix == ".onnx" else loaded.export_torch
    write(out, statistics)
    typer.echo(f"Wrote {out}")
