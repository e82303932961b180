"""A pytest plugin: SB3's tests of HerReplayBuffer meet PackedHerReplayBuffer, with any algorithm (see ``make test-sb3``)."""

import pytest
import sb3_replaced  # noqa: F401  # with ScratchDDPG among the algorithms
import stable_baselines3

from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer

stable_baselines3.HerReplayBuffer = PackedHerReplayBuffer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("image_obs_space"):
            item.add_marker(pytest.mark.skip(reason="images are not packed; ScratchDDPG itself then takes SB3's buffer"))
