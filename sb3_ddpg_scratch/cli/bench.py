"""The subcommand ``bench``."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import typer
from rich.console import Console

from sb3_ddpg_scratch.cli.options import GymPackages
from sb3_ddpg_scratch.gym_packages import registered_env
from sb3_ddpg_scratch.validation import check_action_space


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short round: enough to see, not to quote.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write every measurement to this file.")] = None,
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions, or module:Id.")] = "Pendulum-v1",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    parts: Annotated[Path | None, typer.Option(help="Only draw where the time of one step goes, to this PNG file.")] = None,
    uses: Annotated[bool, typer.Option("--uses", help="Only what users add: own callback, VecNormalize, Dict, ...")] = False,
    gym_packages: GymPackages = None,
) -> None:
    """Time our updaters against SB3's DDPG, SBX's and the bare matrix products, each in its own process."""
    from sb3_ddpg_scratch.bench.show import draw_bench_parts, run_bench, run_uses

    registered = registered_env(env, gym_packages or ())
    with closing(gym.make(registered.env_id)) as made:
        check_action_space(made.action_space)
    if parts is not None:
        draw_bench_parts(registered, parts, Console())
        return
    measure = run_uses if uses else run_bench
    measure(registered, quick, 1 if quick else rounds, json, Console())
