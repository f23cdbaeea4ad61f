"""A cluster of several real Ray nodes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
os.environ.setdefault("RAY_AUTH_MODE", "token")
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1, labels={"ray.io/market-type": "spot"})
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
from tilth import cluster as ours
from tilth.errors import StorageError
from tilth.storage import Store
# a path that only this process sees, as the local disk of one machine
hidden = f"/proc/self/fd/{os.open(sys.argv[1], os.O_RDONLY)}"
with ours.session(Store(hidden)):
    try:
        ours.ray_ready()
    except StorageError as error:
        print("refused:", error)
from tilth.doctor.nodes import nodes
faults = [found for found in nodes(hidden) if found.state == "fault" and found.about.startswith("storage")]
print("doctor:", len(faults) >= 2 and all(found.node and found.mend for found in faults))
with ours.session(Store.at(sys.argv[1])):
    print("shared:", len(ours.ray_ready().nodes()), os.listdir(sys.argv[1]))
    from tilth.errors import ClusterError
    from tilth.room import refuse_unplaceable
    for each, count in (({"CPU": 1}, 2), ({"CPU": 1}, 3), ({"CPU": 2}, 1), ({"CPU": 1, "GPU": 1}, 1)):
        try:
            print("fits:", refuse_unplaceable(each, count, join_seconds=2))
        except ClusterError as error:
            print("never:", error)
    from helpers import labelled, write_dataset
    from faulty import Located
    from tilth import room
    from tilth.data.chain import Chain, cut
    from tilth.data.engine import run_units
    from tilth.data.finish import finish
    from tilth.data.ledger import Ledger
    from tilth.data.transform import Resources
    from tilth.nodes import Nodes
    spot, fixed = [Resources(nodes=Nodes(spot=yes, memory_gib=0.1)) for yes in (True, False)]
    source = write_dataset(Store.at(f"{sys.argv[1]}/source"), labelled(24))
    ledger = Ledger(Store.at(f"{sys.argv[1]}/out"), "test", cut(source, 4))
    run_units(Chain(source.store, source.row_type, (Located(),)), ledger, spot, "test")
    nodes = {row["meta"]["node"] for row in finish(ledger, source.row_type).rows() if row["parent"]}
    named = {node["NodeID"] for node in ours.ray_ready().nodes() if node["Labels"].get("ray.io/market-type") == "spot"}
    print("on spot alone:", nodes == named, spot.count(room.held(spot.nodes.selector)))
    one = Resources(workers=1)
    ledger = Ledger(Store.at(f"{sys.argv[1]}/pools"), "test", cut(source, 4))
    steps = Located(name="anywhere"), Located(name="spot", resources=spot)
    run_units(Chain(source.store, source.row_type, steps), ledger, one, "test")
    rows = [row for row in finish(ledger, source.row_type).rows() if row["parent"]]
    where = {name: {row["meta"]["node"] for row in rows if row["via"] == name} for name in ("anywhere", "spot")}
    print("pools:", len(rows), where["spot"] == named, where["anywhere"] & named)
    try:
        refuse_unplaceable(fixed.each, 1, fixed.nodes.selector, join_seconds=2)
    except ClusterError as error:
        print("never:", error)
with ours.session(Store.at("memory://run")):
    print("nodes:", len(ours.ray_ready().nodes()))
cluster.shutdown()
"""


@pytest.mark.long
def test_what_not_every_node_sees_and_what_no_node_can_hold_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=480,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert "refused: --out" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "nodes do not see" in done.stdout
    assert "doctor: True" in done.stdout
    assert "shared: 2 []" in done.stdout
    assert "nodes: 2" in done.stdout
    assert "pools: 48 True set()" in done.stdout
    assert "fits: None" in done.stdout
    never = [line for line in done.stdout.splitlines() if line.startswith("never:")]
    assert "3 workers of CPU 1, and this cluster can never hold them: its nodes have room for 2" in never[0]
    assert "CPU 2 (the most that one has: 1)" in never[1]
    assert "GPU 1 (the most that one has: 0)" in never[2]
    assert "ray.io/market-type=on-demand" in never[3]
    assert "no node has these labels; nodes have ray.io/market-type=spot" in never[3]
    assert len(never) == 4
    assert "on spot alone: True 1" in done.stdout


def test_an_address_where_no_cluster_is_ends_at_once(tmp_path: Path) -> None:
    script = "from tilth import cluster; cluster.ray_ready()"
    for address in ("127.0.0.1:1", "nonsense", "host:99999999"):
        environment = {**os.environ, "RAY_ADDRESS": address}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
        )
        assert f"no Ray cluster answers at RAY_ADDRESS={address}" in done.stderr, done.stderr[-2000:]


LEFT_BEHIND = """
from tilth import cluster
ray = cluster.ray_ready(num_cpus=1)
print("its own:", int(ray.cluster_resources()["CPU"]))
ray.shutdown()
"""


@pytest.mark.long
def test_a_ray_that_was_killed_is_not_joined_by_the_next_run() -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets allow short paths alone
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, timeout=240,
            env={**environment, "RAY_TMPDIR": folder},
        )  # fmt: skip
    assert done.stdout == "its own: 1\n", done.stderr[-2000:]
