"""A cluster of several real Ray nodes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
os.environ.setdefault("RAY_AUTH_MODE", "token")
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
from tilth import cluster as ours
from tilth.errors import StorageError
from tilth.storage import Store
with ours.session(Store.at(sys.argv[1])):
    try:
        ours.ray_ready()
    except StorageError as error:
        print("refused:", error)
with ours.session(Store.at("memory://run")):
    print("nodes:", len(ours.ray_ready().nodes()))
cluster.shutdown()
"""


def test_a_local_path_on_several_nodes_is_refused_and_a_shared_one_is_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert "refused: --out" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "2 nodes" in done.stdout
    assert "nodes: 2" in done.stdout


def test_an_address_where_no_cluster_is_ends_at_once(tmp_path: Path) -> None:
    script = "from tilth import cluster; cluster.ray_ready()"
    for address in ("127.0.0.1:1", "nonsense", "host:99999999"):
        environment = {**os.environ, "RAY_ADDRESS": address}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
        )
        assert f"no Ray cluster answers at RAY_ADDRESS={address}" in done.stderr, done.stderr[-2000:]
