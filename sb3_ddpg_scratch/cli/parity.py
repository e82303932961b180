"""The subcommand ``parity``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sb3_ddpg_scratch.cli.options import MAX_SEED, GymPackages
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.gym_packages import registered_env
from sb3_ddpg_scratch.parity import Algorithm, Noise, ParityResult, run_parity
from sb3_ddpg_scratch.terminal import progress_bars, say

DIFFERENT = 1


def parity(
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions, or module:Id.")] = "Pendulum-v1",
    steps: Annotated[int, typer.Option(min=1, help="Environment steps for each side.")] = 1000,
    n_envs: Annotated[int, typer.Option(min=1, help="Environments; with several, one update per transition.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    algo: Annotated[Algorithm, typer.Option(help="SB3's DDPG, or its TD3 against our TD3 switches.")] = "ddpg",
    noise: Annotated[Noise, typer.Option(help="Action noise of both sides.")] = "gaussian",
    net_arch: Annotated[str, typer.Option(help="Hidden layers, as in 64,64; default: SB3's.")] = "",
    json: Annotated[Path | None, typer.Option(help="Also write the result to this file.")] = None,
    gym_packages: GymPackages = None,
) -> None:
    """Train SB3's DDPG and ours with the same seed and noise; exit 0 if every parameter and optimizer entry is equal."""
    layers: tuple[int, ...] | None = None
    if net_arch:
        try:
            layers = tuple(int(width) for width in net_arch.split(","))
        except ValueError:
            layers = ()
        if min(layers, default=0) < 1:
            raise ArgumentError("--net-arch", net_arch, "widths joined by commas, as in 64,64")
    env_id = registered_env(env, gym_packages or ()).env_id
    console = Console()
    with progress_bars(console) as display:
        tasks = {name: display.add_task(name, total=steps) for name in ("SB3", "ScratchDDPG")}

        def show_progress(name: str, done: int) -> None:
            display.update(tasks[name], completed=min(done, steps))

        result = run_parity(env_id, steps, n_envs, seed, algo, noise, layers, show_progress)
    if json is not None:
        result.write_json(json)
    _show(console, result)
    if not result.equal:
        raise typer.Exit(DIFFERENT)


def _show(console: Console, result: ParityResult) -> None:
    title = f"{result.settings['env']}: {result.settings['steps']} steps, {result.updates} updates"
    say(console, title)
    table = Table("what")
    table.add_column("entries", justify="right")
    table.add_column("largest difference", justify="right")
    for name, (entries, largest) in result.by_object().items():
        table.add_row(name, str(entries), f"{largest:g}")
    console.print(table)
    if result.updates == 0:
        say(console, "No updates were made, so nothing was compared: raise --steps.")
    elif result.equal:
        say(console, "Equal bit for bit.")
    else:
        worst = max(result.differences, key=lambda name: result.differences[name])
        say(console, f"Different: {worst} by {result.largest_difference:g}.")
