"""The same on a real head of Ray with its job server, started as `cluster/node.sh` starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tilth.cli import main

pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default], see requirements/cluster.txt")
RECIPE = """\
name: small
stages:
  data:
    kind: data
    row: labelled
    source: {kind: inline, rows: [{text: one, label: a}, {text: two, label: b}]}
    resources: {workers: 1}
"""
START_SECONDS = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(root, tmp_path_factory):
    """The address of a head's job server, and the file of its token."""
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    port, dashboard = free_port(), free_port()
    folder = Path("/tmp") / f"tilth-head-{os.getpid()}"  # sockets need a short path
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **clean, "PATH": path, "RAY_AUTH_TOKEN_PATH": str(token), "TILTH_PORT": str(port), "RAY_AUTH_MODE": "token",
    }  # fmt: skip
    command = ["bash", root / "cluster/node.sh", "head", "--dashboard-port", str(dashboard), "--num-cpus", "2",
               "--temp-dir", str(folder), "--object-store-memory", "100000000"]  # fmt: skip
    log = open(token.with_name("log"), "wb")  # noqa: SIM115 - as long as the head
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _await(address, process, Path(log.name))
        yield address, token
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        log.close()


def _await(address, process, log):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if requests.get(f"{address}/api/jobs/", timeout=5).status_code == 401:
                return
        except requests.RequestException:
            pass
        time.sleep(1)
    pytest.skip("the head did not come up in its time")


@pytest.mark.slow
def test_a_job_is_submitted_followed_attached_to_and_guarded(head, root, tmp_path, monkeypatch, capfd):
    address, token = head
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "held").write_text("a value")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    spec = {
        "name": "small", "recipe": "recipe.yaml", "out": str(tmp_path / "run"),
        "packages": [str(root / "platform/tilth")], "secrets": {"HELD": str(tmp_path / "held")}, "hours": 0.2,
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    assert main(["submit", "spec.yaml", "--address", address]) == 0, capfd.readouterr()
    first = capfd.readouterr()
    assert (tmp_path / "run/report.html").exists()
    assert "data: done" in first.out
    assert main(["submit", "spec.yaml", "--address", address]) == 0
    assert "nothing is submitted twice" in capfd.readouterr().err
    assert main(["jobs", "--json", "--address", address]) == 0
    (job,) = json.loads(capfd.readouterr().out)
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    wrong = requests.get(f"{address}/api/jobs/", headers={"authorization": "Bearer wrong"}, timeout=30)
    assert wrong.status_code == 403
    listed = requests.get(f"{address}/api/jobs/", headers={"authorization": f"Bearer {token.read_text()}"}, timeout=30)
    assert "a value" not in listed.text
