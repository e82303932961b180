"""The subcommand ``compare``. Its dependencies are imported only when it runs."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.cli.options import GymPackages, OneFile
from sb3_ddpg_scratch.compare import PACKAGES
from sb3_ddpg_scratch.errors import ArgumentError, require
from sb3_ddpg_scratch.terminal import command_line

WORSE = 1
EXAMPLE = Path(__file__).resolve().parent.parent / "compare" / "example.yml"


def write_example(path: Path) -> None:
    if path.exists():
        raise ArgumentError("--example", str(path), "a new file")
    write_whole(path, EXAMPLE.read_text())
    typer.echo(f"Wrote {path}. Change it, and run: sb3-ddpg-scratch compare {shlex.quote(str(path))}")


def compare(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file with these options, or ou_vs_gaussian, layer_norm, td3_changes, networks, results; options win."
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ALGO[:key=value,...], once for each; default: ours and SB3's DDPG with the same settings."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="A registered environment, or module:Id; once for each.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds for each arm on each environment, from 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for everything; finished runs in it are not repeated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each run; default: the Zoo's for the environment.")] = None,
    evaluations: Annotated[int | None, typer.Option(help="Evaluations in each run, evenly spaced (20).")] = None,
    eval_episodes: Annotated[int | None, typer.Option(help="Noise-free episodes in each evaluation (10).")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; default: one for each core.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each run (1).")] = None,
    device: Annotated[str | None, typer.Option(help="Device of the networks (cpu).")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Equivalence margin, as a fraction of the baseline's score over random (0.1).")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The arm to compare with, or a stored results.json (or its folder).")
    ] = None,
    diagnostics: Annotated[
        bool | None, typer.Option("--diagnostics", help="Also record Q of each arm's first seed, and draw them side by side.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between the checkpoints from which an interrupted run continues (50,000).")
    ] = None,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Where runs are executed.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of a Ray cluster; without it Ray runs on this machine.")] = None,
    gym_packages: GymPackages = None,
    one_file: OneFile = False,
    example: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only write a commented experiment, with every key, to this new file.")
    ] = None,
    fail_on: Annotated[Literal["worse"] | None, typer.Option(help="Exit with 1 if an arm is worse than the baseline.")] = None,
) -> None:
    """Train arms with several seeds on environments; say whether they are the same, better or worse, and show it."""
    if example is not None:
        write_example(example)
        return
    require("compare", "compare", *PACKAGES)
    if executor == "ray":
        require("--executor ray", "cluster", "ray")
    from sb3_ddpg_scratch.compare.comparison import run_comparison
    from sb3_ddpg_scratch.compare.experiment import experiment_from, read_experiment, with_options
    from sb3_ddpg_scratch.compare.plan import plan_comparison

    if ray_address is not None and executor != "ray":
        raise ArgumentError("--ray-address", ray_address, problem="needs --executor ray")
    options: dict[str, Any] = {
        **{"arms": arm, "envs": env, "seeds": seeds, "out": out, "steps": steps, "evaluations": evaluations},
        **{"eval_episodes": eval_episodes, "jobs": jobs, "threads": threads, "device": device, "margin": margin},
        **{"baseline": baseline, "diagnostics": diagnostics, "checkpoint_every": checkpoint_every},
        **{"gym_packages": gym_packages},
    }
    given = {key: value for key, value in options.items() if value is not None}
    content = with_options(read_experiment(experiment) if experiment is not None else {}, given)
    plan = plan_comparison(experiment_from(content))
    outcome = run_comparison(plan, Console(), command_line(), ray_address, executor == "ray", one_file)
    if outcome.failed or outcome.summary is None:
        raise typer.Exit(1)
    if fail_on == "worse":
        from sb3_ddpg_scratch.compare.conclusions import worst_verdict

        if worst_verdict(outcome.summary) == "worse":
            raise typer.Exit(WORSE)
