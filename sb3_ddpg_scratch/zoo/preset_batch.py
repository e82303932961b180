"""All runs of the presets' comparison: planned, performed in processes of their own, and gathered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.validation import check_whole_number
from sb3_ddpg_scratch.zoo.files import ALGO, preset_file, preset_names, read_settings, settings_for
from sb3_ddpg_scratch.zoo.preset_report import write_report
from sb3_ddpg_scratch.zoo.run_batch import perform_runs
from sb3_ddpg_scratch.zoo.run_process import RunProcesses
from sb3_ddpg_scratch.zoo.runs import RunSpec, finished_result
from sb3_ddpg_scratch.zoo.scripts import check_env

# For presets that state no budget for the environment: enough to learn Pendulum after 25,000 random steps.
DEFAULT_STEPS = 40_000


def plan_runs(
    env_id: str,
    presets: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    evaluations: int = 20,
    eval_episodes: int = 10,
    device: str = "cpu",
) -> list[RunSpec]:
    """
    :param env_id: the environment
    :param presets: names of presets; none for every one that has settings for the environment
    :param seeds: how many seeds, from 0
    :param steps: environment steps of each run; ``None`` for the budget that a preset states for this very environment,
        and 40,000 where it states none
    :param evaluations: evaluations in each run, evenly spaced
    :param eval_episodes: noise-free episodes in each evaluation
    :param device: device of the networks
    :return: the runs
    :raises ArgumentError: for an unknown preset or environment, or numbers out of range
    """
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("eval_episodes", eval_episodes)):
        check_whole_number(name, value, 1)
    if steps is not None:
        check_whole_number("steps", steps, evaluations)
    check_env(env_id)
    specs = []
    for preset in dict.fromkeys(presets) if presets else _presets_for(env_id):
        section, settings = settings_for(preset_file(preset), env_id)
        budget = steps or (int(settings["n_timesteps"]) if section == env_id else DEFAULT_STEPS)
        _check_budget(preset, budget, settings)
        common = (budget, evaluations, eval_episodes, device, settings)
        specs += [RunSpec(preset, ALGO, env_id, seed, *common) for seed in range(seeds)]
    return specs


def _check_budget(preset: str, budget: int, settings: dict[str, Any]) -> None:
    first_update = settings["learning_starts"] + 1
    if budget < first_update:
        advice = "Give more, or choose other presets by --preset."
        raise ArgumentError("--steps", budget, f"at least {first_update}, when {preset} makes its first update", advice)


def _presets_for(env_id: str) -> list[str]:
    contents = {name: read_settings(preset_file(name)) for name in preset_names()}
    return [name for name, content in contents.items() if env_id in content or "default" in content]


def run_presets(specs: Sequence[RunSpec], out: Path, jobs: int, console: Console, command: str) -> list[RunSpec]:
    """
    Perform the runs that are not finished yet, and write table, summary and picture of all that are.

    :param specs: the runs, from :func:`plan_runs`
    :param out: folder for everything; runs that it holds already are not done again
    :param jobs: processes at a time, each with one thread
    :param console: where to print
    :param command: the command line that made the comparison, for the table
    :return: the runs that failed; their logs lie beside their agents
    :raises FolderInUseError: if another process is writing to the folder
    :raises KeyboardInterrupt: if interrupted, after the runs in progress were ended and the report was written
    """
    check_whole_number("jobs", jobs, 1)
    with hold_folder(out, "--out"):
        try:
            return perform_runs(specs, out, RunProcesses(out), jobs, console)
        finally:
            results = [result for spec in specs if (result := finished_result(spec, out)) is not None]
            if results:
                table = write_report(results, len(specs), out, command)
                console.print(table, highlight=False, markup=False, soft_wrap=True)
                console.print(f"Wrote table.md, summary.json and learning_curves.png to {out}", highlight=False)
