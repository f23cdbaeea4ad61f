"""Ray, attached to or started once per run, and ended only if we started it.

`RAY_ADDRESS` attaches to a cluster. Otherwise a local one starts on this machine when the first stage needs it.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tilth.errors import ClusterError, StorageError
from tilth.storage import Store

#: how long a cluster's head may take to answer
ANSWER_SECONDS = 10.0
#: times that a local Ray is started before it counts as one that cannot
STARTS = 3
#: how long nodes may take to say whether they see a path
SIGHT_SECONDS = 60.0
#: what only this machine reaches
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
#: whether Ray Train waits for notices that a node will go
NOTICES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_session: list[Store] = []
_shared: set[str] = set()
# our own progress speaks; libraries read these while they are imported, here and in workers
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


@contextmanager
def session(store: Store) -> Iterator[None]:
    """The time in which stages may call `ray_ready()`; a local Ray that started within ends with it."""
    _session.append(store)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    started = _is_up()
    try:
        yield
    finally:
        _session.pop()
        if not started and _is_up():
            import ray

            ray.shutdown()


def _is_up() -> bool:
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


@contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """The environment in which a local Ray starts, which its workers inherit: they import what this process can."""
    changes = {
        "PYTHONPATH": os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path),
        # no notice comes before a single machine goes: a training need not start an actor that waits for one
        NOTICES: os.environ.get(NOTICES, "0"),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def token_file() -> Path:
    """Where Ray looks for its token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str | None:
    """The token of this user, from the environment or its file; its file is made the owner's alone."""
    if held := os.environ.get("RAY_AUTH_TOKEN"):
        return held.strip()
    if not token_file().is_file():
        return None
    _secure_token()
    return token_file().read_text(encoding="utf-8").strip() or None


def _secure_token() -> None:
    """Ray writes its generated token readable by all; make it the owner's alone.

    A mounted secret cannot be changed from here: as `node.sh`, take it where only its group reads it too.
    """
    file = token_file()
    if not file.is_file() or not (mode := file.stat().st_mode) & 0o077:
        return
    try:
        file.chmod(0o600)
    except OSError as error:
        if mode & 0o007:
            raise ClusterError(
                f"{file} has mode {mode & 0o777:04o}: others can read the token, and it cannot be changed from here "
                f"({error.strerror}); have it mounted with mode 0400 or 0440"
            ) from error


def _own_token() -> None:
    """Make the token that Ray would make, where there is none yet: Ray's can be read by all until it has started."""
    file = token_file()
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    with suppress(OSError):  # there is one, or Ray says why none can be made
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as handle:
            handle.write(secrets.token_hex(32))


def _attach(address: str) -> None:
    """Connect to a running cluster; ClusterError where there is none. Ray alone would wait for minutes, then exit."""
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(log_to_driver=False)
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); correct it, or unset it to start a local Ray"
        ) from error
    except (RuntimeError, ray.exceptions.RayError) as error:  # other versions than ours, or another token
        raise ClusterError(f"the Ray cluster at RAY_ADDRESS={address} does not take us: {error}") from error


def _start_local(num_cpus: int | None) -> None:
    """A local Ray; ClusterError where this machine cannot start one.

    Ray gives a node half a minute to come up, which on a busy machine it may miss the first time.
    """
    import ray

    for left in reversed(range(STARTS)):
        try:
            with _inherited_by_workers():
                # without an address Ray would join whatever last started here, or wait for it if it is gone
                ray.init(
                    "local", num_cpus=num_cpus, log_to_driver=False, include_dashboard=False, logging_level="error"
                )
            return
        except Exception as error:  # Ray raises a bare one where a node does not come up in its time
            ray.shutdown()
            if left and "timed out" in str(error):
                continue
            raise ClusterError(
                f"a local Ray does not start ({error}); see that the machine has time to spare, that the temporary "
                "folder (RAY_TMPDIR), the one that objects spill to (RAY_object_spilling_directory) and /dev/shm have "
                "room and that this user may open ports on the loopback address, or set RAY_ADDRESS to a running "
                "cluster"
            ) from error


def ray_ready(num_cpus: int | None = None) -> Any:
    """The ray module, connected; a local Ray gets `num_cpus` logical CPUs (None: as many as the machine has).

    ClusterError when `RAY_ADDRESS` leads nowhere, StorageError when nodes of the cluster do not see the run's path.
    """
    if "ray" not in sys.modules:
        # Ray reads both while it is imported; work that runs out of memory is for the ledger to isolate
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_task_oom_retries", "0")
        # a local Ray's workers are the work: at Ray's own niceness of 15 any other process starves them
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if not ray.is_initialized():
        if address := os.environ.get("RAY_ADDRESS"):
            _attach(address)
        else:
            _own_token()
            _start_local(num_cpus)
        _secure_token()
    _refuse_unshared(ray)
    return ray


@contextmanager
def interrupts_given_back() -> Iterator[None]:
    """Ray Train and Ray Tune take Ctrl-C for themselves and keep it when they are done: no later stage would stop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


def never_begun(error: BaseException) -> str | None:
    """Why an actor never began to work, where that is what Ray's error says: its last line, which names the cause."""
    if not getattr(error, "actor_init_failed", False):
        return None
    return str(error).strip().splitlines()[-1].strip()


def _refuse_unshared(ray: Any) -> None:
    """StorageError where the run lies on a local path that not every node of the cluster sees."""
    store = _session[-1] if _session else None
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if store is None or not store.is_local or len(nodes) < 2 or store.url in _shared:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = f".tilth-seen-{os.getpid()}"
    store.write(marker, b"")
    asked: dict[Any, str] = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=True)
        task = ray.remote(_sees).options(num_cpus=0, scheduling_strategy=place)
        asked[task.remote(store, marker)] = node["NodeManagerAddress"]
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SIGHT_SECONDS)
    blind = sorted({asked[task] for task in [*silent, *(task for task in ready if not ray.get(task))]})
    store.remove(marker)
    if blind:
        raise StorageError(
            f"--out {store.url} is a local path that {len(blind)} of the cluster's {len(nodes)} nodes do not see "
            f"({', '.join(blind[:4])}); give a shared file system or a URI such as s3://bucket/run"
        )
    _shared.add(store.url)


def _sees(store: Store, name: str) -> bool:
    return store.exists(name)
