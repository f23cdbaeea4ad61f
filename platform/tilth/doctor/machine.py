"""One machine: packages, GPUs, shared memory, open ports, the token. Loads nothing heavy."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from tilth.cluster import token_file
from tilth.doctor.finding import FAULT, OK, WARNING, Finding

#: where Ray keeps objects; a container's default of 64 MiB spills at once
SHARED, LEAST_SHARED = Path("/dev/shm"), 1 << 30
_STORE = "--plasma_directory="
#: in /proc/net/tcp, a socket that listens, and the addresses of loopback: 127.0.0.0/8, the same within IPv6, and ::1
_LISTENING = "0A"
_LOOPBACK = re.compile(r"(0{16}F{4}0{4})?[0-9A-F]{6}7F|0{24}01000000")
#: what only Ray's own processes are called
_RAY = ("gcs_server", "raylet", "ray/dashboard", "ray::", "ray.util.client.server", "ray/_private")


def examined() -> Iterator[Finding]:
    """Everything that one machine shows by itself."""
    yield from packages()
    yield gpus()
    yield shared_memory()
    yield token()
    yield ports()


def packages() -> Iterator[Finding]:
    """Whether what is installed is what Tilth asks for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires("tilth") or ()]
    except metadata.PackageNotFoundError:
        yield Finding("packages", OK, f"tilth travels with the job; ray {version('ray')}, torch {version('torch')}")
        return
    wrong = [
        f"{item.name} {version(item.name) or 'is missing'} (asked for {item.specifier or 'any'})"
        for item in asked
        if (item.marker is None or item.marker.evaluate({"extra": ""}))
        and not item.specifier.contains(version(item.name) or "0", prereleases=True)
    ]
    if wrong:
        yield Finding("packages", FAULT, ", ".join(wrong), "install from the lock file: requirements/install.sh")
    else:
        yield Finding("packages", OK, f"as pinned; ray {version('ray')}, torch {version('torch')}")


def version(name: str) -> str | None:
    """Of a package that is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> Finding:
    """What the driver says of NVIDIA GPUs."""
    if shutil.which("nvidia-smi") is None:
        return Finding("GPUs", OK, "none (there is no nvidia-smi)")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        return Finding("GPUs", FAULT, f"nvidia-smi fails ({(done.stdout + done.stderr).strip()})", "mend the driver")
    return Finding("GPUs", OK, "; ".join(done.stdout.strip().splitlines()) or "none")


def shared_memory() -> Finding:
    """Whether Ray's objects have room."""
    if not SHARED.is_dir():
        return Finding("shared memory", WARNING, f"there is no {SHARED}", "Ray will keep objects on disk")
    size, free = shutil.disk_usage(SHARED).total, shutil.disk_usage(SHARED).free
    text = f"{free / 2**30:.1f} of {size / 2**30:.1f} GiB free in {SHARED}"
    if elsewhere := sorted(set(_stores()) - {str(SHARED)}):
        text += f"; Ray keeps objects in {', '.join(elsewhere)} instead, as it does for want of room here"
    elif free >= LEAST_SHARED:
        return Finding("shared memory", OK, text)
    return Finding(
        "shared memory", WARNING, text, "give the container more (docker --shm-size, an emptyDir of medium Memory), or "
        "Ray less for objects (`ray start --object-store-memory`)",
    )  # fmt: skip


def _stores() -> Iterator[str]:
    """Where the raylets of this machine keep objects."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            for word in (process / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                if word.startswith(_STORE):
                    yield word.removeprefix(_STORE)


def token() -> Finding:
    """Whether a token is there, and only its owner's."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return Finding("token", FAULT, "RAY_AUTH_MODE=disabled: whoever reaches a port runs code", "set it to token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", OK, "in RAY_AUTH_TOKEN")
    file = token_file()
    if not file.is_file():
        return Finding("token", OK, f"none yet in {file}; a local Ray makes one, a cluster's has to be put there")
    told = file.stat()
    mode = stat.S_IMODE(told.st_mode)
    # a mounted secret is another's, and its group is whom it was given to
    if mode & (0o077 if told.st_uid == os.getuid() else 0o007):
        return Finding("token", FAULT, f"{file} has mode {mode:04o}: others can read it", f"chmod 600 {file}")
    return Finding("token", OK, f"{file}, mode {mode:04o}")


def ports() -> Finding:
    """Ports of Ray that listen beyond loopback on this machine, and whether their processes ask for a token."""
    owners = dict(_sockets())
    found = {port: owners[inode] for port, inode in _listening() if inode in owners}
    if not found:
        return Finding("ports", OK, "no Ray process of this user listens beyond loopback")
    named = ", ".join(f"{port} ({name})" for port, (name, _) in sorted(found.items()))
    open_to_all = ", ".join(f"{port} ({name})" for port, (name, asks) in sorted(found.items()) if not asks)
    return Finding(
        "ports",
        FAULT if open_to_all else WARNING,
        f"open beyond this machine: {named}" + (f"; without a token: {open_to_all}" if open_to_all else ""),
        ("start Ray with RAY_AUTH_MODE=token; " if open_to_all else "")
        + "close them to all but the cluster (firewall, NetworkPolicy), reach the dashboard by a forwarded port",
    )


def _listening() -> Iterator[tuple[int, str]]:
    """Ports that listen beyond loopback, each with the inode of its socket."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.is_file() else ():
            fields = line.split()
            host, _, port = fields[1].rpartition(":")
            if fields[3] == _LISTENING and not _LOOPBACK.fullmatch(host):
                yield int(port, 16), fields[9]


def _sockets() -> Iterator[tuple[str, tuple[str, bool]]]:
    """The sockets of this user's Ray processes by inode: the process, and whether it asks for a token."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            name = next((name for name in _RAY if name in command), None)
            if name is None:
                continue
            guarded = _asks(process)
            links = [link.readlink().name for link in (process / "fd").iterdir()]
        except OSError:  # another user's, or gone meanwhile
            continue
        for link in links:
            if link.startswith("socket:["):
                yield link[8:-1], (name.split("/")[-1].rstrip(":"), guarded)


def _asks(process: Path) -> bool:
    """Whether a process asks for a token: its environment says, or of what Ray gave a title that of its parent.

    A title is written over the environment that a process began with, as far as it is long.
    """
    found = dict(part.partition(b"=")[::2] for part in (process / "environ").read_bytes().split(b"\0"))
    if b"RAY_AUTH_MODE" in found or not (process / "cmdline").read_bytes().startswith(b"ray::"):
        return found.get(b"RAY_AUTH_MODE", b"").lower() == b"token"
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return parent != "0" and _asks(process.parent / parent)
