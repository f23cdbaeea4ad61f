"""One run of a directory at a time: the second refuses and names the first.

On a local disk the kernel holds the lock (flock), so that it is gone the instant its holder dies, however it
dies. On an object store it is a lease: a file created only if absent and renewed while the run lives.
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
from tilth.storage import Store

LOCK = "LOCK"
RENEW_SECONDS = 20.0
LEASE_SECONDS = 90.0
WAIT_SECONDS = 0.5


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
    who = f"pid {owner.get('pid', '?')} of {owner.get('user', '?')} on {owner.get('host', '?')}"
    return RunLocked(
        f"{store.url} is in use by {who} since {owner.get('since', '?')}; wait for it, stop it, or choose another --out"
    )


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
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(store, mine, stop), daemon=True, name="tilth-lease")
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        if _holder(store).get("token") == mine["token"]:
            store.remove(LOCK)


def _holder(store: Store) -> dict[str, Any]:
    """Who holds the lease; empty where nobody does."""
    try:
        return _parsed(store.read(LOCK))
    except FileNotFoundError:
        return {}


def _acquire(store: Store, mine: dict[str, Any]) -> None:
    if store.create(LOCK, _renewed(mine)):
        return
    holder = _holder(store)
    if not holder and store.create(LOCK, _renewed(mine)):  # given back between the two looks
        return
    if time.time() - float(holder.get("renewed", time.time())) < LEASE_SECONDS:
        raise _refuse(store, holder)
    # the holder stopped renewing: it is dead. Two successors may race for it; the last write wins, the other leaves.
    store.write(LOCK, _renewed(mine))
    time.sleep(2.0)
    winner = _holder(store)
    if winner.get("token") != mine["token"]:
        raise _refuse(store, winner)


def _renew(store: Store, mine: dict[str, Any], stop: threading.Event) -> None:
    """Renew until told to stop. A run that lost its lease, its machine having slept, stops: another goes on with it."""
    while not stop.wait(RENEW_SECONDS):
        try:
            holder = _holder(store)
            if holder.get("token", mine["token"]) != mine["token"]:
                ui.reporter().say(str(_refuse(store, holder)))
                _interrupt_main()
                return
            store.write(LOCK, _renewed(mine))
        except StorageError as error:  # the lease outlasts several renewals: the next may succeed
            ui.reporter().say(f"the lease could not be renewed: {error}")


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
