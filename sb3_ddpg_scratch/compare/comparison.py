"""A whole comparison: runs performed, results gathered and stored, verdicts and report written."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pandas as pd
from rich.console import Console

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.folder import check_folder, claim_folder
from sb3_ddpg_scratch.compare.plan import Plan, try_out
from sb3_ddpg_scratch.compare.random_policy import random_score
from sb3_ddpg_scratch.compare.results import Results, Run
from sb3_ddpg_scratch.compare.stored import COLUMNS, FILE, StoredResults
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.machine import usable_cores
from sb3_ddpg_scratch.zoo.run_batch import RunExecutor, perform_runs
from sb3_ddpg_scratch.zoo.run_process import RunProcesses
from sb3_ddpg_scratch.zoo.runs import RunSpec, finished_result

# Handed to Ray at a time: more than any cluster has room for at once, so that it is Ray that decides what waits.
RUNS_IN_RAY = 256


@dataclass(frozen=True)
class Outcome:
    """
    :param failed: runs that failed
    :param summary: what ``summary.json`` holds; ``None`` where no run is finished
    """

    failed: list[RunSpec]
    summary: dict[str, Any] | None


def check_extras() -> None:
    """
    :raises ArgumentError: if what statistics and report need is not installed
    """
    for package in ("scipy", "rliable", "plotly"):
        if find_spec(package) is None:
            advice = "The comparison needs it: pip install 'sb3-ddpg-scratch[compare]'."
            raise ArgumentError("compare", package, "installed", advice)


def run_comparison(plan: Plan, console: Console, command: str, ray_address: str | None = None, ray: bool = False) -> Outcome:
    """
    Perform the runs that are not finished yet; write ``evaluations.csv``, ``results.json``, ``summary.json`` and the report.

    :param plan: the comparison's runs
    :param console: where to print
    :param command: the command line, for the results
    :param ray_address: address of a Ray cluster; ``None`` for the one that Ray finds, or a local one
    :param ray: whether to perform the runs on Ray
    :return: what failed, and the summary
    :raises FolderInUseError: if another process is writing to the folder
    :raises ArgumentError: if the folder is another comparison's, or an arm cannot be set up
    :raises KeyboardInterrupt: if interrupted, after what is finished was gathered
    """
    out = plan.experiment.out
    check_folder(plan.specs, out)
    try_out([spec for spec in plan.specs if finished_result(spec, out) is None])
    with hold_folder(out, "--out"):
        check_folder(plan.specs, out)  # another comparison may have begun there meanwhile
        claim_folder(plan.specs, out)
        return _perform_and_conclude(plan, console, command, ray_address, ray)


def _perform_and_conclude(plan: Plan, console: Console, command: str, ray_address: str | None, ray: bool) -> Outcome:
    scores = {env_id: random_score(env_id) for env_id in plan.experiment.envs}
    failed: list[RunSpec] = []
    try:
        failed = _perform(plan, console, ray, ray_address)
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):
            _conclude(plan, scores, [], console, command)
        raise
    return Outcome(failed, _conclude(plan, scores, failed, console, command))


def _perform(plan: Plan, console: Console, ray: bool, ray_address: str | None) -> list[RunSpec]:
    experiment = plan.experiment
    if all(finished_result(spec, experiment.out) is not None for spec in plan.specs):
        console.print(f"All {len(plan.specs)} runs are finished already.")
        return []
    if ray:
        from sb3_ddpg_scratch.compare.ray_executor import RayRuns

        with RayRuns(experiment.out, experiment.threads, ray_address) as runs:
            return perform_runs(plan.specs, experiment.out, runs, RUNS_IN_RAY, console)
    most = max(usable_cores() // experiment.threads, 1)
    jobs = min(experiment.jobs, most)
    if jobs < experiment.jobs:
        console.print(f"{jobs} runs at a time instead of {experiment.jobs}: there are {usable_cores()} cores.")
    executor: RunExecutor = RunProcesses(experiment.out, experiment.threads)
    return perform_runs(plan.specs, experiment.out, executor, jobs, console)


def gather(plan: Plan, random_scores: dict[str, float], failed: Sequence[RunSpec], command: str) -> StoredResults:
    """
    :param plan: the comparison's runs
    :param random_scores: for each environment the mean return of a random policy
    :param failed: runs that failed
    :param command: the command line
    :return: all that is finished, the stored baseline included
    """
    out = plan.experiment.out
    runs = list(plan.stored.results.runs) if plan.stored is not None else []
    tables = [plan.stored.results.evaluations] if plan.stored is not None else []
    missing = []
    for spec in plan.specs:
        result = finished_result(spec, out)
        if result is None:
            why = f"failed, see {spec.log_file(out)}" if spec in failed else "not made yet"
            missing.append((spec.arm, spec.env_id, spec.seed, why))
            continue
        runs.append(_run(spec, result))
        tables.append(_table(spec, result))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))
    protocol = {
        spec.env_id: {"steps": spec.steps, "evaluations": spec.evaluations, "eval_episodes": spec.eval_episodes}
        for spec in plan.specs
    }
    return StoredResults(Results(runs, table, random_scores, plan.baseline, missing, command), protocol)


def _run(spec: RunSpec, result: dict[str, Any]) -> Run:
    parts = (result[key] for key in ("hyperparameters", "versions", "machine", "training_seconds", "updates"))
    return Run(spec.arm, spec.env_id, spec.seed, *parts)


def _table(spec: RunSpec, result: dict[str, Any]) -> pd.DataFrame:
    measured = (result[key] for key in ("timesteps", "seconds", "returns", "return_stds"))
    table = pd.DataFrame(dict(zip(("step", "seconds", "mean_return", "std_return"), measured, strict=True)))
    return table.assign(arm=spec.arm, env=spec.env_id, seed=spec.seed, episodes=spec.eval_episodes)[list(COLUMNS)]


def _conclude(
    plan: Plan, scores: dict[str, float], failed: Sequence[RunSpec], console: Console, command: str
) -> dict[str, Any] | None:
    out = plan.experiment.out
    gathered = gather(plan, scores, failed, command)
    results = gathered.results
    gathered.write(out / FILE)
    write_whole(out / "evaluations.csv", results.evaluations.to_csv(index=False))
    if plan.experiment.diagnostics:
        _draw_diagnostics(plan, console)
    if not results.runs:
        console.print("No run is finished: there is nothing to compare yet.")
        return None
    from sb3_ddpg_scratch.compare.report import write_report
    from sb3_ddpg_scratch.compare.summary import show, summarize, write_summary

    summary: dict[str, Any] = summarize(results, plan.experiment.margin)
    write_summary(summary, out)
    page = write_report(results, summary, out)
    show(summary, console)
    console.print(f"Wrote {page}, beside summary.json, evaluations.csv and {FILE}", highlight=False, soft_wrap=True)
    return summary


def _draw_diagnostics(plan: Plan, console: Console) -> None:
    from sb3_ddpg_scratch.diagnostics.report import write_report

    out = plan.experiment.out
    recorded = [spec for spec in plan.specs if spec.diagnostics and finished_result(spec, out) is not None]
    folders = [spec.diagnostics_folder(out) for spec in recorded]
    if folders:
        page = write_report(folders, out / "diagnostics.html")
        console.print(f"Wrote {page.path}", highlight=False, soft_wrap=True)
