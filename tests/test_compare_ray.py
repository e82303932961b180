"""Runs on a real Ray cluster of two nodes, one of which is killed while it works."""

import threading

import pytest
from rich.console import Console

from sb3_ddpg_scratch import ArgumentError
from sb3_ddpg_scratch.zoo.run_batch import perform_runs
from sb3_ddpg_scratch.zoo.runs import RunSpec, finished_result

pytest.importorskip("ray")

STEPS = 3000
SETTINGS = {"policy": "MlpPolicy", "n_timesteps": STEPS, "learning_starts": 100, "batch_size": 16, "buffer_size": 1000}
SETTINGS |= {"policy_kwargs": {"net_arch": [8, 8]}, "noise_type": "normal", "noise_std": 0.1}
# So that a dead node is noticed within two seconds instead of twenty.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(True, head_node_args=small | {"include_dashboard": False, "_system_config": HEALTH})
    made.small = small
    yield made
    made.shutdown()


class KillsWhenBothWork:
    """An executor that kills a node as soon as two runs have made steps, and counts the runs that then begin again."""

    def __init__(self, runs, kill):
        self.runs, self.kill, self.end = runs, kill, runs.end
        self.steps, self.lock, self.fell_back = {}, threading.Lock(), 0

    def run(self, spec, progress):
        def watch(steps):
            progress(steps)
            with self.lock:
                self.fell_back += steps < self.steps.get(spec.seed, 0)
                self.steps[spec.seed] = steps
                if self.kill and min(self.steps.values()) > 0 and len(self.steps) == 2:
                    self.kill()
                    self.kill = None

        return self.runs.run(spec, watch)


def test_all_runs_finish_though_a_node_is_killed(cluster, tmp_path):
    import ray

    from sb3_ddpg_scratch.compare.ray_executor import RayRuns

    second = cluster.add_node(**cluster.small)
    specs = [RunSpec("a", "ddpg", "Pendulum-v1", seed, STEPS, 10, 1, "cpu", SETTINGS) for seed in range(2)]
    with RayRuns(tmp_path, 1, cluster.address) as runs:
        assert ray.cluster_resources()["CPU"] == 2
        watched = KillsWhenBothWork(runs, lambda: cluster.remove_node(second, allow_graceful=False))
        assert perform_runs(specs, tmp_path, watched, 2, Console(quiet=True)) == []
        assert [node["Alive"] for node in ray.nodes()].count(True) == 1
    # Each node has room for one run: one of the two was in its middle on the node that died.
    assert watched.fell_back == 1
    for spec in specs:
        result = finished_result(spec, tmp_path)
        assert result["updates"] == STEPS - 100
        assert result["machine"]["threads"] == 1
        assert list(spec.agent_folder(tmp_path).glob("ddpg/Pendulum-v1_1/Pendulum-v1.zip"))


def test_no_cluster_at_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    from sb3_ddpg_scratch.compare.ray_executor import RayRuns

    with pytest.raises(ArgumentError, match=r"--ray-address='nonsense' .*a running Ray cluster"):
        RayRuns(tmp_path, 1, "nonsense")
