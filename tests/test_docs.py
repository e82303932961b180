"""The documentation: its commands, files, links and names exist. That its blocks run is in test_page_blocks.py."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_ddpg_scratch.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def console_commands():
    """Each command of the console blocks and of the tables, with the page that has it."""
    for page in PAGES:
        lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
        lines += re.findall(r"`(sb3-ddpg-scratch [^`]*)`", page.read_text())
        for line in lines:
            yield page.name, line


def test_commands_exist(capsys, monkeypatch):
    """Every subcommand and every option that a page uses is in that subcommand's help."""
    monkeypatch.setenv("COLUMNS", "200")
    used = {}
    for page, line in console_commands():
        program, *arguments = shlex.split(line)
        if program == "sb3-ddpg-scratch" and arguments and not arguments[0].startswith("-"):
            options = {argument for argument in arguments[1:] if re.match(r"--?[a-z]", argument)} - {"--help"}
            used.setdefault(arguments[0], set()).update((page, option) for option in options)
    assert len(used) > 10
    for subcommand, options in used.items():
        monkeypatch.setattr(sys, "argv", ["sb3-ddpg-scratch", subcommand, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), subcommand
        text = capsys.readouterr().out
        for page, option in options:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{page}: {subcommand} {option}"


def test_scripts_and_make_targets_exist():
    targets = set(re.findall(r"^([a-z\d-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = 0
    for page in PAGES:
        for target in re.findall(r"make ([a-z][a-z\d-]*)(?=[`\s])", "\n".join(blocks(page, "console"))):
            found += 1
            assert target in targets, f"{page.name}: make {target}"
    assert found >= 5


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/index.md"])
def test_links_lead_to_files(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name}: {target}"


def exported():
    """The modules that export names to users, with those names."""
    for name in ("", ".diagnostics", ".compare", ".data", ".zoo"):
        module = import_module(f"sb3_ddpg_scratch{name}")
        yield module.__name__, set(module.__all__)


def test_extras_in_commands_exist():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    used = set()
    for page in PAGES:
        for names in re.findall(r"pip install '\.\[([\w,]+)\]'", page.read_text()):
            used |= set(names.split(","))
    assert len(used) >= 3
    assert used <= extras


@pytest.mark.parametrize(("module", "names"), exported())
def test_every_exported_name_is_in_the_api_reference(module, names):
    reference = re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert names <= {name for path, name in reference if path == module or path.startswith(f"{module}.")}
    for path, name in reference:
        assert hasattr(import_module(path), name), f"{path}.{name}"


@pytest.mark.parametrize(("module", "names"), exported())
def test_every_exported_name_is_in_the_script_whose_types_are_checked(module, names):
    """Without the comparison of names, a new export would not be checked."""
    script = ast.parse((ROOT / "tests/typed_script.py").read_text())
    imported = [node for node in script.body if isinstance(node, ast.ImportFrom) and node.module == module]
    assert names == {alias.name for node in imported for alias in node.names}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_version_is_in_one_place():
    """The citation has the version of the package."""
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_versions_in_constraints_are_releases():
    assert not re.search(r"nightly|\.dev\d", (ROOT / "constraints.txt").read_text())


def test_the_demonstration_needs_no_further_packages():
    """What `make demo` runs imports none of the packages that only other extras bring."""
    others = {"ray", "playwright", "onnx", "mujoco", "rliable", "pandas"}
    code = f"import sys, sb3_ddpg_scratch.cli; assert not {others!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_heater_is_an_environment_with_a_controller_that_holds_the_setpoint(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    from heater import AMBIENT, GAIN, Heater, controller, run, score

    env = Heater()
    check_env(env, skip_render_check=True)
    assert len(env.metadata["observation_names"]) == env.observation_space.shape[0]
    log = run(controller, 20)
    assert log["truncations"].sum() == 20
    assert not log["terminations"].any()
    # Before the setpoint changes, and unless hot water was drawn, the error is small; half of the time.
    held = np.abs(log["observations"][:, 0] - log["observations"][:, 1]).reshape(20, 100)[:, 30:50]
    assert np.median(held) < 1.0
    # The steady power for 50 degrees, against the controller.
    assert score(controller) > 50 > 20 > score(lambda observation: np.array([(50 - AMBIENT) / GAIN]))


def test_the_example_reactor_is_an_environment_and_runs_away(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    from reactor import Reactor

    env = Reactor()
    check_env(env, skip_render_check=True)
    assert len(env.metadata["observation_names"]) == env.observation_space.shape[0]
    env.reset(seed=0)
    hot, steps = [env.action_space.high[0], env.action_space.high[1]], 0
    while not (outcome := env.step(np.array(hot)))[2]:
        steps += 1
        assert steps < 200
    assert (outcome[1], outcome[4]["runaway"]) == (-20.0, True)
    assert np.isfinite(outcome[0]).all()
