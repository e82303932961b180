"""
The agents that ship: ``python benchmarks/agents.py choose FOLDER`` takes each run's last model and its best by evaluations,
plays all of an environment on the same episodes, scores the best of them on others and writes it to ``agents/`` in RL Zoo's
layout.
``python benchmarks/agents.py gif ENV FILE`` records one of its episodes.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import yaml
from rl_zoo3.utils import create_test_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.results_file import read_results
from sb3_ddpg_scratch.diagnostics.video import encode_gif
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.runs.training_run import RunSpec
from sb3_ddpg_scratch.zoo.registry import check_env
from sb3_ddpg_scratch.zoo.yaml_settings import read_saved

AGENTS = Path(__file__).parents[1] / "agents"
ARM = "scratch_ddpg"
# Seeds from which agents are scored, and are chosen. Training and its evaluations have those from 0.
FIRST_SEED, CHOOSING_SEED = 1_000_000, 2_000_000
SCORING_ENVS = 10

app = typer.Typer(add_completion=False)


def finished_runs(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each environment of a comparison with the results of its finished runs."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob(f"runs/{ARM}/*/seed_*.json"))]
    if not results:
        advice = "Run: sb3-ddpg-scratch compare results --out DIR."
        raise ArgumentError("folder", str(folder), f"a comparison with finished runs of an arm {ARM}", advice)
    for env_id in dict.fromkeys(result["spec"]["env_id"] for result in results):
        yield env_id, [result for result in results if result["spec"]["env_id"] == env_id]


class Candidate(NamedTuple):
    """A model of a run: its best one by evaluations, or its last."""

    result: dict[str, Any]
    last: bool

    @property
    def steps(self) -> int:
        """Steps of training until it was saved."""
        best = self.result["timesteps"][int(np.argmax(self.result["returns"]))]
        return self.result["spec"]["steps"] if self.last else best

    def ship(self, folder: Path, out: Path) -> Path:
        """Copy it, with settings and statistics, to ``OUT/scratch_ddpg/ENV_1``; returns that folder."""
        spec = RunSpec(**self.result["spec"])
        run = next(spec.agent_folder(folder).glob(f"{ARM}/*_1"))
        name = run.name.removesuffix("_1")
        target = out / ARM / run.name
        shutil.rmtree(target, ignore_errors=True)
        (target / name).mkdir(parents=True)
        model = ScratchDDPG.load(run / (f"{name}.zip" if self.last else "best_model.zip"), device="cpu")
        for network in (model.actor, model.critic):
            network.optimizer.state.clear()  # two thirds of the file, of use to further training alone
        model.save(target / f"{name}.zip")
        for file in ("config.yml", "args.yml"):
            shutil.copyfile(run / name / file, target / name / file)
        statistics = (run / name if self.last else run) / "vecnormalize.pkl"
        if statistics.is_file():
            shutil.copyfile(statistics, target / name / "vecnormalize.pkl")
        return target


def load(
    target: Path, env_id: str, n_envs: int, render_mode: str | None = None, seed: int = FIRST_SEED
) -> tuple[ScratchDDPG, VecEnv]:
    """A shipped agent with environments as ``enjoy`` makes them, on seeds that training never used."""
    check_env(env_id)  # registers it
    name = target.name.removesuffix("_1")
    settings = read_saved(target / name / "config.yml")
    normalize = settings.get("normalize", False)
    own = normalize if isinstance(normalize, dict) else {"norm_obs": bool(normalize)}
    # Rewards are the environment's.
    settings |= {"normalize": bool(normalize), "normalize_kwargs": own | {"norm_reward": False}}
    kwargs = {**settings.get("env_kwargs", {}), **({} if render_mode is None else {"render_mode": render_mode})}
    options: dict[str, Any] = {"seed": seed, "should_render": False, "vec_env_cls": DummyVecEnv}
    env = create_test_env(env_id, n_envs, str(target / name), hyperparams=settings, env_kwargs=kwargs, **options)
    return ScratchDDPG.load(target / f"{name}.zip", device="cpu", buffer_size=1), env


def score(target: Path, env_id: str, episodes: int, seed: int = FIRST_SEED) -> dict[str, float]:
    """Mean return of new episodes without noise, and its standard error."""
    model, env = load(target, env_id, SCORING_ENVS, seed=seed)
    returns = np.array(evaluate_policy(model, env, episodes, return_episode_rewards=True)[0])
    env.close()
    error = returns.std(ddof=1) / len(returns) ** 0.5
    return {"mean": float(returns.mean()), "standard_error": float(error), "episodes": len(returns)}


def best_of(candidates: list[Candidate], folder: Path, episodes: int) -> tuple[Candidate, float]:
    """The best of them on episodes that no agent is scored on, and its mean return there."""
    with TemporaryDirectory() as scratch:
        means = [
            score(one.ship(folder, Path(scratch)), one.result["spec"]["env_id"], episodes, CHOOSING_SEED)["mean"]
            for one in candidates
        ]
    return candidates[int(np.argmax(means))], max(means)


def card(chosen: Candidate, runs: list[dict[str, Any]], choosing: float, found: dict[str, float], commands: str) -> str:
    """The agent's README."""
    spec = chosen.result["spec"]
    seeds = ", ".join(str(result["spec"]["seed"]) for result in runs)
    versions = ", ".join(f"{name} {version}" for name, version in chosen.result["versions"].items())
    settings = yaml.safe_dump(spec["settings"], sort_keys=True)
    return f"""# ScratchDDPG on {spec["env_id"]}

| | |
|---|---|
| Score | {found["mean"]:.2f} ± {found["standard_error"]:.2f} (mean return ± standard error) |
| Scored on | {found["episodes"]} noise-free episodes with seeds from {FIRST_SEED:,}, which training never used |
| Chosen from | the best model by its evaluations and the last one of {len(runs)} runs, seeds {seeds} |
| Chosen by | {choosing:.2f} on {found["episodes"]} others, seeds from {CHOOSING_SEED:,}; as the best it is too high |
| This agent | seed {spec["seed"]} after {chosen.steps:,} of {spec["steps"]:,} steps |
| Training of its run | {chosen.result["training_seconds"]:,.0f} s on {chosen.result["machine"]["processor"]} |
| Versions | {versions} |

The model's file has neither the replay buffer nor the optimizers' moments. Trained and chosen with:

```text
{commands}
```

To watch it:

```console
$ sb3-ddpg-scratch enjoy -f agents --env {spec["env_id"]}
```

```yaml
{settings.strip()}
```
"""


@app.command()
def choose(
    folder: Annotated[Path, typer.Argument(help="The folder of a comparison with an arm scratch_ddpg.")],
    out: Annotated[Path, typer.Option(help="Where agents are written.")] = AGENTS,
    episodes: Annotated[
        int, typer.Option(min=2, help="Episodes that agents are chosen on, and as many that it is scored on.")
    ] = 100,
) -> None:
    """For each environment, ship the best model of all seeds, with a card."""
    commands = f"{read_results(folder).command}\npython benchmarks/agents.py choose {folder}"
    for env_id, runs in finished_runs(folder):
        chosen, choosing = best_of([Candidate(run, last) for run in runs for last in (False, True)], folder, episodes)
        target = chosen.ship(folder, out)
        found = score(target, env_id, episodes)
        write_json(target / "score.json", found)
        write_whole(target / "README.md", card(chosen, runs, choosing, found, commands))
        typer.echo(f"{env_id}: {found['mean']:.2f} ± {found['standard_error']:.2f}, in {target}")


@app.command()
def gif(
    env: Annotated[str, typer.Argument(help="The environment of a shipped agent.")],
    file: Annotated[Path, typer.Argument(help="The GIF.")],
    agents: Annotated[Path, typer.Option(help="The folder of the agents.")] = AGENTS,
) -> None:
    """Record the first seconds of an agent's episode as a GIF."""
    target = agents / ARM / f"{env.replace('/', '-')}_1"
    if not target.is_dir():
        there = ", ".join(sorted(path.name.removesuffix("_1") for path in (agents / ARM).glob("*_1")))
        raise ArgumentError("env", env, f"one with an agent in {agents}: {there or 'there is none'}")
    model, vec_env = load(target, env, 1, render_mode="rgb_array")
    observations, done, frames = vec_env.reset(), np.zeros(1, bool), []
    while not done[0]:
        frames.append(np.asarray(vec_env.render()))
        actions, _ = model.predict(observations, deterministic=True)  # type: ignore[arg-type]
        observations, _, done, _ = vec_env.step(actions)
    vec_env.close()
    write_whole(file, encode_gif(frames))
    typer.echo(f"Wrote {file}")


if __name__ == "__main__":
    app()
