"""
The scores of the shipped settings: ``python benchmarks/results.py FOLDER...``.

It copies the runs of comparisons into ``benchmarks/results/ENV.json``, one file for each environment, and draws the tables and
curves of ``docs/results.md`` from these files, ``benchmarks/published.yml`` and the cards in ``agents/``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.conclusions import summarize
from sb3_ddpg_scratch.compare.experiment import read_experiment
from sb3_ddpg_scratch.compare.plots import curves_of, learning_curves
from sb3_ddpg_scratch.compare.results_file import Results, read_results
from sb3_ddpg_scratch.compare.scores import scores_of
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.report.formatting import duration, number
from sb3_ddpg_scratch.report.picture import write_picture

ROOT = Path(__file__).parents[1]
ARM = "scratch_ddpg"


def export(folder: Path, root: Path) -> list[Path]:
    """Write a file for each environment on which a comparison has finished runs of the shipped settings."""
    results = read_results(folder)
    envs = list(dict.fromkeys(run.env for run in results.runs if run.arm == ARM))
    if not envs:
        advice = "Run: sb3-ddpg-scratch compare results --out DIR."
        raise ArgumentError("folder", str(folder), f"a comparison with finished runs of an arm {ARM}", advice)
    paths = []
    for env in envs:
        table = results.evaluations
        table = table[(table["arm"] == ARM) & (table["env"] == env)].round({"seconds": 1, "mean_return": 3, "std_return": 3})
        own = Results(
            [run for run in results.runs if (run.arm, run.env) == (ARM, env)],
            table,
            {env: results.random_scores[env]},
            ARM,
            [],
            results.command,
            {env: results.protocol[env]},
        )
        path = root / "benchmarks" / "results" / f"{env.replace('/', '-')}.json"
        own.write(path)
        paths.append(path)
    return paths


def exported(root: Path) -> Results | None:
    """All files together, environments in the order of the experiment ``results``; ``None`` if there are none."""
    files = [read_results(path) for path in sorted((root / "benchmarks" / "results").glob("*-v*.json"))]
    if not files:
        return None
    order = [*read_experiment("results")["envs"]]
    files.sort(key=lambda found: order.index(env) if (env := next(iter(found.protocol))) in order else len(order))
    return Results(
        [run for found in files for run in found.runs],
        pd.concat([found.evaluations for found in files], ignore_index=True),
        {env: score for found in files for env, score in found.random_scores.items()},
        ARM,
        [],
        files[0].command,
        {env: protocol for found in files for env, protocol in found.protocol.items()},
    )


def page(results: Results, root: Path) -> str:
    """The generated part of ``docs/results.md``."""
    published = yaml.safe_load((root / "benchmarks" / "published.yml").read_text())
    summary = summarize(results, margin=0.1)
    own, rows, others = summary["arms"][ARM], [], []
    for env in summary["environments"]:
        seconds = float(np.median([run.training_seconds for run in results.runs if run.env == env]))
        low, high = own["ci"][env] or (float("nan"),) * 2
        scores = np.array(own["scores"][env], float)
        steps, seeds = f"{results.protocol[env]['steps']:,}", str(len(scores))
        interval = f"{number(own['iqm'][env])} ({number(low)} to {number(high)})"
        cells = [env, steps, seeds, number(scores.mean()), interval, _agent_score(root, env), duration(seconds)]
        rows.append(cells)
        others += [
            [
                env,
                entry["algorithm"],
                entry["score"],
                f"{entry['statistic']}, {entry['version']}",
                published["sources"][entry["source"]],
            ]
            for entry in published["scores"].get(env, [])
        ]
    head = ["environment", "steps", "seeds", "mean", "IQM (95% interval)", "shipped agent", "time of a run"]
    machines = sorted({_machine(run.machine) for run in results.runs})
    versions = sorted({f"torch {run.versions['torch']}, Gymnasium {run.versions['gymnasium']}" for run in results.runs})
    return "\n\n".join(
        [
            _table(head, rows),
            "![Learning curves: interquartile mean over seeds with its 95% interval](images/results.png)",
            f"Trained on {'; '.join(machines)}; {'; '.join(versions)}.",
            "Published scores, each with its statistic, the environment's version, and its source:",
            _table(["environment", "algorithm", "score", "statistic", "source"], others),
        ]
    )


def _agent_score(root: Path, env: str) -> str:
    file = root / "agents" / ARM / f"{env.replace('/', '-')}_1" / "score.json"
    if not file.is_file():
        return "–"
    score: dict[str, Any] = json.loads(file.read_text())
    return f"{number(score['mean'])} ± {number(score['standard_error'])}"


def _machine(machine: dict[str, Any]) -> str:
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['processor']}, {threads} a run"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    texts = [[str(cell).replace("-", "−") if str(cell)[:1] == "-" else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *texts])


def text(root: Path) -> str:
    """The content of ``docs/results_table.md``."""
    results = exported(root)
    tables = "No results are recorded yet." if results is None else page(results, root)
    return f"<!-- Written by benchmarks/results.py. -->\n\n{tables}\n"


def draw(root: Path) -> Path:
    """Write the page's tables, and its picture."""
    path = root / "docs" / "results_table.md"
    write_whole(path, text(root))
    results = exported(root)
    if results is not None:
        scores = scores_of(results)
        by_env = enumerate(curves_of(results, scores).items())
        figures = [learning_curves(curves, env, place, scores.random[env], "steps") for place, (env, curves) in by_env]
        write_picture(figures, root / "docs" / "images" / "results.png")
    return path


def main(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of comparisons, or their results.json.")] = None,
    root: Annotated[Path, typer.Option(help="The checkout to read from and write to.")] = ROOT,
) -> None:
    """Copy the runs of comparisons into benchmarks/results, and draw the page's tables and curves from all that is there."""
    for folder in folders or []:
        for path in export(folder, root):
            typer.echo(f"Wrote {path}")
    typer.echo(f"Wrote {draw(root)}")


if __name__ == "__main__":
    typer.run(main)
