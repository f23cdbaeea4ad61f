"""The job server of a cluster, by Ray's own client, with time limits and errors that say the way out.

Imports ray: load it late.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tilth import ui
from tilth.cluster import LOOPBACK, token
from tilth.errors import ClusterError

Answer = TypeVar("Answer")
ADDRESS = "http://127.0.0.1:8265"
#: how long one answer may take, and one upload
ANSWER_SECONDS, UPLOAD_SECONDS = 30.0, 900.0
#: pauses between attempts, doubling; and how long a server may be out of reach before we give up
FIRST_PAUSE, LONGEST_PAUSE, PATIENCE_SECONDS = 1.0, 30.0, 1800.0
_AWAY = (502, 503, 504)
#: what a head says, with status 500, in the first seconds of its life, while its agent does not answer yet
_NO_AGENT = "No available agent"
_OVER = {"SUCCEEDED", "FAILED", "STOPPED"}

# Ray tells of every file that it leaves out and every package that it sends; what matters of it is said here
logging.getLogger("ray").setLevel(logging.ERROR)


class Unreachable(ClusterError):  # noqa: N818 - states the condition, as ConnectionError's kin in requests do
    """The job server does not answer now; it may again."""


@dataclass(frozen=True)
class Job:
    """What the server says of a job; times in seconds since 1970."""

    id: str
    status: str
    message: str
    exit_code: int | None
    started: float | None
    ended: float | None
    entrypoint: str
    metadata: Mapping[str, str]
    runtime_env: Mapping[str, Any]

    @property
    def over(self) -> bool:
        return self.status in _OVER

    @staticmethod
    def of(details: JobDetails) -> Job:
        return Job(
            details.submission_id or details.job_id or "",
            str(details.status),
            details.message or "",
            details.driver_exit_code,
            details.start_time / 1000 if details.start_time else None,
            details.end_time / 1000 if details.end_time else None,
            details.entrypoint,
            details.metadata or {},
            details.runtime_env or {},
        )


class NoSuchJob(ClusterError):  # noqa: N818 - states the condition, as FileNotFoundError does
    """The job server answers, and knows no job of that id."""


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client waits for ever for an answer and for an upload; this one does not."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS)
        try:
            response: requests.Response = super()._do_request(method, endpoint, **options)
        except AuthenticationError as error:
            raise ClusterError(_refused(self._address, str(error))) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Unreachable(_silent(self._address, error)) from error
        if response.status_code in _AWAY:
            raise Unreachable(_silent(self._address, response.status_code))
        if response.status_code == 500 and _NO_AGENT in response.text:
            raise Unreachable(
                f"the head at {self._address} answers, but not yet the agent that starts its jobs; wait, or see "
                "dashboard_agent.log on the head"
            )
        if response.status_code == 500 and method == "GET":  # as while the GCS behind it is started anew
            raise Unreachable(f"the head at {self._address} cannot say (500); wait, or see dashboard.log on the head")
        if response.status_code == 404 and "/api/jobs/" in endpoint:
            raise NoSuchJob(f"{self._address} knows no job {endpoint.split('/')[3]!r}; `tilth jobs list` names them")
        return response


def _silent(address: str, why: object) -> str:
    return (
        f"no job server answers at {address} ({why}); a head serves jobs where its dashboard runs (ray[default]): "
        "forward its port, as in `kubectl port-forward service/NAME-head-svc 8265`, or correct --address"
    )


def _refused(address: str, why: str) -> str:
    ours = "the token held here is not the cluster's" if token() else "it asks for a token, and none is held here"
    return (
        f"{address} refused this: {ours} ({why.partition(chr(10))[0]}); put the cluster's into ~/.ray/auth_token (mode "
        "0600), or name its file in RAY_AUTH_TOKEN_PATH, or set RAY_AUTH_TOKEN"
    )


class JobServer:
    """One cluster's jobs."""

    def __init__(self, address: str | None = None) -> None:
        self.address = resolved(address)
        # Ray takes an address from the environment even where one was given
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        held = token()
        if held and urlsplit(self.address).scheme == "http" and urlsplit(self.address).hostname not in LOOPBACK:
            ui.reporter().say(
                f"{self.address} is not encrypted: whoever listens on the way reads the token; forward the port, or "
                "put TLS before it"
            )
        headers = {"authorization": f"Bearer {held}"} if held else {}
        try:
            self.client = _Client(self.address, headers=headers)
        except (RuntimeError, requests.HTTPError, ValueError) as error:
            raise ClusterError(f"{self.address} is no job server of Ray: {error}") from error

    def jobs(self) -> list[Job]:
        """Every job that was submitted, the oldest first."""
        found = [Job.of(details) for details in self._patiently(self.client.list_jobs) if details.submission_id]
        return sorted(found, key=lambda job: (job.started or 0.0, job.id))

    def job(self, job_id: str) -> Job:
        """One job. Unreachable at the first silence, NoSuchJob where there is none of that id."""
        return Job.of(_plain(lambda: self.client.get_job_info(job_id)))

    def log(self, job_id: str) -> str:
        """All that a job has said so far."""
        return str(_plain(lambda: self.client.get_job_logs(job_id)))

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Pieces of a job's log from its beginning, as they come."""
        stream: AsyncIterator[str] = self.client.tail_job_logs(job_id)
        return stream

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; False where it was over."""
        return bool(self._patiently(lambda: self.client.stop_job(job_id)))

    def submit(self, job_id: str, **request: Any) -> None:
        """Submit once: a second request under the same id, after a lost answer, finds the first."""

        def once() -> None:
            try:
                self.client.submit_job(submission_id=job_id, **request)
            except RuntimeError as error:
                if "already" not in str(error):
                    raise

        self._patiently(once)

    def holds(self, uri: str) -> bool:
        """Whether a package that was uploaded lies on the cluster still."""
        return bool(self._patiently(lambda: self.client._package_exists(uri)))

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """Call, and again with growing pauses while the server is out of reach for a moment."""
        pause = FIRST_PAUSE
        while True:
            try:
                return _plain(call)
            except Unreachable:
                if pause > LONGEST_PAUSE:
                    raise
                time.sleep(pause)
                pause *= 2


def _plain(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except RuntimeError as error:  # what Ray's client makes of a status that is no success
        raise ClusterError(f"the job server refused: {error}") from error


def resolved(address: str | None) -> str:
    """The server's URL: as given, else of the environment as Ray reads it, else the one on this machine."""
    written = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _attached() or ADDRESS
    if "://" not in written:
        written = f"http://{written}"
    parts = urlsplit(written)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(f"--address {written} is no job server; give http://HOST:8265, where the dashboard answers")
    return written.rstrip("/")


def _attached() -> str | None:
    """RAY_ADDRESS where it is the URL of a job server, as inside a cluster; else it names the head's own port."""
    found = os.environ.get("RAY_ADDRESS", "")
    return found if found.startswith(("http://", "https://")) else None
