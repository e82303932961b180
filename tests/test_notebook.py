"""What a notebook needs: figures that Plotly takes, tables with the numbers of the files, paths as text."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import plotly.io
import pytest
import torch as th
from made_up_results import made_up_results
from PIL import Image
from plotly import graph_objects as go

import sb3_ddpg_scratch.compare as compare
import sb3_ddpg_scratch.zoo as zoo
from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch import diagnostics as diagnosed
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback, UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.video import _read_weights
from sb3_ddpg_scratch.report.figure import RUN_COLORS, Figure, light_color
from sb3_ddpg_scratch.report.notebook import plotly_figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    settings = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 500, "learning_starts": 10, "batch_size": 8, "seed": 0}
    model = ScratchDDPG("MlpPolicy", "Pendulum-v1", device="cpu", updater="analytic", **settings)
    model.learn(450, DiagnosticsCallback(folder, every=50, snapshot_every=150))
    return folder


def colors_in(figure):
    return [text for text in json.dumps(figure.to_plotly_json(), default=str).split('"') if text.startswith("theme:")]


def test_a_recording(folder):
    recording = read_recording(str(folder))
    figures = diagnosed.figures(recording)
    assert {"Episode return", "TD error", "Critic loss"} <= set(figures)
    for figure in figures.values():
        assert isinstance(figure, go.Figure)
        assert colors_in(figure) == []
    table = diagnosed.table(recording, "update")
    line = figures["Critic loss"].data[0]
    np.testing.assert_allclose(np.array(line.y, float), table["critic_loss"], rtol=1e-4)
    np.testing.assert_array_equal(line.x, table["step"])
    moving = [figure for figure in figures.values() if figure.frames]
    assert moving
    assert {frame.name for frame in moving[0].frames} == {step.args[0][0] for step in moving[0].layout.sliders[0].steps}
    with pytest.raises(ArgumentError, match=r"kind must be .*, got 'updates'"):
        diagnosed.table(recording, "updates")


def test_a_figure_has_a_picture_for_viewers_that_run_no_script(folder, monkeypatch):
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    scores = {arm: {"Tank-v0": np.array([1.0, 2.0, 3.0]) * factor} for arm, factor in (("sb3", 1), ("ours", 2))}
    compared = compare.figures(made_up_results(scores, {"Tank-v0": 0.0}, "sb3"))
    for title, figure in (diagnosed.figures(read_recording(folder)) | compared).items():
        bundle = figure._repr_mimebundle_(None, None)
        assert "application/vnd.plotly.v1+json" in bundle
        with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as picture:
            colors = picture.convert("RGB").getcolors(1_000_000)
        # Its lines or colors, on white, which covers no more than its frame of a heat map.
        assert sum(count for count, color in colors if max(color) - min(color) > 60) > 60, title


def test_a_new_training_into_an_old_folder_numbers_the_old_run(tmp_path):
    def train(seed):
        model = ScratchDDPG("MlpPolicy", "Pendulum-v1", device="cpu", seed=seed, policy_kwargs={"net_arch": [4]})
        return model.learn(120, DiagnosticsCallback(tmp_path, every=10))

    first = train(0)
    with pytest.warns(UserWarning, match=r"diagnostics of another run, which are now diagnostics\.1\.jsonl"):
        train(1)
    # The old recording's weights go with it.
    kept = read_recording(tmp_path / "diagnostics.1.jsonl")
    weights, _ = _read_weights(kept, None)
    assert th.equal(weights["mu.0.weight"], first.actor.state_dict()["mu.0.weight"])


NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorials" / "ddpg_from_scratch.ipynb"


@pytest.mark.parametrize("interrupted", [False, True])
def test_each_cell_of_the_tutorial_runs_again_even_after_an_interrupt(tmp_path, monkeypatch, interrupted):
    monkeypatch.chdir(tmp_path)
    steps, code = [], [cell["source"] for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    original = DiagnosticsCallback._on_step

    def interrupting(callback):
        steps.append(callback.num_timesteps)
        if len(steps) == 450:
            raise KeyboardInterrupt
        return original(callback)

    monkeypatch.setattr(DiagnosticsCallback, "_on_step", interrupting if interrupted else original)
    names, interrupts = {}, 0
    for cell in code:
        text = "".join(cell).replace("8000", "900").replace("n_eval_episodes=10", "n_eval_episodes=1")
        for _ in range(2):
            try:
                exec(text, names)
            except KeyboardInterrupt:
                interrupts += 1
    assert interrupts == interrupted


def test_two_recordings_have_colors_of_their_own(folder):
    recording = read_recording(folder)
    first, second = diagnosed.figures(recording, recording)["TD error"].data
    assert first.line.color != second.line.color


def test_text_that_is_no_recording_is_no_traceback():
    with pytest.raises(UnreadableRecordingError, match="nowhere: there is no such folder"):
        read_recording("nowhere")


def test_a_comparison(tmp_path):
    scores = {"ours": {"Pendulum-v1": np.array([-100.0, -120.0])}, "sb3": {"Pendulum-v1": np.array([-150.0, -160.0])}}
    made_up_results(scores, {"Pendulum-v1": -1200.0}, "sb3").write(tmp_path / "results.json")
    results = compare.read_results(str(tmp_path))
    for figure in compare.figures(results).values():
        assert isinstance(figure, go.Figure)
        assert colors_in(figure) == []
    table = compare.score_table(results)
    assert table.groupby("arm")["score"].apply(list).to_dict() == {"ours": [-100.0, -120.0], "sb3": [-150.0, -160.0]}
    (verdict,) = compare.verdict_table(results).itertuples()
    assert (verdict.a, verdict.difference) == ("ours", pytest.approx(45.0))


@pytest.mark.parametrize("package", [compare, zoo, diagnosed])
def test_what_is_exported_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_every_color_of_a_run_is_known():
    """As many as figures may name, paler ones too."""
    colors = [light_color(f"theme:run{number}") for number in range(RUN_COLORS)]
    assert len({color for color, _ in colors}) == RUN_COLORS
    assert light_color("theme:faint12") == (colors[12][0], 0.4)
    trace = {"type": "scatter", "x": [0, 1], "y": [0, 1], "line": {"color": "theme:run12"}, "fillcolor": "theme:wash12"}
    (made,) = plotly_figures([Figure("name", "section", "Title", "", [trace], {})]).values()
    red, green, blue = (int(colors[12][0][place : place + 2], 16) for place in (1, 3, 5))
    assert made.data[0].line.color == colors[12][0]
    assert made.data[0].fillcolor == f"rgba({red}, {green}, {blue}, 0.17)"
