"""A pytest plugin: SB3's own tests then meet ScratchDDPG wherever they import DDPG or TD3 (see ``make test-sb3``)."""

import pytest
import stable_baselines3

from sb3_ddpg_scratch import ScratchDDPG

stable_baselines3.DDPG = stable_baselines3.TD3 = ScratchDDPG

NOT_OURS = {
    "test_tensorboard[td3]": "looks for a folder named TD3; ScratchDDPG's is named after itself",
}


@pytest.fixture(autouse=True)
def _without_our_own_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's tests count warnings, and SB3 gives none of a buffer smaller than a batch, nor of a training without updates."""
    monkeypatch.setattr("sb3_ddpg_scratch.learn_setup.warn_of_settings", lambda model: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = NOT_OURS.get(item.name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
