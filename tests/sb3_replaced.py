"""A pytest plugin: SB3's own tests then meet ScratchDDPG wherever they import DDPG or TD3 (see ``make test-sb3``)."""

import pytest
import stable_baselines3

from sb3_ddpg_scratch import ScratchDDPG

stable_baselines3.DDPG = stable_baselines3.TD3 = ScratchDDPG

NOT_OURS = {
    "test_tensorboard[td3]": "looks for a folder named TD3; ScratchDDPG's is named after itself",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = NOT_OURS.get(item.name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
