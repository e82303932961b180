"""The command itself: its errors as users read them, in terminals of any width."""

import re

import pytest
from commands import command
from rich.console import Console

from sb3_ddpg_scratch import ArgumentError, __version__
from sb3_ddpg_scratch.bench import show
from sb3_ddpg_scratch.cli import app, main
from sb3_ddpg_scratch.cli.parity import _show
from sb3_ddpg_scratch.parity import ParityResult

LONG_NAME = "some_namespace/A-Very-Long-Name-Of-An-Environment-That-Fits-No-Line-v0"


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.argv", ["sb3-ddpg-scratch", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code, *capsys.readouterr()


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"sb3-ddpg-scratch {__version__}\n", "")


def test_a_name_in_an_error_is_never_broken_across_lines(monkeypatch, capsys):
    status, _, errors = run(monkeypatch, capsys, "bench", "--env", LONG_NAME)
    assert status == 2
    assert errors.startswith(f"Error: --env must be a registered environment, got '{LONG_NAME}'. ")
    assert errors.count("\n") == 1


def test_a_missing_option_is_required(monkeypatch, capsys):
    status, _, errors = run(monkeypatch, capsys, "compare", "--seeds", "3")
    assert (status, errors) == (2, "Error: --env is required.\n")
    assert str(ArgumentError("--out", None, "given", "Choose a folder.")) == "--out is required. Choose a folder."


def test_a_name_above_a_table_is_never_broken_across_lines(capsys):
    result = ParityResult({"env": LONG_NAME, "steps": 10}, 5, {"policy/weight": 0.0})
    _show(Console(width=30), result)
    assert f"{LONG_NAME}: 10 steps, 5 updates\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("bench --env CartPole-v1", "action_space must be a gymnasium.spaces.Box"),
        ("parity --net-arch=-4", "--net-arch must be widths joined by commas, as in 64,64, got '-4'"),
        ("report run --model missing.zip", "model needs --video and a single run's folder"),
        ("report run --video --model missing.zip", "model must be a saved model, got 'missing.zip'"),
        ("export missing.zip --out a.pt2", "MODEL must be a saved model, got 'missing.zip'"),
        ("export a.zip --out a.txt", "--out must be a file that ends in .onnx or .pt2, got 'a.txt'"),
        ("compare missing.yml", "experiment must be one of hindsight, .*No such file"),
        ("compare --env Pendulum-v1 --seeds 2 --out o --device gpu", "device must be auto, cpu, .*, got 'gpu'"),
        ("compare --env Pendulum-v1 --seeds 2 --out o --ray-address x", "--ray-address needs --executor ray"),
        ("compare --env Pendulum-v1 --seeds 2 --out o --arm a=ddpg:lr=3", "got 'lr'. Did you mean 'learning_rate'"),
        ("presets --out o --device gpu", "device must be auto, cpu, .*, got 'gpu'"),
        ("demo --out file/run", "--out must be a folder that can be written to"),
        ("parity --steps 120 --net-arch 8 --json file/out.json", "file: File exists"),
    ],
)
def test_a_wrong_value_is_one_line(monkeypatch, capsys, tmp_path, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, _, errors = run(monkeypatch, capsys, *arguments.split())
    assert status == 2
    assert re.fullmatch(f"Error: .*{problem}.*\n", errors), errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("arguments", ["parity --seed 99999999999", "demo --seed 99999999999", "parity --steps x", "nothing"])
def test_a_wrong_option_is_a_usage_error(monkeypatch, capsys, arguments):
    status, _, errors = run(monkeypatch, capsys, *arguments.split())
    assert (status, "Traceback" in errors) == (2, False)


def test_interruption(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "run_bench", interrupt)
    assert run(monkeypatch, capsys, "bench") == (130, "", "Interrupted.\n")


def test_every_command_has_a_help_text():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names >= {"parity", "demo", "report", "bench", "compare", "export", "presets", "train", "enjoy"}
    assert all(command.help or command.callback.__doc__ for command in app.registered_commands)


@pytest.mark.parametrize(
    ("arguments", "hidden", "extra"),
    [
        ("compare --env Pendulum-v1 --seeds 2 --out out", "pandas", "compare"),
        ("compare --env Pendulum-v1 --seeds 2 --out out --executor ray", "ray", "cluster"),
        ("presets --out out", "pandas", "compare"),
        ("train --diagnostics", "plotly", "report"),
        ("train --tensorboard-log logs", "tensorboard", "tensorboard"),
        ("plot-train -e Pendulum-v1 -f logs", "seaborn", "plots"),
        ("benchmark --log-dir logs --no-hub", "pandas", "plots"),
        ("export agent.zip --out policy.onnx", "onnx", "onnx"),
        ("report run", "plotly", "report"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(tmp_path, arguments, hidden, extra):
    done = command(tmp_path, *arguments.split(), hidden=(hidden,))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"needs {hidden}, which is not installed: pip install 'sb3-ddpg-scratch[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
