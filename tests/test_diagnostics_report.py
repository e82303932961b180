"""The report, as a reader meets it: built from short trainings and opened in a real browser; and the command that makes it."""

import json
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import PointEnv, wait_until
from PIL import Image
from stable_baselines3 import TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from typer.testing import CliRunner

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.cli import app
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback, read_recording
from sb3_ddpg_scratch.diagnostics.recording_writer import observation_statistics
from sb3_ddpg_scratch.diagnostics.report import distinct_names, write_report
from sb3_ddpg_scratch.diagnostics.video import VideoError, _build, _read_weights, normalizing_env, record_video

TIME_FIGURES = [
    "return",
    "q_mean",
    "overestimation",
    "td_error",
    "critic_loss",
    "actor_loss",
    "critic_grad_norm",
    "saturated",
    "sigma",
]
HEAT_MAPS = ["policy-0", "policy-1", "q-0", "q-1", "plane-0", "plane-1"]


def train(folder, model_class, steps, env="Pendulum-v1", eval_env=None, **extra):
    settings = {"seed": 1, "device": "cpu", "buffer_size": 2000, "batch_size": 16, "learning_starts": 50}
    settings["policy_kwargs"] = {"net_arch": [16, 16]}
    model = model_class("MlpPolicy", env, **(settings | extra))
    callback = DiagnosticsCallback(folder, every=50, probe_states=8, snapshot_every=150, eval_env=eval_env, eval_every=300)
    return model.learn(steps, callback=callback)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the second one's recording torn at its end."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "ours<b>", ScratchDDPG, 1000, eval_env="Pendulum-v1").save(folder / "model.zip")
    train(folder / "td3", TD3, 800)
    path = folder / "td3" / "diagnostics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    return folder


@pytest.fixture(scope="module")
def made(runs):
    path = runs / "report.html"
    return write_report([runs / "ours<b>", runs / "td3", runs / "nothing"], path)


def test_every_figure_has_data_and_the_slider_moves(made, runs, open_page):
    page = open_page(made.path)
    names = page.evaluate("[...document.querySelectorAll('.plot')].map(node => node.id.replace('plot-', ''))")
    assert sorted(names) == sorted(TIME_FIGURES + HEAT_MAPS)
    for name in TIME_FIGURES:
        lines = page.evaluate(
            f"document.getElementById('plot-{name}').data.map(t => [t.name, t.y.filter(y => y !== null).length])"
        )
        assert len(lines) >= 2, name
        assert all(points >= 2 for _, points in lines), name
        assert {label.split(",")[0] for label, _ in lines} == {"ScratchDDPG", "TD3"}, name
        drawn = page.locator(f"#plot-{name} .scatterlayer path.js-line, #plot-{name} .scatterlayer .points path").count()
        assert drawn >= 2, name
    for name in HEAT_MAPS:
        assert page.locator(f"#plot-{name} .heatmaplayer image").count() >= 1, name

    # What is drawn is what was recorded.
    recording = read_recording(runs / "ours<b>")
    drawn = page.evaluate("document.getElementById('plot-td_error').data[0].y")
    np.testing.assert_allclose(drawn, recording.tables["update"]["td_error"], rtol=1e-4)

    chosen = "(name, i) => { const d = document.getElementById('plot-' + name); return JSON.stringify(d.data[i].z); }"
    shown = lambda: [page.evaluate(f"({chosen})('{name}', {0 if 'plane' in name else 1})") for name in HEAT_MAPS]  # noqa: E731
    scale = "[...document.querySelectorAll('.plot')].map(d => [d.layout.coloraxis?.cmin, d.layout.coloraxis?.cmax])"
    last, scales = shown(), page.evaluate(scale)
    last_label = page.text_content("#snapshot-label")
    page.focus("#snapshot")
    page.keyboard.press("Home")
    assert page.text_content("#snapshot-label") != last_label
    first = shown()
    assert all(one != other for one, other in zip(first, last, strict=True))
    assert page.evaluate(scale) == scales
    snapshot = recording.snapshots[0]
    order = np.argsort(recording.snapshots[-1].q_values, kind="stable")
    np.testing.assert_allclose(json.loads(first[0]), snapshot.actions[order], atol=1e-3)
    np.testing.assert_allclose(np.ravel(json.loads(first[2])), snapshot.q_values[order], rtol=1e-4)
    assert page.evaluate("document.getElementById('plot-policy-0').layout.shapes[0].x0") == snapshot.step
    page.click("#play")
    wait_until(page, f"document.getElementById('snapshot-label').textContent === {json.dumps(last_label)}")
    assert shown() == last


def test_zooming_one_figure_zooms_all(made, open_page):
    page = open_page(made.path)
    box = page.locator("#plot-td_error .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.locator("#plot-td_error").scroll_into_view_if_needed()
    box = page.locator("#plot-td_error .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], middle, steps=5)
    page.mouse.up()
    ranges = "[...document.querySelectorAll('.plot')].filter(d => !d.id.includes('plane')).map(d => d.layout.xaxis.range)"
    wait_until(
        page, f"(() => {{ const r = {ranges}; return r.every(x => Math.abs(x[0] - r[0][0]) < 1e-6 && x[0] > 100); }})()"
    )
    assert all(low > 100 and high < 900 for low, high in page.evaluate(ranges))


def test_first_screen_says_what_happened(made, open_page):
    page = open_page(made.path)
    assert page.text_content("h1") == "ScratchDDPG and TD3 on Pendulum-v1"
    top = page.locator(".run").first
    assert top.locator("h3").text_content() == "ScratchDDPG, ours<b>"
    assert "Trained for 1,000 steps (5 episodes)" in top.text_content()
    assert page.locator(".run").nth(1).text_content().startswith("TD3, td3Not finished: the recording ends after")
    assert top.locator(".value").count() == 3
    assert top.locator(".value").nth(2).bounding_box()["y"] < 850
    problems = page.text_content(".alarm")
    assert "nothing: there is no such folder" in problems
    assert re.search(r"td3/diagnostics.jsonl, line \d+: torn", problems)
    assert len(made.problems) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_dark_mode(made, open_page, scheme):
    page = open_page(made.path, 390, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    columns = page.evaluate("getComputedStyle(document.querySelector('.figures')).gridTemplateColumns")
    assert len(columns.split()) == 1

    def luminance(color):
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(one, other):
        light, dark = sorted([luminance(one), luminance(other)], reverse=True)
        return (light + 0.05) / (dark + 0.05)

    color = lambda selector, name: page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")  # noqa: E731
    ground = color("body", "backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    panel = color("figure", "backgroundColor")
    assert contrast(color("body", "color"), ground) >= 7
    for selector in (".note", ".sub", ".aside"):
        assert contrast(color(selector, "color"), panel) >= 4.5
    assert contrast(color("#plot-return .xtick text", "fill"), panel) >= 4.5
    for name in ("critic_loss", "saturated"):
        assert contrast(color(f"#plot-{name} path.js-line", "stroke"), panel) >= 3
    # The reader changes the mode while the page is open: the figures follow.
    before = color("#plot-critic_loss path.js-line", "stroke")
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    wait_until(page, f"getComputedStyle(document.querySelector('#plot-critic_loss path.js-line')).stroke !== '{before}'")


OVERLAPS = """[...document.querySelectorAll('.plot')].map((plot) => {
  const bar = plot.querySelector('.modebar').getBoundingClientRect();
  const parts = [...plot.querySelectorAll('.nsewdrag, .annotation, .colorbar')].map((part) => part.getBoundingClientRect());
  const below = parts.filter((part) => part.width && part.top < bar.bottom && part.right > bar.left);
  const opacity = Number(getComputedStyle(plot.querySelector('.modebar-group')).opacity);
  return [plot.id, bar.height, bar.width, plot.getBoundingClientRect().top <= bar.top, below.length, opacity];
})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_on_a_touch_screen_the_toolbar_stands_above_the_plot(made, open_page, width):
    page = open_page(made.path, width, touch=True)
    page.tap("#plot-return .nsewdrag")
    for name, height, across, inside, overlaps, opacity in page.evaluate(OVERLAPS):
        assert height > 15, name
        assert 50 < across < width, name
        assert inside, name
        assert overlaps == 0, name
        assert opacity > 0, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_command(runs, tmp_path):
    out = tmp_path / "deep" / "page.html"
    result = CliRunner().invoke(app, ["report", str(runs / "td3"), "--out", str(out), "--one-file"])
    assert result.exit_code == 0, result.output
    assert f"Wrote {out}" in result.output
    assert "torn" in result.output
    # Self-contained: Plotly is in it, and nothing is fetched.
    page = out.read_text()
    assert "plotly.js v" in page
    assert re.search(r"<(script|img|link)[^>]+(src|href)=\"(?!data:)", page) is None
    assert list(out.parent.iterdir()) == [out]
    result = CliRunner().invoke(app, ["report", str(runs / "td3")])
    assert (runs / "td3" / "report.html").exists()


def test_pages_of_a_folder_share_plotly(runs, tmp_path, open_page, browser):
    paths = [write_report([runs / "td3"], tmp_path / f"{name}.html").path for name in ("one", "two")]
    (shared,) = set(tmp_path.iterdir()) - set(paths)
    assert re.fullmatch(r"plotly-[\d.]+\.min\.js", shared.name)
    assert shared.stat().st_size > 3_000_000 > 5 * max(path.stat().st_size for path in paths)
    assert open_page(paths[1]).locator(".js-plotly-plot").count() > 5
    shared.unlink()
    page = browser.new_page()
    page.goto(paths[0].as_uri())
    wait_until(page, "!document.getElementById('without-plotly').hidden")
    assert shared.name in page.locator("#without-plotly").inner_text()
    page.close()


def spoiled(run, folder):
    """The recording with one outlier and twenty zeros among its measurements, and an outlier among its episodes."""
    lines = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line.get("kind") == "update"]
    updates[5] |= {"actor_loss": 3e6, "q_mean": -4e6}
    for line in updates[6:11]:
        line["actor_grad_norm"] = 0.0
    episodes = [{"kind": "episode", "step": place, "return": -1000.0 - place} for place in range(12)]
    episodes[3]["return"] = -9e7
    folder.mkdir()
    kept = [line for line in lines if line.get("kind") not in ("episode", "evaluation")]
    (folder / "diagnostics.jsonl").write_text("\n".join(map(json.dumps, [*kept[:1], *episodes, *kept[1:]])))
    return folder, updates


MARKS = """name => document.getElementById('plot-' + name).data.filter(t => String(t.marker?.symbol).startsWith('triangle'))
  .map(t => [t.marker.symbol, t.customdata])"""


def test_outliers_flatten_no_figure_and_zeros_do_not_vanish(runs, tmp_path, open_page):
    folder, updates = spoiled(runs / "ours<b>", tmp_path / "spoiled")
    page = open_page(write_report([folder], tmp_path / "report.html").path)
    axis = "document.getElementById('plot-{}').layout.yaxis.range"
    for name, column, outlier in (("actor_loss", "actor_loss", 3e6), ("q_mean", "q_mean", -4e6)):
        low, high = page.evaluate(axis.format(name))
        others = [update[column] for update in updates if update[column] != outlier]
        assert low <= min(others) < max(others) <= high < 1e3
        assert ["triangle-up" if outlier > 0 else "triangle-down", [outlier]] in page.evaluate(f"({MARKS})('{name}')")
        assert page.locator(f"#plot-{name} .scatterlayer .points path").count() >= 1
        assert "Triangles: outliers" in page.locator(f"figure:has(#plot-{name}) .note").inner_text()
    low, high = page.evaluate(axis.format("return"))
    assert (low < -1011, high > -1000, low > -1e4) == (True, True, True)
    assert page.evaluate(f"({MARKS})('critic_grad_norm')") == [["triangle-down", [0, 0, 0, 0, 0]]]
    norms = "document.getElementById('plot-critic_grad_norm')"
    assert page.locator("#plot-critic_grad_norm .scatterlayer .points path").count() == 5
    assert page.evaluate(f"{norms}.data[1].y").count(None) == 5
    # Without outliers, axes are Plotly's own and include everything.
    page = open_page(write_report([runs / "ours<b>"], tmp_path / "plain.html").path)
    assert page.evaluate(f"({MARKS})('critic_loss')") == []


def test_every_axis_has_a_title_and_ticks_of_one_size(made, open_page):
    page = open_page(made.path)
    for name in TIME_FIGURES + HEAT_MAPS:
        titles = page.locator(f"#plot-{name} .g-xtitle text, #plot-{name} .g-ytitle text").all_text_contents()
        assert len(titles) == 2, name
        assert "environment steps" in titles or name.startswith("plane"), name
    for name in HEAT_MAPS:
        assert page.locator(f"#plot-{name} .colorbar .cbtitle").all_text_contents() == ["Q" if name[0] == "q" else "action"]
    size = "[...document.querySelectorAll('.xtick text, .ytick text')].map(t => Math.round(parseFloat(t.style.fontSize)))"
    assert set(page.evaluate(size)) == {12}


def test_a_heat_map_is_as_wide_as_its_own_snapshots(made, runs, open_page):
    page = open_page(made.path)
    for number, folder in enumerate((runs / "ours<b>", runs / "td3")):
        steps = [snapshot.step for snapshot in read_recording(folder).snapshots]
        low, high = page.evaluate(f"document.getElementById('plot-policy-{number}').layout.xaxis.range")
        # Half a column beyond the first and the last.
        assert low == pytest.approx(1.5 * steps[0] - 0.5 * steps[1])
        assert high == pytest.approx(1.5 * steps[-1] - 0.5 * steps[-2])


class Tank(PointEnv):
    """Its first number is large and noise, and the reward does not depend on it."""

    metadata = {"observation_names": ["level [mm]", "x [m]", "y [m]"], "action_names": ["east <N>", "north [N]"]}  # noqa: RUF012

    def _observe(self):
        return np.array([1e4 * self.np_random.random(), *self.position], np.float32)


def test_each_action_has_a_panel_and_the_plane_is_of_what_matters(tmp_path, open_page):
    env = VecNormalize(make_vec_env(Tank, seed=0))
    settings = {"seed": 0, "device": "cpu", "buffer_size": 2000, "batch_size": 16, "learning_starts": 50}
    model = ScratchDDPG("MlpPolicy", env, policy_kwargs={"net_arch": [16, 16]}, **settings)
    with th.no_grad():
        # The policy does not see the level, whatever its spread.
        model.actor.mu[0].weight[:, 0] = 0
    model.actor.requires_grad_(False)
    model.learn(500, DiagnosticsCallback(tmp_path, every=50, probe_states=8, snapshot_every=100))
    recording = read_recording(tmp_path)
    assert recording.probes["plane"]["dimensions"] == (1, 2)
    page = open_page(write_report([tmp_path], tmp_path / "report.html").path)
    titles = [text.partition(" ·")[0] for text in page.locator("figure:has(.heatmaplayer) h3").all_text_contents()]
    over = "Policy over two numbers of the observation"
    assert titles == [
        *("Policy: east <N>", "Policy: north [N]", "Q(s, μ(s))"),
        *(f"{over}: east <N>", f"{over}: north [N]"),
    ]
    assert page.locator("#plot-plane-0 .g-xtitle").text_content() == "x [m]"
    order = np.argsort(recording.snapshots[-1].q_values, kind="stable")
    for dimension, name in enumerate(("policy-0", "policy-0-1")):
        drawn = page.evaluate(f"document.getElementById('plot-{name}').data[0].z")
        expected = np.stack([snapshot.actions[order, dimension] for snapshot in recording.snapshots], axis=1)
        np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_nothing_to_draw_is_an_error_that_names_each_folder(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "diagnostics.jsonl").write_text('{"format": "sb3_ddpg_scratch.diagnostics", "version": 9}\n')
    with pytest.raises(ArgumentError, match=r"none: there is no such folder.*foreign.*format version 9"):
        write_report([tmp_path / "none", tmp_path / "foreign"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_recording_with_a_header_alone_is_drawn(tmp_path, open_page):
    (tmp_path / "diagnostics.jsonl").write_text('{"format": "sb3_ddpg_scratch.diagnostics", "version": 1}\n')
    page = open_page(write_report([tmp_path], tmp_path / "report.html").path)
    assert page.locator(".plot").count() == 0
    assert page.locator(".empty").count() == len(TIME_FIGURES)
    assert "No episode ended." in page.text_content(".words")


def test_distinct_names(tmp_path):
    assert distinct_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert distinct_names([tmp_path / "a" / "x", tmp_path / "b" / "y"]) == ["x", "y"]


def test_video_of_an_episode(runs, tmp_path):
    """From the weights beside the recording, and from a saved model of which nothing but the weights is read."""
    report = write_report([runs / "ours<b>"], tmp_path / "report.html", video=True)
    assert report.problems == []
    assert report.videos == [tmp_path / "report.gif"]
    assert "data:image/gif;base64," in report.path.read_text()
    with Image.open(report.videos[0]) as gif:
        assert 50 <= gif.n_frames <= 150
        assert max(gif.size) <= 320
        first = np.asarray(gif.convert("RGB"))
        gif.seek(gif.n_frames // 2)
        assert (np.asarray(gif.convert("RGB")) != first).any()
    other = tmp_path / "other.gif"
    record_video(read_recording(runs / "ours<b>"), other, runs / "model.zip")
    assert other.read_bytes() == report.videos[0].read_bytes()


@pytest.mark.parametrize(("kind", "keys"), [("vector", None), ("dict", ["vector"])])
def test_a_video_s_observations_are_normalized_as_in_training(kind, keys):
    training = VecNormalize(make_vec_env(lambda: PointEnv(kind), seed=1), norm_obs_keys=keys, clip_obs=2.0, epsilon=1e-3)
    training.reset()
    for _ in range(30):
        training.step(np.array([[0.5, 1.0]]))
    env = normalizing_env(make_vec_env(lambda: PointEnv(kind), seed=2), observation_statistics(training))
    observed = env.reset()
    np.testing.assert_equal(observed, training.normalize_obs(env.get_original_obs()))
    env.step(np.array([[0.5, 1.0]]))
    # Its statistics stay as they are.
    np.testing.assert_equal(env.reset(), training.normalize_obs(env.get_original_obs()))


def test_a_policy_in_a_video_normalizes_as_in_training(tmp_path):
    """Both from the weights beside the recording and from a saved model."""
    settings = {"policy_kwargs": {"net_arch": [8], "scale_factor": 2, "normalize_observations": True}, "updater": "autograd"}
    model = train(tmp_path, ScratchDDPG, 120, **settings)
    model.save(tmp_path / "model.zip")
    recording = read_recording(tmp_path)
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32) * 3
    for path in (None, tmp_path / "model.zip"):
        weights, _ = _read_weights(recording, path)
        built = _build(recording.header, gym.make("Pendulum-v1"), weights)
        np.testing.assert_array_equal(built.predict(observations)[0], model.predict(observations)[0])
    with pytest.raises(VideoError, match="do not fit"):
        _build(recording.header, gym.make("Pendulum-v1"), {name: one for name, one in weights.items() if "mu." in name})


def test_why_there_is_no_video(runs, tmp_path):
    recording = read_recording(runs / "td3")
    with pytest.raises(VideoError, match="there is no such file"):
        record_video(recording, tmp_path / "x.gif", tmp_path / "model.zip")
    (tmp_path / "model.zip").write_bytes(b"no archive")
    with pytest.raises(VideoError, match="no weights can be read"):
        record_video(recording, tmp_path / "x.gif", tmp_path / "model.zip")
    recording.header["environment"] = {"id": "some_module:Pendulum-v1", "kwargs": {}}
    with pytest.raises(VideoError, match="not registered"):
        record_video(recording, tmp_path / "x.gif")
    recording.header["environment"] = {"id": "Point-v0", "kwargs": {}}
    assert "Point-v0" in gym.registry
    with pytest.raises(VideoError, match=r"rendered|fit"):
        record_video(recording, tmp_path / "x.gif")
    recording.header["environment"] = None
    with pytest.raises(VideoError, match="does not name the environment"):
        record_video(recording, tmp_path / "x.gif")
    recording.path = tmp_path / "diagnostics.jsonl"
    with pytest.raises(VideoError, match=r"policy.pth is missing.*--model"):
        record_video(recording, tmp_path / "x.gif")
    # The report is drawn all the same, and says why.
    shutil.copy(runs / "td3" / "diagnostics.jsonl", tmp_path)
    report = write_report([tmp_path], tmp_path / "report.html", video=True)
    assert any("no video" in problem for problem in report.problems)
    assert report.path.exists()
    assert not (tmp_path / "x.gif").exists()
