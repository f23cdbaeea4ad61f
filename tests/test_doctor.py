"""What `tilth doctor` finds, and that each finding comes with its mend."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from job_server import JobApi
from tilth import cluster
from tilth.cli import main
from tilth.doctor import machine, nodes, outside
from tilth.doctor.nodes import skewed
from tilth.doctor.storage import seen, tried
from tilth.errors import ClusterError

LISTEN = """
import socket, sys
server = socket.socket()
server.bind((sys.argv[1], 0))
server.listen()
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without a token or a cluster."""
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path


def test_a_token_that_others_can_read_is_a_fault(home, monkeypatch):
    assert machine.token().state == "ok"
    (home / "token").write_text("x")
    (home / "token").chmod(0o640)
    found = machine.token()
    assert (found.state, found.mend) == ("fault", f"chmod 600 {home / 'token'}")
    (home / "token").chmod(0o600)
    assert machine.token().state == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert machine.token().state == "fault"


def test_a_mounted_token_cannot_be_changed_and_is_taken_unless_all_can_read_it(home, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (home / "token").write_text("x" * 64)
    (home / "token").chmod(0o440)
    monkeypatch.setattr(os, "getuid", lambda: 1000 + (home / "token").stat().st_uid)
    monkeypatch.setattr(os, "chmod", read_only)
    monkeypatch.setattr(Path, "chmod", read_only)
    assert cluster.token() == "x" * 64
    assert machine.token().state == "ok"
    monkeypatch.undo()
    (home / "token").chmod(0o444)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(Path, "chmod", read_only)
    with pytest.raises(ClusterError, match="0444: others can read the token"):
        cluster.token()
    assert machine.token().state == "fault"


def test_a_token_is_its_owners_alone_from_the_first_moment_on(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for _ in range(2):
        cluster._own_token()
        kept = (home / "token").read_text()
        assert (len(kept), (home / "token").stat().st_mode & 0o777) == (64, 0o600)
    assert kept == cluster.token()


class Unloadable:
    """What a node that lacks our package cannot read."""

    def __reduce__(self):
        return _missing, ()


def _missing():
    raise ModuleNotFoundError("No module named 'tilth'")


def test_a_node_that_cannot_be_looked_at_is_a_finding(ray_session):
    found = nodes._asked(ray_session, None, Unloadable())
    assert [item.state for item in found] == ["fault"]
    assert "cannot be looked at: " in found[0].what
    assert "No module named 'tilth'" in found[0].what


@pytest.mark.parametrize(
    ("host", "mode", "state"),
    [("127.0.0.1", "", "ok"), ("127.0.1.1", "", "ok"), ("0.0.0.0", "", "fault"), ("0.0.0.0", "token", "warning")],
)
def test_a_port_of_ray_beyond_loopback_is_seen(home, monkeypatch, host, mode, state):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    # a process that is called as one of Ray's own
    command = [sys.executable, "-c", LISTEN, host, "gcs_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        found = machine.ports()
        process.stdin.close()
    if host.startswith("127."):
        assert f"{port} (" not in found.what
        return
    assert f"{port} (gcs_server)" in found.what
    assert found.state in (state, "fault")  # another Ray of this user's may run here
    assert f"{port} (" not in machine.ports().what
    assert "NetworkPolicy" in found.mend


def test_objects_that_ray_keeps_on_disk_for_want_of_shared_memory_are_said(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", f"--plasma_directory={tmp_path}"]  # as a raylet's
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 10
        while str(tmp_path) not in (found := machine.shared_memory()).what and time.monotonic() < end:
            time.sleep(0.05)
        process.stdin.close()
    assert (found.state, f"in {tmp_path} instead" in found.what) == ("warning", True)
    assert "--object-store-memory" in found.mend
    assert str(tmp_path) not in machine.shared_memory().what


def test_a_title_that_hides_the_environment_is_looked_behind(tmp_path):
    """Ray's agents and workers write their titles over what they were begun with; their raylet tells."""

    def process(number: int, parent: int, command: bytes, environ: bytes) -> Path:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cmdline").write_bytes(command)
        (folder / "environ").write_bytes(environ)
        (folder / "stat").write_text(f"{number} (a (b) c) S {parent} 1 1 0")
        return folder

    process(1, 0, b"init", b"")
    process(10, 1, b"/ray/raylet\0--x", b"HOME=/\0RAY_AUTH_MODE=token\0")
    process(20, 1, b"/ray/raylet\0--x", b"HOME=/\0")
    assert machine._asks(process(11, 10, b"ray::DashboardAgent  ", b"OMP_NUM_THREADS=1\0"))
    assert not machine._asks(process(21, 20, b"ray::DashboardAgent  ", b"OMP_NUM_THREADS=1\0"))
    assert not machine._asks(process(12, 10, b"python\0-m\0ray/dashboard", b"HOME=/\0")), "its own, which is whole"
    assert machine._asks(process(14, 1, b"/ray/gcs_server", b"RAY_AUTH_MODE=TOKEN\0")), "Ray reads it so"
    assert not machine._asks(process(13, 10, b"ray::IDLE", b"RAY_AUTH_MODE=disabled\0"))


def test_storage_is_tried_and_left_clean(tmp_path):
    found = tried(str(tmp_path / "store"))
    assert [item.state for item in found] == ["ok"] * 3
    assert list((tmp_path / "store").iterdir()) == []
    assert {item.state for item in tried("memory://doctor")} == {"ok"}
    (bad,) = tried("/proc/nowhere")
    assert bad.state == "fault"
    assert bad.mend


def test_storage_that_refuses_to_replace_a_file_is_no_sound_one(monkeypatch):
    put = MemoryFileSystem.pipe_file

    def once(self, path, value, **more):
        if path.endswith("/replaced") and self.exists(path):
            raise PermissionError("AccessDenied: objects are locked")
        put(self, path, value, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", once)
    (found,) = tried("memory://locked")
    assert found.state == "fault"
    assert "objects are locked" in found.what


def test_clocks_apart_are_a_fault():
    assert skewed(0.5).state == "ok"
    assert skewed(30).state == "fault"


def test_the_command_says_it_all_and_fails_on_a_fault(home, capsys):
    assert main(["doctor", str(home / "store"), "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)["findings"]
    about = {item["about"] for item in found}
    assert {"packages", "GPUs", "shared memory", "token", "ports", f"storage {home / 'store'}"} <= about
    assert all(item["mend"] for item in found if item["state"] == "fault")
    (home / "token").write_text("x")
    (home / "token").chmod(0o644)
    assert main(["doctor"]) == 1
    assert "FAULT token" in capsys.readouterr().err
    assert main(["doctor", "--address", "http://127.0.0.1:9", "--json"]) == 1
    assert "no job server answers" in capsys.readouterr().out


@pytest.mark.parametrize("token", [None, "a" * 64])
def test_a_job_server_is_looked_at_from_outside_and_within(home, token, monkeypatch):
    from tilth.doctor.outside import server

    if token:
        (home / "token").write_text(token)
        (home / "token").chmod(0o600)
    api = JobApi(home, token)
    try:
        found = {(item.node, item.about): item for item in server(api.address, str(home / "runs of all"))}
    finally:
        api.close()
    assert found["", "token in force"].state == ("ok" if token else "fault")
    assert found["", "clock"].state == "ok"
    assert found["driver", "shared memory"].what
    assert found["driver", f"storage {home / 'runs of all'}"].state == "ok"
    (job,) = api.jobs.values()
    assert job["runtime_env"]["excludes"] == ["__pycache__"]  # another process may compile while the package is read


class Busy(BaseHTTPRequestHandler):
    """A server that has no time even to say who may come in."""

    def do_GET(self):
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_server_that_answers_otherwise_is_not_said_to_ask_for_a_token():
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (token, _) = outside._door(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (token.about, token.state, bool(token.mend)) == ("token in force", "warning", True)


class OneSlow:
    """What of Ray is asked, with a node whose clock is `ahead`, and another for which all wait so long."""

    def __init__(self, ahead):
        import ray

        self.ahead, self.exceptions = ahead, ray.exceptions

    def nodes(self):
        return [{"Alive": True, "NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.1"}]

    def remote(self, work):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *given: self.done(work, given)))

    def done(self, work, given):
        with pytest.MonkeyPatch.context() as there:
            clock = time.time
            there.setattr(time, "time", lambda: clock() + self.ahead)
            return _Done(work(*given))

    def wait(self, tasks, num_returns, timeout):
        time.sleep(abs(self.ahead))
        return tasks, []

    def get(self, task, timeout=None):
        return task.made


class _Done:
    def __init__(self, made):
        self.made = made


@pytest.mark.parametrize("ahead", [0.5, -0.5, 0.0])
def test_a_clock_is_judged_by_itself_however_long_other_nodes_take(monkeypatch, ahead):
    monkeypatch.setattr(nodes, "SKEW_SECONDS", 0.3)
    (found,) = [item for item in nodes._asked(OneSlow(ahead), None, "") if item.about == "clock"]
    assert (found.state, found.node) == ("fault" if ahead else "ok", "10.0.0.1")


def test_a_node_with_other_packages_is_named(monkeypatch):
    ours = nodes.versions()
    assert {"python", "ray", "torch", "transformers", "peft", "pyarrow"} <= ours.keys()
    monkeypatch.setattr(nodes, "versions", lambda: {**ours, "torch": "2.13.0", "vllm": "0.32.0"})

    def told(**other):
        """What is found of a node with these versions."""
        answer = {"versions": {**ours, "torch": "2.13.0", **other}, "findings": []}
        (found,) = [item for item in nodes._told(answer) if item.about == "versions"]
        return found

    assert told().state == told(vllm="0.32.0").state == "ok"
    found = told(peft="0.1", vllm="0.29.0", torch="missing")
    assert found.state == "fault"
    for words in ("peft 0.1, the driver has", "vllm 0.29.0, the driver has 0.32.0", "torch missing, the driver has"):
        assert words in found.what
    assert found.mend == "start every node from one image"


def test_a_node_that_sees_another_disk_is_named(tmp_path):
    (tmp_path / "mark").write_text("")
    assert seen(str(tmp_path), "mark") == seen(str(tmp_path), "") == []
    (found,) = seen(str(tmp_path), "other")
    assert (found.state, "shared file system" in found.mend) == ("fault", True)


def test_every_node_is_looked_at(ray_session, tmp_path):
    found = nodes.nodes(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    address = ray_session.nodes()[0]["NodeManagerAddress"]
    assert {item.node for item in found} == {address}
    states = {item.about: item.state for item in found}
    assert (states["versions"], states["clock"]) == ("ok", "ok")
