"""The subcommand ``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.cli.options import GymPackages
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.export import require_onnx
from sb3_ddpg_scratch.gym_packages import import_modules
from sb3_ddpg_scratch.model_file import load_vec_normalize, statistics_of


def export(
    model: Annotated[Path, typer.Argument(help="A saved model (.zip).")],
    out: Annotated[Path, typer.Option(help="The file: .onnx, or .pt2 for torch.export.")],
    vecnormalize: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="VecNormalize's statistics; default: those beside the model, if any. 'none' for a policy that takes "
            "observations which are normalized already.",
        ),
    ] = None,
    gym_packages: GymPackages = None,
) -> None:
    """Write a model's policy for use without this package: observation in, action in environment units out."""
    import_modules(gym_packages or ())
    if out.suffix not in (".onnx", ".pt2"):
        raise ArgumentError("--out", str(out), "a file that ends in .onnx or .pt2")
    if out.suffix == ".onnx":
        require_onnx()
    if not model.is_file():
        raise ArgumentError("MODEL", str(model), "a saved model")
    loaded = ScratchDDPG.load(model, device="cpu", buffer_size=1)
    statistics = _statistics(model, vecnormalize, loaded)
    write = loaded.export_onnx if out.suffix == ".onnx" else loaded.export_torch
    write(out, statistics)
    typer.echo(f"Wrote {out}")


def _statistics(model: Path, given: str | None, loaded: ScratchDDPG) -> VecNormalize | Literal[False] | None:
    """The given statistics, or those beside the model; rejects a model that needs some and has none."""
    if given == "none":
        return False
    path = statistics_of(model) if given is None else Path(given)
    if path is None:
        if loaded.observations_normalized or _says_normalize(model):
            advice = (
                "The model was trained with VecNormalize. Give its file, or 'none' if observations are normalized already."
            )
            raise ArgumentError("--vecnormalize", None, "given", advice)
        return None
    if not path.is_file():
        raise ArgumentError("--vecnormalize", given, "a file that VecNormalize.save wrote, or none")
    statistics = load_vec_normalize(path, None)
    if given is None and statistics.norm_obs:
        typer.echo(f"With the statistics of VecNormalize in {path}")
    return statistics


def _says_normalize(model: Path) -> bool:
    """Whether the settings that RL Zoo saved with a model include ``normalize``, of observations."""
    from sb3_ddpg_scratch.zoo.yaml_settings import read_saved

    found = [read_saved(path).get("normalize") for path in model.parent.glob("*/config.yml")]
    return any(one and not (isinstance(one, dict) and one.get("norm_obs") is False) for one in found)
