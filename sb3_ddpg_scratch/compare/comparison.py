"""A whole comparison: performs the runs, collects and stores results, writes verdicts and report."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.plan import Plan, Protocol, try_out
from sb3_ddpg_scratch.compare.random_policy import random_score
from sb3_ddpg_scratch.compare.results_file import COLUMNS, FILE, Results, Run
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import hold_folder, holds_nothing
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.machine import usable_cores
from sb3_ddpg_scratch.parity import flatten
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.processes import RunProcesses
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result
from sb3_ddpg_scratch.terminal import say

EXPERIMENT_FILE = "experiment.json"
"""The settings of the comparison in a folder; one with other settings must not continue there."""
_ADVICE = "Choose another folder, or the settings of the comparison in it."
# Submitted to Ray at a time: more than a cluster can run at once, so that Ray does the scheduling.
RUNS_IN_RAY = 256


@dataclass(frozen=True)
class Outcome:
    """Runs that failed, and the contents of ``summary.json`` (``None`` if no run finished)."""

    failed: list[RunSpec]
    summary: dict[str, Any] | None


def run_comparison(
    plan: Plan, console: Console, command: str, ray_address: str | None = None, ray: bool = False, one_file: bool = False
) -> Outcome:
    """Perform unfinished runs, here or on Ray, and write all files, even when interrupted."""
    out = plan.experiment.out
    check_folder(plan.specs, out)
    try_out([spec for spec in plan.specs if finished_result(spec, out) is None])
    with hold_folder(out, "--out"):
        check_folder(plan.specs, out)  # another comparison may have started there meanwhile
        claim_folder(plan.specs, out)
        scores = {env_id: random_score(env_id) for env_id in plan.experiment.envs}
        failed: list[RunSpec] = []
        try:
            failed = _perform(plan, console, ray, ray_address)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):
                _conclude(plan, gather(plan, scores, [], command), console, one_file)
            raise
        return Outcome(failed, _conclude(plan, gather(plan, scores, failed, command), console, one_file))


def _perform(plan: Plan, console: Console, ray: bool, ray_address: str | None) -> list[RunSpec]:
    experiment = plan.experiment
    if all(finished_result(spec, experiment.out) is not None for spec in plan.specs):
        say(console, f"All {len(plan.specs)} runs are finished already.")
        return []
    if ray:
        from sb3_ddpg_scratch.runs.ray_executor import RayRuns

        with RayRuns(experiment.out, experiment.threads, ray_address, experiment.gym_packages) as runs:
            return perform_runs(plan.specs, experiment.out, runs, RUNS_IN_RAY, console)
    jobs = min(experiment.jobs, max(usable_cores() // experiment.threads, 1))
    if jobs < experiment.jobs:
        say(console, f"{jobs} runs at a time instead of {experiment.jobs}: there are {usable_cores()} cores.")
    processes = RunProcesses(experiment.out, experiment.threads, experiment.checkpoint_every, experiment.gym_packages)
    return perform_runs(plan.specs, experiment.out, processes, jobs, console)


def gather(plan: Plan, random_scores: dict[str, float], failed: Sequence[RunSpec], command: str) -> Results:
    """All finished results, including the stored baseline's."""
    out = plan.experiment.out
    runs = list(plan.stored.runs) if plan.stored is not None else []
    tables = [plan.stored.evaluations] if plan.stored is not None else []
    missing = []
    for spec in plan.specs:
        result = finished_result(spec, out)
        if result is None:
            why = f"failed, see {spec.log_file(out)}" if spec in failed else "not made yet"
            missing.append((spec.arm, spec.env_id, spec.seed, why))
            continue
        kept = (result[key] for key in ("hyperparameters", "versions", "machine", "training_seconds", "updates"))
        runs.append(Run(spec.arm, spec.env_id, spec.seed, *kept))
        tables.append(_table(spec, result))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    # Presets have budgets of their own: a later comparison with this baseline takes the baseline's.
    specs = sorted(plan.specs, key=lambda spec: spec.arm == plan.baseline)
    protocol = {spec.env_id: Protocol(spec.steps, spec.evaluations, spec.eval_episodes)._asdict() for spec in specs}
    return Results(runs, table, random_scores, plan.baseline, missing, command, protocol)


def _table(spec: RunSpec, result: dict[str, Any]) -> pd.DataFrame:
    # JSON has null for numbers that are not finite.
    measured = (np.array(result[key], float) for key in ("seconds", "returns", "return_stds"))
    table = pd.DataFrame(dict(zip(("seconds", "mean_return", "std_return"), measured, strict=True)))
    table["step"] = result["timesteps"]
    table["failure_rate"] = np.array(result.get("failure_rates", np.nan), float)  # which earlier versions did not count
    return table.assign(arm=spec.arm, env=spec.env_id, seed=spec.seed, episodes=spec.eval_episodes)[list(COLUMNS)]


def _conclude(plan: Plan, results: Results, console: Console, one_file: bool) -> dict[str, Any] | None:
    out = plan.experiment.out
    results.write(out / FILE)
    write_whole(out / "evaluations.csv", results.evaluations.to_csv(index=False))
    if plan.experiment.diagnostics:
        _draw_diagnostics(plan, console, one_file)
    if not results.runs:
        say(console, "No run is finished: there is nothing to compare yet.")
        return None
    from sb3_ddpg_scratch.compare.conclusions import show, summarize
    from sb3_ddpg_scratch.compare.report import write_report

    summary: dict[str, Any] = summarize(results, plan.experiment.margin)
    write_json(out / "summary.json", summary)
    page = write_report(results, summary, out, one_file)
    show(summary, console)
    say(console, f"Wrote {page}, beside summary.json, evaluations.csv and {FILE}")
    return summary


def _draw_diagnostics(plan: Plan, console: Console, one_file: bool) -> None:
    from sb3_ddpg_scratch.diagnostics.report import write_report

    out = plan.experiment.out
    recorded = [spec for spec in plan.specs if spec.diagnostics and finished_result(spec, out) is not None]
    folders = [spec.diagnostics_folder(out) for spec in recorded]
    if folders:
        page = write_report(folders, out / "diagnostics.html", one_file=one_file)
        say(console, f"Wrote {page.path}")


def check_folder(specs: Sequence[RunSpec], out: Path) -> None:
    """Allow a folder to gain arms, environments and seeds; if its runs had other settings, report the differences."""
    if out.exists() and not out.is_dir():
        raise ArgumentError("--out", str(out), "a folder", "There is a file of that name.")
    if not out.exists() or holds_nothing(out):
        return
    try:
        made = json.loads((out / EXPERIMENT_FILE).read_text())
        seeds, arms = int(made["seeds"]), dict(made["arms"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArgumentError("--out", str(out), "new, empty, or the folder of this comparison", _ADVICE) from error
    now = _description(specs)
    differences = list(_differences(arms, now["arms"]))
    if seeds > now["seeds"]:
        differences.append(f"seeds were {seeds}, are {now['seeds']}")
    if differences:
        advice = f"There, {'; '.join(differences)}. {_ADVICE}"
        raise ArgumentError("--out", str(out), "a folder of a comparison with these settings", advice)


def claim_folder(specs: Sequence[RunSpec], out: Path) -> None:
    write_json(out / EXPERIMENT_FILE, _description(specs))


def _description(specs: Sequence[RunSpec]) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {}
    for spec in specs:
        content = {key: value for key, value in asdict(spec).items() if key not in ("arm", "env_id", "seed")}
        arms.setdefault(spec.arm, {}).setdefault(spec.env_id, content)  # the first seed's: the only one with diagnostics
    return {"seeds": max(spec.seed for spec in specs) + 1, "arms": arms}


def _differences(made: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What is missing now or differs, by arm and environment; additions are allowed."""
    for arm, envs in made.items():
        for env, content in envs.items():
            if env not in now.get(arm, {}):
                yield f"{arm} on {env} is in it"
                continue
            was, is_now = ({key: repr(value) for key, value in flatten(one).items()} for one in (content, now[arm][env]))
            for key in was | is_now:
                before, after = was.get(key, "not given"), is_now.get(key, "not given")
                if before != after:
                    yield f"{arm}, {env}, {key.replace('/', ', ')} was {before}, is {after}"
