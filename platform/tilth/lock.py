"""One run of a directory at a time: the second refuses and names the first.

On a local disk the kernel holds the lock (flock), so that it is gone the instant its holder dies, however it
dies. On an object store it is a lease: a file created only if absent and renewed while the run lives. Whether its
holder lives is seen by watching it, never by comparing the clocks of two machines: who finds a lease waits until it is
renewed, and refuses, or until it has not been for as long as a lease lasts, and takes it over. A run that is started
again after it was killed so waits for what its predecessor has left.
"""

from __future__ import annotations

import _thread
import ctypes
import fcntl
import getpass
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from tilth import ui
from tilth.errors import RunLocked, StorageError
from tilth.meanwhile import repeated
from tilth.storage import Store

LOCK = "LOCK"
RENEW_SECONDS = 20.0
LEASE_SECONDS = 90.0
WAIT_SECONDS = 0.5
#: between two looks at another's lease, and after taking one over, for another who did too
LOOK_SECONDS, SETTLE_SECONDS = 1.0, 2.0
#: the leases that this process holds, by their tokens
_ours: dict[str, Store] = {}


@contextmanager
def exclusive(store: Store) -> Iterator[None]:
    """Hold `store` for this process; RunLocked when another live run holds it."""
    with _flock(store) if store.is_local else _lease(store):
        yield


@contextmanager
def in_turn(store: Store) -> Iterator[None]:
    """Hold `store` for this process, once no other does."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(exclusive(store))
                break
            except RunLocked:
                time.sleep(WAIT_SECONDS)
        yield


def refuse_overtaken() -> None:
    """RunLocked where another has taken over what this process held, its machine having slept or been cut off.

    Asked before what another may have finished is replaced: what renews a lease looks only every RENEW_SECONDS.
    """
    for token, store in list(_ours.items()):
        holder = _holder(store)
        if holder.get("token", token) != token:
            raise _refuse(store, holder)


def _owner() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has a number and no name
        return str(os.getuid())


def _refuse(store: Store, owner: dict[str, Any]) -> RunLocked:
    return RunLocked(f"{_in_use(store, owner)}; wait for it, stop it, or choose another --out")


def _in_use(store: Store, owner: dict[str, Any]) -> str:
    who = f"pid {owner.get('pid', '?')} of {owner.get('user', '?')} on {owner.get('host', '?')}"
    return f"{store.url} is in use by {who} since {owner.get('since', '?')}"


@contextmanager
def _flock(store: Store) -> Iterator[None]:
    path = store.local(LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"cannot write to {store.url}: {error.strerror}; choose another --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refuse(store, _parsed(path.read_bytes())) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def _lease(store: Store) -> Iterator[None]:
    mine = _owner()
    _acquire(store, mine)
    _ours[mine["token"]] = store
    try:
        with repeated(lambda: _renew(store, mine), lambda: RENEW_SECONDS, "lease"):
            yield
    finally:
        _ours.pop(mine["token"], None)
        _give_back(store, mine)


def _give_back(store: Store, mine: dict[str, Any]) -> None:
    """Remove one's own lease. What was done is done: where the store cannot be reached, the lease ends by itself."""
    try:
        if _holder(store).get("token") == mine["token"]:
            store.remove(LOCK)
    except StorageError as error:
        ui.reporter().say(f"the lease could not be given back, and is over in {LEASE_SECONDS:.0f} s: {error}")


def _holder(store: Store) -> dict[str, Any]:
    """Who holds the lease; empty where nobody does."""
    return _parsed(_content(store) or b"")


def _content(store: Store) -> bytes | None:
    try:
        return store.read(LOCK)
    except FileNotFoundError:
        return None


def _acquire(store: Store, mine: dict[str, Any]) -> None:
    while not store.create(LOCK, _renewed(mine)):
        holder = _holder(store)
        if holder.get("token") == mine["token"]:  # created, and the answer was lost: the second try found the first
            return
        if holder.get("token") in _ours:
            raise _refuse(store, holder)
        if _dead(store):
            _take_over(store, mine)
            return


def _dead(store: Store) -> bool:
    """Watch another's lease: True where it is not renewed any more, False where it was given back.

    RunLocked as soon as it is renewed.
    """
    before, since, said = _content(store), time.monotonic(), False
    while before is not None and time.monotonic() - since < LEASE_SECONDS:
        time.sleep(LOOK_SECONDS)
        now = _content(store)
        if now is None:
            return False
        if now != before:
            raise _refuse(store, _parsed(now))
        if not said and time.monotonic() - since > RENEW_SECONDS:
            said = True
            ui.reporter().say(f"{_in_use(store, _parsed(now))}, which seems dead; waiting until its lease is over")
    return before is not None


def _take_over(store: Store, mine: dict[str, Any]) -> None:
    """Two successors may race for a dead holder's lease; the last write wins, the other leaves."""
    store.write(LOCK, _renewed(mine))
    time.sleep(SETTLE_SECONDS)
    winner = _holder(store)
    if winner.get("token") != mine["token"]:
        raise _refuse(store, winner)


def _renew(store: Store, mine: dict[str, Any]) -> bool:
    """Renew, if it is still one's own. A run that lost its lease, its machine having slept, stops: another goes on."""
    try:
        holder = _holder(store)
        if holder.get("token", mine["token"]) != mine["token"]:
            ui.reporter().say(str(_refuse(store, holder)))
            _interrupt_main()
            return False
        store.write(LOCK, _renewed(mine))
    except StorageError as error:  # the lease outlasts several renewals: the next may succeed
        ui.reporter().say(f"the lease could not be renewed: {error}")
    return True


def _renewed(owner: dict[str, Any]) -> bytes:
    return json.dumps({**owner, "renewed": time.time()}).encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        owner: dict[str, Any] = json.loads(data or b"{}")
    except ValueError:  # caught in the middle of the holder's write: held, by someone not yet named
        return {}
    return owner


def _interrupt_main() -> None:
    """KeyboardInterrupt in the main thread, also in a process that was started in the background (SIGINT ignored)."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        _thread.interrupt_main()
        return
    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(KeyboardInterrupt))
