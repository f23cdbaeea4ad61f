"""Submitting a job once, following it to its end through lost connections, and trying again what failed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tilth import ui
from tilth.errors import ClusterError, RecipeError, TimeLimitError
from tilth.jobs.server import FIRST_PAUSE, LONGEST_PAUSE, PATIENCE_SECONDS, Job, JobServer, NoSuchJob, Unreachable

#: exit codes that another attempt would only repeat: done, a bad recipe, the time limit
_FINAL = {0, RecipeError.exit_code, TimeLimitError.exit_code}
STOPPED, FAILED = 130, 1
#: after so many seconds without a line the server is asked whether the job still runs
QUIET_SECONDS, POLL_SECONDS = 20.0, 1.0
#: how often the log of a job that is over may be out of reach
GONE = 3
#: so long after a job is done a second submit is taken for the first, whose answer was lost
LATELY_SECONDS = 600.0
Write = Callable[[str], object]


class Detached(Exception):  # noqa: N818 - no fault: the person went away, the job goes on
    """Ctrl-C while a job was followed, or before it was known whether it is submitted."""

    def __init__(self, job_id: str, submitted: bool = True) -> None:
        super().__init__(job_id)
        self.job_id, self.submitted = job_id, submitted


@dataclass(frozen=True)
class Request:
    """A job as it is submitted, under an id that follows from its content."""

    id: str
    arguments: dict[str, Any]
    retries: int


@dataclass
class _Shown:
    """How many characters of the log were shown: a new connection begins the log anew."""

    characters: int = 0


def attempts(jobs: list[Job], base: str) -> list[Job]:
    """The attempts at one job, in order: its own id, then id-2, id-3."""
    pattern = re.compile(rf"{re.escape(base)}(?:-(\d+))?")
    found = [(int(match[1] or 1), job) for job in jobs if (match := pattern.fullmatch(job.id))]
    return [job for _, job in sorted(found, key=lambda pair: pair[0])]


def begin(server: JobServer, request: Request) -> str:
    """The id of the attempt to follow: one that runs or was done just now is attached to, else the next is submitted.

    What was done earlier runs again: data and storage may have changed, and the run itself reuses what still holds.
    """
    made = attempts(server.jobs(), request.id)
    if made and (state := _holds(made[-1])):
        ui.reporter().say(
            f"{made[-1].id} {state}; following it, nothing is submitted twice", event="attached", id=made[-1].id
        )
        return made[-1].id
    return submit_next(server, request, made)


def _holds(job: Job) -> str | None:
    """How a job stands that a second submit is to follow, None where it is to run again."""
    if not job.over:
        return "runs already"
    if job.status != "SUCCEEDED" or job.ended is None or (ago := time.time() - job.ended) >= LATELY_SECONDS:
        return None
    return f"was done {max(ago, 0):.0f} s ago (`tilth jobs resume {job.id}` runs it again)"


def submit_next(server: JobServer, request: Request, made: list[Job]) -> str:
    """Submit another attempt after those that were made; its id."""
    # the server forgets jobs that were deleted: another attempt is not to be taken for one that it still knows
    numbers = [int(end) if (end := job.id.removeprefix(f"{request.id}-")).isdigit() else 1 for job in made]
    number = max(numbers, default=0) + 1
    job_id = request.id if number == 1 else f"{request.id}-{number}"
    arguments = {**request.arguments, "metadata": {**request.arguments["metadata"], "attempt": str(number)}}
    server.submit(job_id, **arguments)
    ui.reporter().say(f"submitted {job_id} to {server.address}", event="submitted", id=job_id)
    return job_id


def to_the_end(server: JobServer, request: Request, write: Write) -> int:
    """Begin a job and follow it, and what failed is submitted again, up to its retries; the exit code of the last.

    So is what the server knows no more, as where another Ray without its memory took the place of the head.
    """
    for left in range(request.retries, -1, -1):
        job_id = _begun(server, request)
        try:
            job = follow(server, job_id, write)
        except NoSuchJob as gone:
            if left == 0:
                raise
            _say_again(job_id, f"is gone: {gone}", left)
            continue
        code = exit_code(job)
        if left == 0 or job.status == "STOPPED" or code in _FINAL:
            break
        _say_again(job_id, f"failed ({_why(job)})", left)
    ended(job)
    return code


def _begun(server: JobServer, request: Request) -> str:
    """Begin, as patient with a server that is out of reach as who follows a job."""
    pause, lost = FIRST_PAUSE, None
    while True:
        try:
            try:
                return begin(server, request)
            except Unreachable as error:
                lost = _lost(request.id, lost, error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except KeyboardInterrupt:  # a request may be on its way, and what an earlier one began goes on
            raise Detached(request.id, submitted=False) from None


def _say_again(job_id: str, how: str, left: int) -> None:
    ui.reporter().say(
        f"{job_id} {how}; submitting it again, {left} more times at most: it goes on from what is finished",
        event="again", id=job_id,
    )  # fmt: skip


def ended(job: Job) -> None:
    """Say how a job ended."""
    took = f" after {job.ended - job.started:.0f} s" if job.ended and job.started else ""
    why = (
        ""
        if job.status == "SUCCEEDED"
        else f" ({_why(job)}); `tilth submit SPEC` goes on from what is finished, and for some minutes `tilth jobs "
        f"resume {job.id}`"
    )
    ui.reporter().say(f"{job.id}: {job.status.lower()}{took}{why}", event="ended", id=job.id, status=job.status)


def exit_code(job: Job) -> int:
    """The driver's own where it had one: 0 done, 1 failed, 2 bad recipe, 124 time limit; 130 where it was stopped."""
    if job.status == "STOPPED":
        return STOPPED
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code if job.exit_code is not None and 0 < job.exit_code < 256 else FAILED


def _why(job: Job) -> str:
    return (job.message.strip().splitlines() or [f"exit code {job.exit_code}"])[0]


def follow(server: JobServer, job_id: str, write: Write) -> Job:
    """Write a job's log as it comes, until it is over; Ctrl-C raises Detached.

    ClusterError when the server is silent for half an hour, NoSuchJob when it does not know the job.
    """
    try:
        return _followed(server, job_id, write)
    except KeyboardInterrupt:
        raise Detached(job_id) from None


def _followed(server: JobServer, job_id: str, write: Write) -> Job:
    shown, pause, gone = _Shown(), FIRST_PAUSE, 0
    lost: float | None = None
    job: Job | None = None
    while True:
        try:
            job = server.job(job_id)
            if lost is not None:
                ui.reporter().say("connected again")
            lost, pause = None, FIRST_PAUSE
            asyncio.run(_show(server, job_id, shown, write))
            if (job := server.job(job_id)).over:
                return job
            time.sleep(POLL_SECONDS)
        except BrokenPipeError:  # who reads the log has seen enough
            raise
        except (Unreachable, RuntimeError, aiohttp.ClientError, OSError) as error:
            gone += job is not None and job.over
            if job is not None and gone >= GONE:
                ui.reporter().say(f"the log of {job_id} is out of reach, as when its node is gone")
                return job
            lost = _lost(job_id, lost, error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _lost(job_id: str, since: float | None, error: BaseException) -> float:
    """Since when the server is out of reach; says so once, and gives up in the end."""
    if since is None:
        ui.reporter().say(f"connection lost ({error}); what runs goes on, trying again")
        return time.monotonic()
    if time.monotonic() - since > PATIENCE_SECONDS:
        raise ClusterError(
            f"the job server was out of reach for {PATIENCE_SECONDS / 60:.0f} minutes ({error}); the job may still "
            f"run: `tilth jobs logs {job_id}` follows it"
        )
    return since


async def _show(server: JobServer, job_id: str, shown: _Shown, write: Write) -> None:
    """Write what is new of a log; returns when the server ends it or the job is over."""
    stream, seen = server.tail(job_id), 0
    waiting: asyncio.Task[str | None] | None = None
    while True:
        waiting = waiting or asyncio.create_task(_next(stream))
        done, _ = await asyncio.wait({waiting}, timeout=QUIET_SECONDS)
        if not done:  # a connection that died without a word looks like a job without one
            if (await asyncio.to_thread(server.job, job_id)).over:
                return
            continue
        text, waiting = waiting.result(), None
        if text is None:
            return
        fresh = text[max(0, shown.characters - seen) :]
        seen += len(text)
        shown.characters = max(shown.characters, seen)
        if fresh:
            write(fresh)


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)
