"""RL Zoo's scripts as subcommands. RL Zoo itself is imported only when one of them runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperCommand

from sb3_ddpg_scratch.cli.options import GymPackages
from sb3_ddpg_scratch.compare import PACKAGES
from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.terminal import command_line

HELP = {
    "train": "Train, tune (-optimize), continue (-i) or --resume an agent with RL Zoo; --preset NAME for a known DDPG.",
    "enjoy": "Play episodes with a trained agent.",
    "plot-train": "Plot the training returns of agents.",
    "all-plots": "Gather evaluations of several agents into a plot, a table and a file.",
    "plot-from-file": "Plot what all-plots has gathered.",
    "benchmark": "Evaluate all trained agents of a folder and write a table.",
    "record-video": "Record a video of a trained agent.",
    "record-training": "Record a video of an agent's checkpoints.",
    "push-to-hub": "Upload a trained agent to the Hugging Face hub.",
    "load-from-hub": "Download a trained agent from the Hugging Face hub.",
}

_PANEL = "RL Zoo (each with the options of its script)"


class _PassedOn(TyperCommand):
    """Passes its arguments, including --help, to another parser."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]  # typer's own context type moves between versions
        ctx.args = list(args)
        return ctx.args


def _run(ctx: typer.Context) -> None:
    from sb3_ddpg_scratch.zoo.scripts import run_script

    run_script(str(ctx.info_name), ctx.args)


def add_zoo_commands(app: typer.Typer) -> None:
    for name, text in HELP.items():
        app.command(name, help=text, cls=_PassedOn, rich_help_panel=_PANEL)(_run)
    app.command()(presets)


def presets(
    out: Annotated[Path, typer.Option(help="Folder for everything; finished runs in it are not repeated.")],
    env: Annotated[str, typer.Option(help="A registered environment, or module:Id.")] = "Pendulum-v1",
    preset: Annotated[list[str] | None, typer.Option(help="A preset, once for each; default: all of them.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each, from 0.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time, with one thread each.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each run; default: what the preset states for the environment, else 40,000.")
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Evaluations in each run, evenly spaced.")] = 20,
    eval_episodes: Annotated[int, typer.Option(min=1, help="Noise-free episodes in each evaluation.")] = 10,
    device: Annotated[str, typer.Option(help="Device of the networks.")] = "cpu",
    gym_packages: GymPackages = None,
) -> None:
    """Compare the presets, each with its own budget and several seeds: everything that compare writes."""
    require("presets", "compare", *PACKAGES)
    from sb3_ddpg_scratch.compare.comparison import run_comparison
    from sb3_ddpg_scratch.compare.presets import plan_presets

    settings = {"evaluations": evaluations, "eval_episodes": eval_episodes, "device": device, "jobs": jobs, "out": out}
    plan = plan_presets(env, preset or (), seeds, steps, gym_packages=gym_packages or (), **settings)
    outcome = run_comparison(plan, Console(), command_line())
    if outcome.failed or outcome.summary is None:
        raise typer.Exit(1)
