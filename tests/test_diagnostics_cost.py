"""The measurement of what diagnostics cost, on a clock of its own."""

from pathlib import Path

import pytest

from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback


def test_cost_is_what_the_diagnostics_take_beyond_an_empty_callback(monkeypatch):
    """A step takes 1 s; the diagnostics add 0.25 s to it, an empty callback 0.1 s."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import diagnostics_cost as cost

    clock = [0.0]

    class Model:
        def __init__(self, *_, **__):
            pass

        def learn(self, steps, callback):
            inside = 0.0
            if callback is not None:
                inside = 0.25 if isinstance(callback, DiagnosticsCallback) else 0.1
                callback.inside = inside * steps
            clock[0] += (1 + inside) * steps

    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])
    found = cost.measure_cost(steps=8, pairs=3, model_class=Model)
    assert found.share_inside == pytest.approx(0.25 / 1.25 - 0.1 / 1.1)
    assert found.ratio == pytest.approx(0.25)
    assert found.microseconds_per_step == pytest.approx(1e6)
