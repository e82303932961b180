"""Measured choices: made once, remembered, shared between processes, and switched off."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch as th

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG, tuning
from sb3_ddpg_scratch.updates import choice, products
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    monkeypatch.setattr(tuning, "_known", {})


def test_a_choice_is_measured_once_and_remembered():
    measured = []
    choose = lambda: tuning.remembered_choice("a", lambda: measured.append(1) or f"way {len(measured)}")  # noqa: E731
    assert [choose(), choose()] == ["way 1", "way 1"]
    tuning.forget()
    assert choose() == "way 1"
    assert len(measured) == 1


def test_another_processs_choice_stands(tmp_path):
    """What was written while this process measured is taken, so that all end with the same choice."""

    def measure():
        code = "from sb3_ddpg_scratch.tuning import remembered_choice as r; print(r('a', lambda: 'theirs'))"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "theirs"
        return "ours"

    assert tuning.remembered_choice("a", measure) == "theirs"
    assert len(list(tmp_path.glob("choices-*.json"))) == 1


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_broken_file_is_replaced(tmp_path, content):
    tuning.remembered_choice("a", lambda: "x")
    path = next(tmp_path.glob("choices-*.json"))
    path.write_text(content)
    tuning.forget()
    assert tuning.remembered_choice("a", lambda: "y") == "y"
    tuning.forget()
    assert tuning.remembered_choice("a", lambda: "z") == "y"


def test_a_folder_that_cannot_be_written_is_no_obstacle(monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, "/dev/null/nowhere")
    assert tuning.remembered_choice("a", lambda: "x") == "x"
    assert tuning.remembered_choice("a", lambda: "y") == "x"


@pytest.mark.parametrize(
    ("shape", "rival"),
    [
        ((256, 400, 300, "nt", True), "onednn"),
        ((64, 64, 64, "nt", True), "openblas"),
        ((300, 256, 4, "tn", False), "openblas"),
        ((4, 256, 300, "nn", False), "openblas"),
    ],
)
def test_products_that_another_library_may_be_better_at_are_measured(monkeypatch, shape, rival):
    asked = []
    monkeypatch.setattr(products, "_rival_is_better", lambda *about: asked.append(about) or True)
    assert [products.fastest_library(*shape) for _ in range(2)] == [rival, rival]
    assert asked == [(rival, *shape)]
    monkeypatch.setenv(tuning.SWITCH, "off")
    assert products.fastest_library(*shape) == "mkl"


def test_all_other_products_stay(monkeypatch):
    monkeypatch.setattr(products, "_rival_is_better", lambda *_: pytest.fail("measured"))
    assert products.fastest_library(100, 100, 100) == "mkl"
    assert products.fastest_library(256, 400, 4, "nt", with_bias=True) == "mkl"


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rival", ["onednn", "openblas"])
def test_a_library_is_taken_only_if_faster_and_as_exact(monkeypatch, faster, exact, rival):
    """A pretended library that is slower, or as coarse as bf16, is found out."""
    mm, dot, clock = th.mm, np.dot, [0.0]
    called = []

    def pretended(library, multiply, left, right):
        called.append(library)
        clock[0] += 0.5 if (library == rival) == faster else 1.0
        if library == rival and not exact:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        multiply(left, right)

    def by_torch(left, right, out):
        library = "onednn" if products._matmul.fp32_precision == "bf16" else "mkl"
        pretended(library, lambda a, b: mm(a, b, out=out), left, right)

    def by_numpy(left, right, out):
        multiply = lambda a, b: dot(a.numpy(), b.numpy(), out)  # noqa: E731
        pretended("openblas", multiply, th.from_numpy(left), th.from_numpy(right))

    monkeypatch.setattr(products.th, "mm", by_torch)
    monkeypatch.setattr(products.np, "dot", by_numpy)
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock[0])
    assert products._rival_is_better(rival, 64, 32, 48, "tn", False) is (faster and exact)
    assert set(called) == {"mkl", rival}


@pytest.mark.parametrize("library", products.LIBRARIES)
@pytest.mark.parametrize("form", ["nn", "nt", "tn"])
def test_every_library_multiplies(monkeypatch, library, form):
    monkeypatch.setattr(products, "fastest_library", lambda *_, **__: library)
    left = th.randn(3, 50).t() if form == "tn" else th.randn(50, 3)
    right = th.randn(20, 3).t() if form == "nt" else th.randn(3, 20)
    out, bias = th.empty(50, 20), th.randn(20)
    with products.settings_kept():
        products.Product(products.Libraries(), left, right, out, form)()
    np.testing.assert_allclose(out, left.double() @ right.double(), rtol=1e-5, atol=1e-5)
    with products.settings_kept():
        products.Product(products.Libraries(), left, right, out, form, bias)()
    np.testing.assert_allclose(out, left.double() @ right.double() + bias, rtol=1e-5, atol=1e-5)


def make_model(**settings):
    return ScratchDDPG("MlpPolicy", "Pendulum-v1", **{"policy_kwargs": {"net_arch": [8]}, "buffer_size": 100} | settings)


def test_auto_takes_what_is_measured_faster(monkeypatch):
    for name, updater_class in (("compiled", CompiledUpdater), ("analytic", AnalyticUpdater)):
        monkeypatch.setattr(tuning, "_known", {})
        monkeypatch.setattr(choice, "remembered_choice", lambda key, measure, name=name: name)
        assert type(make_model()._updater) is updater_class


def test_measuring_leaves_model_and_generators_alone(monkeypatch):
    monkeypatch.setattr(choice, "remembered_choice", lambda key, measure: measure())
    measured = make_model(seed=0)
    after = th.get_rng_state()
    monkeypatch.setattr(choice, "remembered_choice", lambda key, measure: "analytic")
    plain = make_model(seed=0)
    assert th.equal(after, th.get_rng_state())
    a, b = measured.policy.state_dict(), plain.policy.state_dict()
    assert all(th.equal(a[name], b[name]) for name in a)


def test_without_numba_or_switched_off_auto_is_analytic(monkeypatch):
    monkeypatch.setenv(tuning.SWITCH, "off")
    assert type(make_model()._updater) is AnalyticUpdater
    monkeypatch.delenv(tuning.SWITCH)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert type(make_model()._updater) is AnalyticUpdater
    with pytest.raises(ArgumentError, match=r"pip install 'sb3-ddpg-scratch\[fast\]'"):
        make_model(updater="compiled")


def test_very_large_networks_are_not_even_measured(monkeypatch):
    monkeypatch.setattr(choice, "remembered_choice", lambda *_: pytest.fail("measured"))
    assert type(make_model(policy_kwargs={"net_arch": [1024, 1024]}, batch_size=1024)._updater) is AnalyticUpdater


@pytest.mark.parametrize(
    ("policy_kwargs", "word"),
    [
        ({"norm": "layer"}, "norm='layer'"),
        ({"activation_fn": "elu"}, "ELU"),
        ({"optimizer_class": th.optim.SGD}, "Adam"),
        ({"optimizer_kwargs": {"amsgrad": True}}, "Adam"),
    ],
)
def test_what_cannot_be_done_by_hand_falls_back_or_says_why(policy_kwargs, word, capsys):
    policy_kwargs = {"net_arch": [8]} | policy_kwargs
    assert type(make_model(policy_kwargs=policy_kwargs)._updater) is AutogradUpdater
    assert "reference" not in capsys.readouterr().out
    make_model(policy_kwargs=policy_kwargs, verbose=1)
    output = capsys.readouterr().out
    assert output.count("Updating by autograd") == 1
    assert word in output
    for name in ("analytic", "compiled"):
        with pytest.raises(ArgumentError, match=word):
            make_model(policy_kwargs=policy_kwargs, updater=name)


def test_the_choices_of_a_resumed_training_go_first_and_are_not_remembered_as_this_machines(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning.forget()
    try:
        assert tuning.remembered_choice("a", lambda: "mine") == "mine"
        tuning.adopt({"a": "theirs", "b": "theirs"})
        assert tuning.remembered_choice("a", lambda: "mine") == tuning.remembered_choice("b", lambda: "mine") == "theirs"
        assert tuning.known_choices() == {"a": "theirs", "b": "theirs"}
        assert tuning.remembered_choice("c", lambda: "mine") == "mine"
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text()) == {"a": "mine", "c": "mine"}
    finally:
        tuning.forget()
