"""Soft updates against numbers worked out by hand, float64, and SB3's own."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch import nn

from sb3_ddpg_scratch.soft_update import copy_running_statistics, running_statistics, soft_update


def test_by_hand():
    targets = [th.tensor([1.0, 2.0]), th.tensor([[10.0]])]
    soft_update([th.tensor([5.0, -2.0]), th.tensor([[20.0]])], targets, tau=0.25)
    assert targets[0].tolist() == [2.0, 1.0]
    assert targets[1].tolist() == [[12.5]]


def test_tau_one_copies():
    source, target = [th.randn(7)], [th.randn(7)]
    soft_update(source, target, tau=1.0)
    assert th.equal(source[0], target[0])


@settings(max_examples=50, deadline=None)
@given(tau=st.floats(1e-4, 1.0), shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6))
def test_is_sb3s_to_the_last_bit_and_float64s_nearly(tau, shapes):
    sources = [nn.Parameter(th.randn(shape)) for shape in shapes]
    targets = [nn.Parameter(th.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(target.detach().clone()) for target in targets]
    exact = [tau * s.detach().double() + (1 - tau) * t.detach().double() for s, t in zip(sources, targets, strict=True)]
    polyak_update(sources, theirs, tau)
    soft_update(sources, targets, tau)
    for ours, sb3, true in zip(targets, theirs, exact, strict=True):
        assert th.equal(ours, sb3)
        th.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-6)
        assert ours.grad is None


def test_different_lengths_are_an_error():
    with pytest.raises(RuntimeError):
        soft_update([th.zeros(1)], [th.zeros(1), th.zeros(1)], 0.5)


def test_what_is_copied_is_what_sb3_finds_by_its_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.running_head, self.head = nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
            self.running_scale = nn.Parameter(th.ones(1))

    network = Named()
    expected = get_parameters_by_name(network, ["running_"])
    found = running_statistics(network)
    assert [tensor.data_ptr() for tensor in found] == [tensor.data_ptr() for tensor in expected]
    assert len(found) == 5


def test_running_statistics_are_copied_whole():
    source, target = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    source(th.randn(50, 3) * 4 + 2)
    weight = target[1].weight.clone()
    copy_running_statistics(source, target)
    assert th.equal(source[0].running_mean, target[0].running_mean)
    assert th.equal(source[0].running_var, target[0].running_var)
    assert source[0].running_mean.abs().min() > 0
    assert th.equal(target[1].weight, weight)
