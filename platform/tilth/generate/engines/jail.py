"""Runs one Python program in a jail of Linux namespaces; `tilth.generate.sandbox` starts it, as a script of its own.

    this script, outside  →  the jail's first process, which only waits  →  the program, without any privilege

When the first process ends, the kernel ends all others of the jail. Only the standard library is used, and no site
packages: it starts in 20 ms. argv: the file descriptor for the report, whose lines are `refused WHY`, or `started`
and `ended STATUS`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

# namespaces of mounts, host name, System V IPC, processes and network; and of users
_ALONE = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
_USERS = 0x10000000
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 22, 38
_INSIDE = 1000
_NO_RANDOM_ADDRESSES = 0x0040000
_MOUNT_SETATTR = 442
# by machine: the audit number, pivot_root, and the calls that the program may not make, because what they give is
# memory that no limit counts (shmget, memfd_create, memfd_secret) or a large target in the kernel (ptrace, add_key,
# request_key, keyctl, perf_event_open, bpf, userfaultfd, io_uring_setup)
_MACHINES = {
    "x86_64": (0xC000003E, 155, (29, 319, 447, 101, 248, 249, 250, 298, 321, 323, 425)),
    "aarch64": (0xC00000B7, 41, (194, 279, 447, 117, 217, 218, 219, 241, 280, 282, 425)),
}
# all that a program sees of the machine, read-only, beside the interpreter
_SEEN = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# it lies there in this script's own view alone, which needs nothing of the real /proc once that is hidden
_ROOT = Path("/proc")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/box", "TMPDIR": "/box", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}

_libc = ctypes.CDLL(None, use_errno=True)


class _JailError(Exception):
    """The machine does not give the jail."""


def _call(name: str, *arguments: Any) -> None:
    wide = [ctypes.c_ulong(item) if isinstance(item, int) else item for item in arguments]
    if getattr(_libc, name)(*wide) < 0:
        raise _JailError(f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str | None, target: Path, kind: str | None, flags: int, data: str = "") -> None:
    texts = [None if item is None else os.fsencode(item) for item in (source, target, kind)]
    _call("mount", *texts, flags, data.encode())


def _become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def _users() -> list[tuple[int, int, int]]:
    """The user ids that there are: the first here, the same outside, how many."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return [(int(first), int(outside), int(count)) for first, outside, count in map(str.split, lines)]


def _spare_uid() -> int | None:
    """A user id that nothing else has, so that limits on processes count this jail's alone; None where there is one."""
    first, _, count = _users()[-1]
    half = min(count, 1 << 30) // 2
    return first + half + os.getpid() % half if half else None


def _isolate() -> int | None:
    """Enter namespaces of its own; the user that the program is to become, None where it stays who it is."""
    if os.geteuid() == 0 and (spare := _spare_uid()) is not None:
        if _libc.unshare(_ALONE) == 0:
            return spare
        # a container's root that may not: perhaps a user may
        _become(spare)
        _call("prctl", _DUMPABLE, 1, 0, 0, 0)
    uid, gid = os.getuid(), os.getgid()
    if any(uid - first + outside == 0 for first, outside, count in _users() if first <= uid < first + count):
        raise _JailError("this user is root outside, on whom no limit of processes is laid")
    _call("unshare", _ALONE | _USERS)
    # inside it is no root either, so that starting the program takes all privileges away
    for name, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE} {uid} 1"), ("gid_map", f"{_INSIDE} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    return None


def _show(path: str) -> None:
    """Make a file, folder or link of the machine visible in the jail, read-only."""
    there, here = Path(path), _ROOT / "jail" / path.lstrip("/")
    if here.exists() or not os.path.lexists(there):
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    if there.is_symlink():
        here.symlink_to(there.readlink())
        return
    here.mkdir() if there.is_dir() else here.touch()
    _mount(path, here, None, _BIND | _RECURSIVE)
    _read_only(here, recursive=True)


def _read_only(folder: Path, *, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", 1 | _NOSUID, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, -100, os.fsencode(folder), 0x8000 * recursive, attributes, len(attributes))


def _furnish(spec: dict[str, Any], uid: int | None) -> None:
    """Build the jail's file tree on memory, with the program in /box, and leave the machine's own tree for it."""
    _mount(None, Path("/"), None, _PRIVATE | _RECURSIVE)
    _mount("tmpfs", _ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path in (*_SEEN, f"{spec['prefix']}/lib", str(Path(spec["python"]).parent), *_DEVICES):
        _show(path)
    box = _ROOT / "jail/box"
    box.mkdir()
    _mount("tmpfs", box, "tmpfs", _NOSUID | _NODEV, f"size={spec['disk_mib']}m,nr_inodes=4096,mode=700")
    for name, text in (("main.py", spec["program"]), (".stdin", spec["stdin"])):
        (box / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if uid is not None:
        for item in (box, *box.iterdir()):
            os.chown(item, uid, uid)
    _read_only(_ROOT, recursive=False)
    os.chdir(_ROOT)
    _call("syscall", _MACHINES[os.uname().machine][1], b".", b".")
    _call("umount2", b".", 2)
    # below the root of its mounts a process may make no namespaces of users, hence none at all
    os.chroot("jail")
    os.chdir("/box")


def _limit(spec: dict[str, Any], others: int) -> None:
    memory, disk = spec["memory_mib"] << 20, spec["disk_mib"] << 20
    for what, soft, hard in (
        (resource.RLIMIT_CPU, spec["seconds"], spec["seconds"] + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, disk, disk),
        (resource.RLIMIT_NPROC, spec["processes"] + others, spec["processes"] + others),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


def _forbid_calls() -> None:
    """A seccomp filter: the calls of `_MACHINES` fail with EPERM; another calling convention ends the program."""
    audit, _, forbidden = _MACHINES[os.uname().machine]
    refuse, kill, allow = (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, audit), kill, (0x20, 0, 0, 0), (0x35, 0, 1, 0x40000000), kill]
    for number in forbidden:
        steps += [(0x15, 0, 1, number), refuse]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in (*steps, allow)))
    _call("prctl", _SECCOMP, 2, struct.pack("HP", len(steps) + 1, ctypes.addressof(code)), 0, 0)


def _program(spec: dict[str, Any], uid: int | None, report: int) -> None:
    """Become the program; does not return."""
    os.dup2(os.open(".stdin", os.O_RDONLY), 0)
    Path(".stdin").unlink()
    # where users are namespaced, this script and the first process count as well
    _limit(spec, others=0 if uid is not None else 2)
    if uid is not None:
        _become(uid)
    for name in (signal.SIGPIPE, signal.SIGXFSZ):  # this interpreter's own choices, which a program would inherit
        signal.signal(name, signal.SIG_DFL)
    _libc.personality(_NO_RANDOM_ADDRESSES)  # what a program prints of addresses is the same each time
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _forbid_calls()
    os.write(report, b"started\n")
    os.execve(spec["python"], [spec["python"], "-S", "-s", "-B", "main.py"], {**_ENVIRONMENT, "PYTHONHASHSEED": "0"})


def _first(spec: dict[str, Any], uid: int | None, report: int) -> None:
    """The jail's first process: starts the program, and reports how it ended."""
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without handlers it takes no signal from inside
    child = os.fork()
    if child == 0:
        try:
            _program(spec, uid, report)
        except (_JailError, OSError) as error:
            os.write(report, f"refused {error}\n".encode())
        os._exit(1)
    while (ended := os.wait())[0] != child:
        pass
    os.write(report, f"ended {os.waitstatus_to_exitcode(ended[1])}\n".encode())
    os._exit(0)


def main() -> None:
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    spec = json.load(sys.stdin)
    try:
        if os.uname().machine not in _MACHINES:
            raise _JailError(f"no list of system calls for {os.uname().machine}")
        uid = _isolate()
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # changing the user would undo it
        _furnish(spec, uid)
    except (_JailError, OSError) as error:
        os.write(report, f"refused {error}\n".encode())
        sys.exit(1)
    child = os.fork()
    if child == 0:
        _first(spec, uid, report)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
