"""
The code and console blocks of the README and of each page, run in their order in one empty folder, as a reader runs them.

Python blocks run with fewer steps; console blocks with the options of :data:`SHORTER` appended, with first updates after 100
steps, with the runs of comparisons and the measurements of speed in this process, and with fewer of these. Nothing else is
changed. What a page shows as a block's output has to be printed, numbers aside.
"""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import pytest
import torch as th
import typer
from commands import perform_here

from sb3_ddpg_scratch.bench import parts, schedule, show, worker
from sb3_ddpg_scratch.cli import demo, main
from sb3_ddpg_scratch.runs.processes import RunProcesses
from sb3_ddpg_scratch.zoo import yaml_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|console|yaml|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A block of a file, as its first line says.
FILE = re.compile(r"# ([\w.]+\.(?:py|yml))\n")
STEPS_IN_A_TEST = 250

# Options that are appended to the commands that match, and win over the page's own.
SHORTER = {
    r"parity ": "--net-arch 8,8",
    r"train (?!.*--resume)": "-n 400 --eval-freq 100 --checkpoint-every 100",
    r"enjoy (?!.*-n )": "-n 30",
    r"compare ": "--steps 120 --seeds 2 --evaluations 2 --eval-episodes 1",
    r"compare results (?!.*--env)": "--env Pendulum-v1",
    r"bench ": "--rounds 1",
    r"presets ": "--steps 200 --seeds 1 --evaluations 2 --eval-episodes 1",
    r"presets (?!.*--preset)": "--preset simple_rl --preset tch_rs",
    r"benchmark ": "-n 400",
    r"agents\.py choose": "--episodes 2 --out agents",
    r"agents\.py gif": "--agents agents",
    r"results\.py": "--root .",
    r"scores\.py": "--seeds 2 --steps 2000",
    r"sweep\.py": "--out sweep.png",
}

# Commands that are not run, and why.
NOT_RUN = {
    r"pip install .*": "installs packages; the extras that it names are checked",
    r"make (test|docs)": "is what runs this test, or needs what the tests do not have; the target is checked",
}
if find_spec("gymnasium_robotics") is None:
    NOT_RUN[r"sb3-ddpg-scratch (train|parity) --env FetchReach-v4.*"] = "needs Gymnasium-Robotics"
    NOT_RUN[r"sb3-ddpg-scratch compare (hindsight|robotics).*"] = "needs Gymnasium-Robotics"


def blocks(page):
    """Language, text, and what the page shows directly below it as its output."""
    found = list(BLOCK.finditer(page.read_text()))
    for block, following in zip_longest(found, found[1:]):
        shown = ""
        if following and following[1] == "text" and not page.read_text()[block.end() : following.start()].strip():
            shown = following[2]
        if block[1] != "text":
            yield block[1], block[2], shown


def commands(text, shown):
    """Each command of a console block, with what is shown as its output."""
    first, *others = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, "a console block begins with $"
    pairs = [other.partition("\n") for other in others]
    for place, (line, _, output) in enumerate(pairs):
        # Output in a block of its own is that of all commands together.
        yield line, output + (shown if place == len(pairs) - 1 else "")


def in_words(line):
    """A line without numbers, rules and the width of columns."""
    return " ".join(re.sub(r"[─-╿]|[-−]?\d[\d,.]*(e[+-]?\d+)?", " ", line).split())


def assert_shown(shown, printed, exact=False):
    """The lines that a page shows were printed, in their order. ``...`` stands for any others."""
    lines = [line.strip() for line in printed.splitlines()]
    position = 0
    for line in map(str.strip, shown.splitlines()):
        if line in ("", "..."):
            continue
        rest = lines[position:] if exact else list(map(in_words, lines[position:]))
        wanted = line if exact else in_words(line)
        assert wanted in rest, f"the page shows\n{line}\nbut this was printed:\n{printed}"
        position += rest.index(wanted) + 1


def shortened(code):
    """The same code with short trainings: the blocks have to run, not to learn."""
    code = re.sub(
        r"(?<=\.learn\()[\d_]+|(?<=\.learn_offline\()[\d_]+", lambda steps: str(min(int(steps[0]), STEPS_IN_A_TEST)), code
    )
    return code.replace(", progress_bar=True", "").replace("n_eval_episodes=20", "n_eval_episodes=1")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder: with the environment and the files of a checkout that pages speak of, and little to measure."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {"COLUMNS": "80", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    settings = tmp_path / "settings"
    shutil.copytree(ROOT / "hyperparams", settings)
    for file in settings.glob("*.yml"):
        file.write_text(re.sub(r"learning_starts: \d+", "learning_starts: 100", file.read_text()))
    monkeypatch.setattr(yaml_settings, "hyperparams_folder", lambda: settings)
    monkeypatch.setattr(RunProcesses, "run", perform_here)
    shutil.copy(ROOT / "docs/examples/heater.py", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "published.yml", tmp_path / "benchmarks")
    shutil.copy(ROOT / "docs" / "examples" / "reactor.py", tmp_path)
    agent = "agents/scratch_ddpg/Pendulum-v1_1"
    shutil.copytree(ROOT / agent, tmp_path / agent)
    monkeypatch.setattr(demo, "SOLVED_RETURN", -5000.0)
    monkeypatch.setattr(show, "plan", shorter_plan)
    monkeypatch.setattr(parts, "STEPS", 20)
    sweep, scores = (importlib.import_module(f"benchmarks.{name}") for name in ("sweep", "scores"))
    monkeypatch.setattr(schedule, "measure", measure_here)
    monkeypatch.setattr(sweep, "measure", measure_here)
    monkeypatch.setattr(sweep, "AXES", {axis: (label, values[:1]) for axis, (label, values) in sweep.AXES.items()})
    monkeypatch.setattr(sweep, "CONTENDERS", {"auto": sweep.CONTENDERS["auto"]})
    monkeypatch.setattr(scores, "UPDATERS", ("compiled",))
    return tmp_path


def shorter_plan(*arguments, **settings):
    """The first setting of a benchmark, with less time, smaller networks and one core, for SB3's DDPG, ours and the floor."""
    planned = schedule.plan(*arguments, **settings)[0]
    kept = {workload.contender: workload for workload in planned if workload.contender in ("sb3", "compiled", "floor")}
    return [[replace(workload, net_arch=(8, 8), cores=1, seconds=0.05, filled=100) for workload in kept.values()]]


def measure_here(workload):
    """Measure in this process, which forgets the precision of products that was tried."""
    precision = th.get_float32_matmul_precision()
    try:
        return worker.time_floor(workload) if workload.contender == "floor" else worker.time_model(workload, time.time())
    finally:
        th.set_float32_matmul_precision(precision)


def matches(pattern, line):
    """Whether the subcommand or script of a line is the one of a pattern in :data:`SHORTER`."""
    return re.match(rf"(sb3-ddpg-scratch |python benchmarks/){pattern}", line) is not None


def call(monkeypatch, function, arguments):
    """Call a command's main function; the exit status."""
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        function()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def run_command(line, monkeypatch):
    """Run one line of a console block; the exit status."""
    line = line.replace("make demo", "sb3-ddpg-scratch demo")
    added = [options for pattern, options in SHORTER.items() if matches(pattern, line)]
    program, *arguments = shlex.split(" ".join([line, *added]))
    if program == "sb3-ddpg-scratch":
        return call(monkeypatch, main, [program, *arguments])
    if program == "python":
        script = importlib.import_module(arguments[0].removesuffix(".py").replace("/", "."))
        return call(monkeypatch, script.app if hasattr(script, "app") else lambda: typer.run(script.main), arguments)
    return subprocess.run([program, *arguments], check=False).returncode


def run_python(code, name, names):
    """Run a block; the warnings that it raised, as Python shows them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(shortened(code), name, "exec"), names)
    return "\n".join(f"{warning.category.__name__}: {warning.message}" for warning in caught)


def run_page(page, monkeypatch, capsys):
    """Run all blocks of a page; how many commands and blocks were run."""
    names, count = {"__name__": "page"}, 0
    for language, text, shown in blocks(page):
        capsys.readouterr()
        if file := FILE.match(text):
            Path(file[1]).write_text(text)
        elif language == "python":
            warned = run_python(text, page.name, names)
            assert_shown(shown, capsys.readouterr().out + warned)
            count += 1
        elif language == "console":
            for line, output in commands(text, shown):
                if any(re.fullmatch(pattern, line) for pattern in NOT_RUN):
                    continue
                status = run_command(line, monkeypatch)
                printed = "".join(capsys.readouterr())
                assert status == (2 if output.startswith("Error: ") else 0), f"{line}\n{printed}"
                # A verdict depends on the length of the trainings.
                compared = re.sub(r"^│.*\n", "", output, flags=re.MULTILINE) if " compare " in line else output
                assert_shown(compared, printed, exact=" parity " in line)
                count += 1
    return count


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda page: page.stem)
def test_blocks_run(page, reader, monkeypatch, capsys):
    run_page(page, monkeypatch, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nraise KeyError\n```\n",
        "```python\nprint('one 1')\n```\n\n```text\ntwo 1\n```\n",
        "```console\n$ sb3-ddpg-scratch report nowhere\n```\n",
        "```console\n$ sb3-ddpg-scratch parity --steps 110\nPendulum-v1: 111 steps, 10 updates\n```\n",
        "```console\n$ sb3-ddpg-scratch --version\nsb3-ddpg-scrap 0.0.0\n```\n",
        "```console\n$ false\n```\n",
    ],
)
def test_a_block_that_does_not_do_what_it_shows_is_noticed(text, reader, monkeypatch, capsys):
    page = reader / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, KeyError)):
        run_page(page, monkeypatch, capsys)


def test_every_exception_is_for_a_command_that_a_page_has():
    lines = [
        line for page in PAGES for language, text, _ in blocks(page) if language == "console" for line, _ in commands(text, "")
    ]
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    for pattern in SHORTER:
        assert any(matches(pattern, line) for line in lines), pattern
