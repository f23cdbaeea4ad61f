"""Ray, attached to or started once per run, and ended only if we started it.

`RAY_ADDRESS` attaches to a cluster. Otherwise a local one starts on this machine when the first stage needs it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilth.errors import ClusterError, StorageError
from tilth.storage import Store

#: how long a cluster's head may take to answer
ANSWER_SECONDS = 10.0
#: times that a local Ray is started before it counts as one that cannot
STARTS = 3
_session: list[Store] = []
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
def _importable_by_workers() -> Iterator[None]:
    """Workers of a local Ray inherit the environment in which it starts: let them import what this process can."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _secure_token() -> None:
    """Ray writes its generated token readable by all; make it the owner's alone."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.is_file() and token.stat().st_mode & 0o077:
        token.chmod(0o600)


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


def _start_local(num_cpus: int | None) -> None:
    """A local Ray; ClusterError where this machine cannot start one.

    Ray gives a node half a minute to come up, which on a busy machine it may miss the first time.
    """
    import ray

    for left in reversed(range(STARTS)):
        try:
            with _importable_by_workers():
                ray.init(num_cpus=num_cpus, log_to_driver=False, include_dashboard=False, logging_level="error")
            return
        except Exception as error:  # Ray raises a bare one where a node does not come up in its time
            ray.shutdown()
            if left and "timed out" in str(error):
                continue
            raise ClusterError(
                f"a local Ray does not start ({error}); see that the machine has time to spare, that the temporary "
                "folder (RAY_TMPDIR) and /dev/shm have room and that this user may open ports on the loopback "
                "address, or set RAY_ADDRESS to a running cluster"
            ) from error


def ray_ready(num_cpus: int | None = None) -> Any:
    """The ray module, connected; a local Ray gets `num_cpus` logical CPUs (None: as many as the machine has).

    ClusterError when `RAY_ADDRESS` leads nowhere, StorageError when a cluster of several nodes is to write to a
    local path.
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
            _start_local(num_cpus)
        _secure_token()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and _session and _session[-1].is_local:
        raise StorageError(
            f"--out {_session[-1].url} is a local path, but the cluster has {len(nodes)} nodes that could not all "
            "see it; give a shared URI such as s3://bucket/run"
        )
    return ray
