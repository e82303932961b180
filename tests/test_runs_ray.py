"""Runs on a real Ray cluster of two nodes, one of which is killed while it works."""

import pytest
from rich.console import Console

from sb3_ddpg_scratch import ArgumentError
from sb3_ddpg_scratch.runs.batch import perform_runs
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result

pytest.importorskip("ray")

STEPS = 2000
SETTINGS = {"policy": "MlpPolicy", "n_timesteps": STEPS, "learning_starts": 100, "batch_size": 16, "buffer_size": 1000}
SETTINGS |= {"policy_kwargs": {"net_arch": [8, 8]}, "noise_type": "normal", "noise_std": 0.1}
# So that a dead node is noticed within five seconds instead of twenty.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


@pytest.fixture
def cluster(monkeypatch):
    """(cluster, its two nodes for one run each); no run fits the driver's own node."""
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    made = Cluster(True, head_node_args=small | {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH})
    yield made, [made.add_node(num_cpus=1, **small) for _ in range(2)]
    made.shutdown()


class KillsWhereItWorks:
    """An executor that kills the node of the first run as soon as that has made steps."""

    def __init__(self, runs, kill):
        self.runs, self.kill, self.end = runs, kill, runs.end
        self.killed_at = 0

    def run(self, spec, progress):
        def watch(steps):
            progress(steps)
            if not self.killed_at:
                self.killed_at = steps
                self.kill()

        return self.runs.run(spec, watch)


def test_all_runs_finish_though_a_node_is_killed(cluster, tmp_path, monkeypatch):
    import ray
    from ray._private.state import available_resources_per_node

    from sb3_ddpg_scratch.runs import ray_executor

    monkeypatch.setattr(ray_executor, "POLL_SECONDS", 0.1)
    made, nodes = cluster

    def kill():
        free = available_resources_per_node()
        (busy,) = [node for node in nodes if not free[node.node_id].get("CPU")]
        made.remove_node(busy, allow_graceful=False)

    specs = [RunSpec("a", "ddpg", "Pendulum-v1", seed, STEPS, 10, 1, "cpu", SETTINGS) for seed in range(2)]
    with ray_executor.RayRuns(tmp_path, 1, made.address) as runs:
        assert ray.cluster_resources()["CPU"] == 2
        watched = KillsWhereItWorks(runs, kill)
        assert perform_runs(specs, tmp_path, watched, 1, Console(quiet=True)) == []
        assert ray.cluster_resources()["CPU"] == 1
    assert 0 < watched.killed_at < STEPS
    for spec in specs:
        result = finished_result(spec, tmp_path)
        assert result["updates"] == STEPS - 100
        assert result["machine"]["threads"] == 1
        assert list(spec.agent_folder(tmp_path).glob("ddpg/Pendulum-v1_1/Pendulum-v1.zip"))


def test_no_cluster_at_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    from sb3_ddpg_scratch.runs.ray_executor import RayRuns

    with pytest.raises(ArgumentError, match=r"--ray-address must be .*a running Ray cluster.*, got 'nonsense'"):
        RayRuns(tmp_path, 1, "nonsense")
