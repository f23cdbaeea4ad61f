"""A Ray cluster of two hosts with a wire between them: the second is in a network namespace of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from serving import beside_us

RAY = Path(sys.executable).with_name("ray")


def missing() -> str | None:
    """Why there can be none here."""
    name = f"tilth-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    except FileNotFoundError:
        return "no ip (iproute2) is installed"
    if made.returncode:
        return f"network namespaces need root: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[str, Callable[[], None]]]:
    """The cluster's address, of one CPU on each host, and what cuts the wire: both go on, neither hears the other."""
    name, near, far = f"tilth-{os.getpid()}", f"ta{os.getpid()}", f"tb{os.getpid()}"
    third = os.getpid() % 250
    here, there = f"10.213.{third}.1", f"10.213.{third}.2"
    with ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        stack.callback(subprocess.run, ["ip", "link", "del", near], capture_output=True)
        _ip("addr", "add", f"{here}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", far)
        for device in (far, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        address = f"{here}:{_free_port(here)}"
        _node(stack, [], "--head", "--node-ip-address", here, "--port", address.partition(":")[2],
              "--include-dashboard", "false")  # fmt: skip
        _node(stack, ["ip", "netns", "exec", name], "--address", address, "--node-ip-address", there)
        yield address, lambda: _ip("link", "set", near, "down")


@contextmanager
def a_head(cpus: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster that is a head of so many CPUs alone, and what takes its power."""
    with ExitStack() as stack:
        port = _free_port("127.0.0.1")
        where = ("--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false")
        head = _node(stack, [], "--head", *where, cpus=cpus)
        yield f"127.0.0.1:{port}", lambda: _end(head)


def _node(stack: ExitStack, inside: list[str], *more: str, cpus: int = 1) -> subprocess.Popen[str]:
    """A node that is there, and that ends with the stack, with all that it started."""
    if "--head" in more:
        # where Ray notes which cluster is this machine's, which is for nobody else to find
        more = (*more, "--temp-dir", stack.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
    command = [*inside, str(RAY), "start", *more, "--num-cpus", str(cpus), "--block", "--disable-usage-stats"]
    environment = {**beside_us(), "RAY_AUTH_MODE": "token"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    stack.callback(_end, process)
    assert process.stdout is not None
    said = ""
    while "Ray runtime started" not in said:
        line = process.stdout.readline()
        assert line, f"it did not start: {said}"
        said += line
    return process


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
