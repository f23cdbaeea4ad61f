"""A cluster's job server, seen from outside: whether it answers, asks for a token, and what its nodes say."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from tilth.doctor.finding import FAULT, OK, WARNING, Finding
from tilth.doctor.nodes import SKEW_SECONDS, skewed
from tilth.jobs.server import ANSWER_SECONDS, JobServer, resolved
from tilth.jobs.upload import carried

#: how long the job that looks at the nodes may take
WAIT_SECONDS = 300.0


def server(address: str, store: str | None = None) -> list[Finding]:
    """Findings of the job server, and of every node, by a job that it runs: that tries `store` on each, too.

    ClusterError where it does not answer.
    """
    url = resolved(address)
    found = list(_door(url))
    jobs = JobServer(address)
    return found + _within(jobs, store)


def _door(url: str) -> Iterator[Finding]:
    """What a stranger gets, and the server's clock and version."""
    try:
        stranger = requests.get(f"{url}/api/jobs/", timeout=ANSWER_SECONDS)
    except requests.RequestException:
        return  # the job server itself will say so, with what to do
    if stranger.status_code == 200:
        yield Finding(
            "token in force", FAULT, f"{url} lists and runs jobs for whoever asks",
            "start the head with RAY_AUTH_MODE=token (KubeRay: authOptions.mode: token) and close the port",
        )  # fmt: skip
    elif stranger.status_code in (401, 403):
        yield Finding("token in force", OK, f"without a token {url} answers {stranger.status_code}")
    else:
        yield Finding(
            "token in force", WARNING, f"not known: without a token {url} answers {stranger.status_code}, not 401",
            "look again when the head is well, and at what stands before it",
        )  # fmt: skip
    if "Date" in stranger.headers:
        apart = abs(parsedate_to_datetime(stranger.headers["Date"]).timestamp() - time.time())
        yield skewed(max(0.0, apart - SKEW_SECONDS / 2))  # the header counts whole seconds


def _within(jobs: JobServer, store: str | None) -> list[Finding]:
    """What a job finds on every node."""
    job_id = f"tilth-doctor-{uuid.uuid4().hex[:8]}"
    folder = str(Path(__file__).parents[1])  # this package
    words = ["python", "-m", "tilth", "doctor", *([] if store is None else [store]), "--json"]
    jobs.submit(job_id, entrypoint=shlex.join(words), runtime_env=carried([folder]))
    end = time.monotonic() + WAIT_SECONDS
    while not (job := jobs.job(job_id)).over:
        if time.monotonic() > end:
            jobs.stop(job_id)
            what = f"the job {job_id} is {job.status} after {WAIT_SECONDS:.0f} s ({job.message})"
            return [
                Finding("nodes", FAULT, what, "see that the cluster has a free CPU and an image with Tilth's packages")
            ]
        time.sleep(1.0)
    for line in reversed(jobs.log(job_id).splitlines()):
        if line.startswith('{"findings"'):
            told: list[dict[str, Any]] = json.loads(line)["findings"]
            return [Finding(**item).on(item["node"] or "driver") for item in told]
    return [Finding("nodes", FAULT, f"the job {job_id} found nothing ({job.message})", f"tilth jobs logs {job_id}")]
