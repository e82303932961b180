"""The comparison's report, as a reader meets it: made up results, the page opened and clicked in a real browser."""

import re

import numpy as np
import pytest
from conftest import wait_until
from made_up_results import made_up_results
from PIL import Image

from sb3_ddpg_scratch.compare.conclusions import summarize
from sb3_ddpg_scratch.compare.plots import curves_of
from sb3_ddpg_scratch.compare.report import write_report
from sb3_ddpg_scratch.compare.scores import scores_of

HOSTILE = "<script>alert(1)</script>"
ENVS = ("Pendulum-v1", "MountainCarContinuous-v0", "Lander<b>-v3")
RANDOM = dict(zip(ENVS, (-1200.0, -30.0, -200.0), strict=True))


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    sound = {env: rng.normal(mean, spread, 5) for env, mean, spread in zip(ENVS, (-150, 60, 100), (5, 40, 80), strict=True)}
    worse = {env: values - 300 for env, values in sound.items()}
    worse[ENVS[2]][1] = np.nan
    missing = [("slow", ENVS[2], 5, "the disk is full")]
    scores = {HOSTILE: {env: values + 2 for env, values in sound.items()}, "sb3": sound, "slow": worse}
    return made_up_results(scores, RANDOM, "sb3", missing=missing, **{HOSTILE: {"gamma": 0.9, "updater": "<i>compiled</i>"}})


@pytest.fixture(scope="module")
def made(results, tmp_path_factory):
    return write_report(results, summarize(results, 0.1), tmp_path_factory.mktemp("comparison"))


def visible(page):
    return page.evaluate("[...document.querySelectorAll('figure:not([hidden]) .plot')].map(node => node.id.slice(5))")


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_has_data_in_every_environment(made, results, open_page, width):
    page = open_page(made, width)
    scores = scores_of(results)
    curves = curves_of(results, scores)
    seen = set()
    for place, env in enumerate(ENVS):
        page.locator(".tabs span").nth(place).click()
        names = [f"steps-{place}", f"seconds-{place}", f"scores-{place}", "profile", "differences"]
        wait_until(page, f"document.querySelector('#plot-scores-{place} .points path') !== null")
        assert visible(page) == names
        seen |= set(names)
        for name in names:
            drawn = page.locator(f"#plot-{name} .scatterlayer path.js-line, #plot-{name} .scatterlayer .points path").count()
            assert drawn >= 3, name
            box = page.locator(f"#plot-{name} .plot-container").bounding_box()
            assert box["width"] > 250
            assert box["height"] > 200
        # What is drawn are the results: the middle curve of each arm, and every seed's score.
        lines = page.evaluate(f"document.getElementById('plot-steps-{place}').data.map(trace => [trace.x, trace.y])")
        for curve, (x, y) in zip(curves[env], lines[1::2], strict=True):
            np.testing.assert_allclose(x, curve.steps)
            np.testing.assert_allclose(y, curve.middle, rtol=1e-4)
        points = page.evaluate(f"document.getElementById('plot-scores-{place}').data.map(trace => trace.x)")
        for arm, drawn in zip(scores.arms, points[::2], strict=True):
            np.testing.assert_allclose(drawn, scores.of(arm, env), rtol=1e-4)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(seen) == 3 * 3 + 2
    crosses = page.evaluate("document.getElementById('plot-scores-2').data[4].marker.symbol")
    assert crosses == ["circle", "x", "circle", "circle", "circle"]


def test_arms_are_hidden_and_shown_in_all_figures(made, open_page):
    page = open_page(made)
    shown = (
        "[...document.querySelectorAll('.js-plotly-plot')].map(d => d._fullData.filter(t => t.meta === 2 && t.visible).length)"
    )
    assert all(page.evaluate(shown))
    button = page.locator("button[data-arm='2']")
    button.click()
    wait_until(page, f"{shown}.every(count => count === 0)")
    assert button.get_attribute("aria-pressed") == "false"
    # An environment chosen later has the arm hidden, too.
    page.keyboard.press("Shift+Tab")
    page.locator(".tabs span").nth(1).click()
    wait_until(page, f"document.querySelector('#plot-steps-1 path.js-line') !== null && {shown}.slice(-1)[0] === 0")
    button.click()
    wait_until(page, "document.getElementById('plot-steps-1')._fullData.every(trace => trace.visible)")


def test_first_screen_says_the_verdicts(made, open_page):
    page = open_page(made)
    assert page.text_content("h1") == f"{HOSTILE}, slow against sb3"
    cards = page.locator(".card")
    assert cards.count() == 2
    assert cards.nth(1).locator("h2").text_content().startswith("slow is worse than sb3 overall")
    assert cards.nth(1).bounding_box()["y"] < 700
    assert {"Pendulum-v1", "Lander<b>-v3"} <= set(re.findall(r"on (\S+)", cards.nth(0).locator("ul").inner_text()))
    assert "slow on Lander<b>-v3, seed 5: the disk is full" in page.text_content(".alarm")
    assert "1 of 5 runs of slow on Lander<b>-v3 ended without a score" in page.text_content(".notes")
    rows = page.locator(".verdicts tbody tr")
    assert rows.count() == 8
    words = [rows.nth(index).locator(".tag").text_content() for index in range(8)]
    assert words[0] == "equivalent"
    assert words[4] == "worse"
    assert "sb3-ddpg-scratch compare …" in page.text_content("pre")


def test_settings_that_differ_stand_out(made, open_page):
    page = open_page(made)
    differing = page.locator("tr.differs")
    assert [differing.nth(i).locator("th").text_content() for i in range(differing.count())] == ["gamma", "updater"]
    assert differing.nth(0).locator("td").all_text_contents() == ["0.9", "0.99", "0.99"]
    assert differing.nth(1).locator("td").first.text_content() == "<i>compiled</i>"
    ground = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    assert page.evaluate(ground.format("tr.differs td")) != page.evaluate(ground.format("tr:not(.differs) td"))


def test_hostile_names_are_text(made, open_page):
    page = open_page(made)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    assert page.locator("script").count() == 3
    assert page.locator("b, i").count() == 0
    assert HOSTILE not in made.read_text()
    labels = page.locator("#plot-scores-0 .annotation-text").all_text_contents()
    assert labels == [HOSTILE, "sb3", "slow"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_mode_is_followed(made, open_page, scheme):
    page = open_page(made, 390, scheme)
    stroke = "getComputedStyle(document.querySelectorAll('#plot-steps-0 path.js-line')[1]).stroke"
    before = page.evaluate(stroke)
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    wait_until(page, f"{stroke} !== '{before}'")


def test_the_picture_for_papers(made):
    picture = made.with_name("learning_curves.png")
    with Image.open(picture) as image:
        assert image.width > 1500
        found = image.convert("RGB").getcolors(1_000_000)
        # Without the mixtures at the edges of lines.
        colors = {color for count, color in found if count > 500}
    line = (0x0A, 0x7A, 0x55)
    assert {(0x0B, 0x61, 0xA4), (0xB8, 0x46, 0x0E), line} <= colors
    band = [255 - 0.17 * (255 - part) for part in line]
    assert any(np.allclose(color, band, atol=1) for color in colors)
    others = [path.name for path in made.parent.iterdir() if not path.name.startswith("plotly-")]
    assert sorted(others) == ["learning_curves.png", "report.html"]


def test_one_outlier_flattens_no_figure_and_its_row_is_marked(tmp_path, open_page):
    rng = np.random.default_rng(2)
    scores = {arm: {"Tank-v0": rng.normal(-60, 5, 6)} for arm in ("sb3", "ours", "other", "third")}
    scores["ours"]["Tank-v0"][2] = -4e5
    results = made_up_results(scores, {"Tank-v0": -600.0}, "sb3")
    page = open_page(write_report(results, summarize(results, 0.1), tmp_path))
    ranges = (
        "name => { const l = document.getElementById('plot-' + name)._fullLayout; return [l.xaxis.range, l.yaxis.range]; }"
    )
    _, (low, _) = page.evaluate(f"({ranges})('steps-0')")
    assert -3000 < low < -600
    (low, high), _ = page.evaluate(f"({ranges})('scores-0')")
    assert -90 < low < high < -30
    points = page.evaluate("document.getElementById('plot-scores-0').data[2]")
    assert points["marker"]["symbol"] == ["circle", "circle", "triangle-left", "circle", "circle", "circle"]
    assert points["text"][2] == "seed 2: -4e+05"
    marks = page.locator("#plot-scores-0 .scatterlayer .trace").nth(2).locator(".points path")
    assert marks.count() == 6
    (low, high), _ = page.evaluate(f"({ranges})('profile')")
    assert -100 < low < high < 0
    (low, high), _ = page.evaluate(f"({ranges})('differences')")
    assert (low, high) == (-1, 1)
    triangle = page.evaluate("document.getElementById('plot-differences').data[0]")
    assert (triangle["marker"]["symbol"], triangle["x"]) == ("triangle-left", [-1])
    assert triangle["customdata"][0] < -100


def test_a_label_is_nearest_to_its_own_row(made, open_page):
    page = open_page(made)
    labels = page.locator("#plot-scores-0 .annotation-text")
    rules = page.locator("#plot-scores-0 .shapelayer path")
    assert rules.count() == labels.count() - 1
    for row in range(labels.count()):
        label = labels.nth(row).bounding_box()
        middles = []
        for marks in ("2*{}+1", "2*{}+2"):
            trace = page.locator(f"#plot-scores-0 .scatterlayer .trace:nth-child({eval(marks.format(row))}) .points path")
            middles += [trace.nth(i).bounding_box()["y"] for i in range(trace.count())]
        assert label["y"] < min(middles), "the label stands above its own points"
        if row:
            above = rules.nth(row - 1).bounding_box()["y"]
            assert above <= label["y"] + 3, "a rule parts it from the row above"


def test_failed_episodes_have_a_figure_and_a_column(tmp_path, open_page, made):
    rng = np.random.default_rng(3)
    scores = {arm: {env: rng.normal(100, 3, 5) for env in ("Tank-v0", "Safe-v0")} for arm in ("sb3", "ours")}
    results = made_up_results(scores, {"Tank-v0": 0.0, "Safe-v0": 0.0}, "sb3", evaluations=12)
    table = results.evaluations
    tank = table["env"] == "Tank-v0"
    table["failure_rate"] = np.where(tank & (table["arm"] == "ours"), table["seed"] / 10, 0.0)
    page = open_page(write_report(results, summarize(results, 0.1), tmp_path))
    assert [name for name in visible(page) if name.startswith("failed")] == ["failed-0"]
    baseline, _, band, line = page.evaluate("document.getElementById('plot-failed-0').data.map(trace => trace.y)")
    assert set(baseline) == {0}
    assert (min(band), max(band)) == (0, 0.4)
    np.testing.assert_allclose(line, 0.2)
    cells = page.locator(".verdicts td[data-label=failed]").all_text_contents()
    assert cells == ["20% against 0%", "–", "–"]
    page.locator(".tabs span").nth(1).click()
    assert not page.locator("#plot-failed-0").is_visible()
    assert open_page(made).locator("[id^=plot-failed], td[data-label=failed]").count() == 0


def test_three_arms_of_one_verdict_share_a_card(tmp_path, open_page):
    rng = np.random.default_rng(1)
    sound = rng.normal(100, 3, 5)
    shifts = {"sb3": 0, "one": 0, "two": 0.1, "three": -0.1, "up": 60}
    results = made_up_results({arm: {"Tank-v0": sound + shift} for arm, shift in shifts.items()}, {"Tank-v0": 0.0}, "sb3")
    page = open_page(write_report(results, summarize(results, 0.1), tmp_path))
    heads = [head.partition(" to ")[0].partition(" than ")[0] for head in page.locator(".card h2").all_text_contents()]
    assert heads == ["Each of 3 arms is equivalent", "up is better"]
    assert page.locator(".card").nth(0).locator("strong").all_text_contents() == ["one", "two", "three"]


def test_one_environment_needs_no_tabs_and_nothing_finished_is_said(results, tmp_path, open_page):
    one = {arm: {ENVS[0]: scores_of(results).of(arm, ENVS[0])} for arm in ("sb3", "slow")}
    alone = made_up_results(one, {ENVS[0]: -1200.0}, "sb3")
    page = open_page(write_report(alone, summarize(alone, 0.1), tmp_path / "one"))
    assert page.locator(".tabs").count() == 0
    assert visible(page) == ["steps-0", "seconds-0", "scores-0", "profile", "differences"]
    missing = [(arm, ENVS[0], seed, "not yet made") for arm in ("sb3", "slow") for seed in range(8)]
    nothing = type(alone)([], alone.evaluations.iloc[:0], {ENVS[0]: -1200.0}, "sb3", missing, "")
    page = open_page(write_report(nothing, summarize(nothing, 0.1), tmp_path / "nothing"))
    assert "no finished run" in page.text_content(".card")
    assert "and 4 more" in page.text_content(".alarm")
    assert page.locator(".empty").count() == 5


def test_many_environments_have_their_verdicts_in_one_grid(tmp_path, open_page, made):
    rng = np.random.default_rng(1)
    envs = [f"Task{number}-v0" for number in range(7)]
    sound = {env: rng.normal(100, 3, 5) for env in envs}
    shifts = {"same": 0, "up": 60, "down": -60, "wild": 0, **{f"arm{number}": 0 for number in range(5)}}
    scores = {arm: {env: values + shift for env, values in sound.items()} for arm, shift in shifts.items()}
    scores["wild"] = {env: rng.normal(100, 90, 5) for env in envs}
    results = made_up_results({"sb3": sound} | scores, dict.fromkeys(envs, 0.0), "sb3")
    summary = summarize(results, 0.1, 1000)
    page = open_page(write_report(results, summary, tmp_path))
    expected = {(row["env"], row["a"]): row["verdict"] for row in summary["comparisons"] if row["env"] in envs}
    arms = page.locator(".grid thead th").all_text_contents()[1:]
    rows = page.locator(".grid tbody tr")
    found = {
        (rows.nth(row).locator("th").text_content(), arm): verdict
        for row in range(rows.count())
        for arm, verdict in zip(arms, rows.nth(row).locator("td").all_text_contents(), strict=True)
    }
    assert found == expected
    assert set(found.values()) == {"equivalent", "better", "worse", "undecided"}
    assert page.locator(".card ul").count() == 0
    color = "[...document.querySelectorAll('{}')].map(node => [node.className, getComputedStyle(node{}).{}].join())"
    assert len(set(page.evaluate(color.format(".grid td", "", "backgroundColor")))) == 4
    lines = page.evaluate(color.format(".arms button", ", '::before'", "borderTopColor"))
    assert len(set(lines)) == len(lines) == 10
    # Few environments are listed on the cards.
    assert open_page(made).locator(".grid").count() == 0
