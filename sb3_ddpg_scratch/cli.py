"""The command ``sb3-ddpg-scratch``."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sb3_ddpg_scratch import __version__
from sb3_ddpg_scratch.compare.parity import ParityResult, run_parity
from sb3_ddpg_scratch.compare_command import compare
from sb3_ddpg_scratch.demo import run_demo
from sb3_ddpg_scratch.errors import (
    ArgumentError,
    CheckpointError,
    EnvironmentOutputError,
    ExportError,
    ModelFileError,
)
from sb3_ddpg_scratch.zoo_commands import add_zoo_commands

app = typer.Typer(
    name="sb3-ddpg-scratch",
    help="DDPG written by hand inside Stable-Baselines3's API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DIFFERENT, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class ParityAlgorithm(str, Enum):
    """What ``parity --algo`` may be."""

    ddpg = "ddpg"
    td3 = "td3"


class ParityNoise(str, Enum):
    """What ``parity --noise`` may be."""

    none = "none"
    gaussian = "gaussian"
    ou = "ou"


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"sb3-ddpg-scratch {__version__}")
        raise typer.Exit


@app.command()
def parity(
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions.")] = "Pendulum-v1",
    steps: Annotated[int, typer.Option(min=1, help="Environment steps for each side.")] = 1000,
    n_envs: Annotated[int, typer.Option(min=1, help="Environments; with several, one update per transition.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    algo: Annotated[ParityAlgorithm, typer.Option(help="SB3's DDPG, or its TD3 and our TD3 switches.")] = ParityAlgorithm.ddpg,
    noise: Annotated[ParityNoise, typer.Option(help="Action noise of both sides.")] = ParityNoise.gaussian,
    net_arch: Annotated[str, typer.Option(help="Hidden layers, as in 64,64; SB3's default if not given.")] = "",
    json: Annotated[Path | None, typer.Option(help="Also write the result to this file.")] = None,
) -> None:
    """Train SB3's DDPG and ours with the same seed and noise; exit 0 if every parameter and optimiser entry is equal."""
    layers = None
    if net_arch:
        try:
            layers = tuple(int(width) for width in net_arch.split(","))
        except ValueError as error:
            raise ArgumentError("--net-arch", net_arch, "widths joined by commas, as in 64,64") from error
    console = Console()
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as display:
        tasks = {name: display.add_task(name, total=steps) for name in ("SB3", "ScratchDDPG")}
        result = run_parity(
            env,
            steps,
            n_envs,
            seed,
            algo.value,
            noise.value,
            layers,
            progress=lambda name, done: display.update(tasks[name], completed=min(done, steps)),
        )
    if json is not None:
        result.write_json(json)
    _show_parity(console, result)
    if not result.equal:
        raise typer.Exit(DIFFERENT)


def _show_parity(console: Console, result: ParityResult) -> None:
    table = Table(title=f"{result.settings['env']}: {result.settings['steps']} steps, {result.updates} updates")
    for heading, justify in (("what", "left"), ("entries", "right"), ("largest difference", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, (entries, largest) in result.by_object().items():
        table.add_row(name, str(entries), f"{largest:g}")
    console.print(table)
    if result.updates == 0:
        console.print("No update was made, so nothing was compared: raise --steps.")
    elif result.equal:
        console.print("Equal bit for bit.")
    else:
        worst = max(result.differences, key=lambda name: result.differences[name])
        console.print(f"Different: {worst} by {result.largest_difference:g}.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train on Pendulum-v1 until it is solved, print the score beside a random policy's, save the model, draw a report."""
    run_demo(out, seed, Console())


@app.command()
def report(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders in which DiagnosticsCallback recorded runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; report.html in DIR, or here for several, if not given.")] = None,
    video: Annotated[bool, typer.Option("--video", help="Also play an episode of each policy, as an animated GIF.")] = False,
    model: Annotated[Path | None, typer.Option(help="For --video of one run: a saved model with the weights to play.")] = None,
) -> None:
    """Draw what runs recorded, side by side, as one HTML page that works offline."""
    from sb3_ddpg_scratch.diagnostics.report import default_path, write_report

    result = write_report(dirs, out or default_path(dirs), video, model)
    for problem in result.problems:
        Console(stderr=True).print(f"[yellow]Note:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    for path in [result.path, *result.videos]:
        typer.echo(f"Wrote {path}")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short round: enough to see, not to quote.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write every measurement to this file.")] = None,
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions.")] = "Pendulum-v1",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    sweep: Annotated[Path | None, typer.Option(help="Instead, draw how cost grows with sizes to this PNG file.")] = None,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Instead, time checkpoints of a full buffer.")] = False,
) -> None:
    """Time our updaters against SB3's DDPG, SBX's and the bare matrix products, each in a process of its own."""
    from sb3_ddpg_scratch.bench.show import run_and_draw_sweep, run_bench

    if env not in gym.registry:
        raise ArgumentError("--env", env, "a registered environment")
    if checkpoint:
        from sb3_ddpg_scratch.bench.checkpoints import run_checkpoints

        run_checkpoints(env, quick, Console())
    elif sweep is not None:
        run_and_draw_sweep(env, quick, sweep, Console())
    else:
        run_bench(env, quick, 1 if quick else rounds, json, Console())


app.command()(compare)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A saved model (.zip).")],
    out: Annotated[Path, typer.Option(help="The file: .onnx, or .pt2 for torch.export.")],
    vecnormalize: Annotated[
        Path | None, typer.Option(help="VecNormalize's statistics, for a model trained with them.")
    ] = None,
) -> None:
    """Write a model's policy for use without this package: observation in, action in environment units out."""
    from sb3_ddpg_scratch.ddpg import ScratchDDPG
    from sb3_ddpg_scratch.model_file import load_vec_normalize

    if not model.is_file():
        raise ArgumentError("MODEL", str(model), "a saved model")
    if out.suffix not in (".onnx", ".pt2"):
        raise ArgumentError("--out", str(out), "a file that ends in .onnx or .pt2")
    loaded = ScratchDDPG.load(model, device="cpu", buffer_size=1)
    statistics = None if vecnormalize is None else load_vec_normalize(vecnormalize, None)
    write = loaded.export_onnx if out.suffix == ".onnx" else loaded.export_torch
    write(out, statistics)
    typer.echo(f"Wrote {out}")


add_zoo_commands(app)


def main() -> None:
    """Run the command; wrong input and interruptions end it with a sentence instead of a traceback."""
    try:
        app()
    except (ArgumentError, CheckpointError, EnvironmentOutputError, ExportError, ModelFileError, gym.error.Error) as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(WRONG_INPUT) from error
    except KeyboardInterrupt as error:
        Console(stderr=True).print("Interrupted.")
        raise SystemExit(INTERRUPTED) from error


if __name__ == "__main__":
    main()
