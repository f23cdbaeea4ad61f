"""`tilth submit` and `tilth jobs`: their arguments are parsed in `cli.py`, their work begins here."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tilth import ui
from tilth.errors import ClusterError, RecipeError
from tilth.jobs.spec import JobSpec, content_id, load_spec

if TYPE_CHECKING:
    from tilth.jobs.follow import Detached, Request
    from tilth.jobs.server import Job, JobServer

#: Ray calls it in every worker of the job
HOOK = "tilth.jobs.inside.take_secrets"


def submit(options: Namespace) -> dict[str, Any] | int:
    """Send a job and follow it to its end; the job's exit code."""
    spec = load_spec(options.spec, options.overrides)
    from tilth.jobs.follow import Detached, begin, to_the_end
    from tilth.jobs.server import JobServer

    request = requested(spec)
    server = JobServer(options.address)
    if options.detach:
        return {"id": begin(server, request), "address": server.address}
    try:
        return to_the_end(server, request, _write)
    except Detached as left:
        return _detached(left, server)


def requested(spec: JobSpec) -> Request:
    """The job as Ray's Jobs API takes it. RecipeError where too much would travel."""
    from tilth.jobs.follow import Request
    from tilth.jobs.upload import carried, readable, uploads

    found = uploads(spec.working_dir, spec.packages)
    for folder, upload in found.items():
        ui.reporter().say(f"{folder}: {len(upload.files):,} files, {readable(upload.size)}")
    job_id = content_id(spec, {folder: upload.digest() for folder, upload in found.items()})
    runtime_env: dict[str, Any] = {"working_dir": spec.working_dir}
    if spec.packages:
        runtime_env |= carried(spec.packages)
    if variables := spec.environment():
        runtime_env["env_vars"] = variables
    if spec.secrets:
        runtime_env["worker_process_setup_hook"] = HOOK
    arguments = {"entrypoint": spec.entrypoint, "runtime_env": runtime_env, **_driver(spec)}
    metadata = {"tilth": job_id, "recipe": spec.recipe, "out": spec.out, **_written(_driver(spec))}
    return Request(job_id, {**arguments, "metadata": metadata}, spec.retries)


def _driver(spec: JobSpec) -> dict[str, float]:
    memory = spec.driver.memory_gib
    asked = {"entrypoint_num_cpus": spec.driver.cpus, "entrypoint_num_gpus": spec.driver.gpus}
    return asked | ({"entrypoint_memory": int(memory * 2**30)} if memory else {})


def _written(driver: dict[str, float]) -> dict[str, str]:
    return {name: str(value) for name, value in driver.items()}


def jobs(options: Namespace) -> dict[str, Any] | list[dict[str, Any]] | int:
    """List jobs, follow one, stop it or take it up again."""
    if options.action != "list" and options.id is None:
        raise RecipeError(f"tilth jobs {options.action} needs a job's id; `tilth jobs list` names them")
    from tilth.jobs.server import JobServer

    server = JobServer(options.address)
    if options.action == "list":
        return _list(options, server)
    if options.action == "stop":
        return _stop(options.id, server)
    if options.action == "resume":
        return _followed(_resume(options.id, server), server)
    return _followed(options.id, server)


def _list(options: Namespace, server: JobServer) -> list[dict[str, Any]]:
    found = server.jobs()
    if not options.json:
        from rich.markup import escape
        from rich.table import Table

        table = Table("job", "status", "began", "took", "runs")
        for job in found:
            began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
            took = f"{(job.ended or time.time()) - job.started:.0f} s" if job.started else ""
            table.add_row(job.id, job.status, began, took, escape(job.entrypoint))
        ui.answer(table)
    shown = ("id", "status", "exit_code", "started", "ended", "entrypoint")
    return [{name: getattr(job, name) for name in shown} for job in found]


def _stop(job_id: str, server: JobServer) -> dict[str, Any]:
    stopped = server.stop(job_id)
    ui.reporter().say(f"{job_id}: " + ("asked to stop" if stopped else "was over already"))
    return {"id": job_id, "stopped": stopped}


def _resume(job_id: str, server: JobServer) -> str:
    """The id of the next attempt at a job that is over, as it was submitted."""
    from tilth.jobs.follow import Request, attempts, submit_next

    base = server.job(job_id).metadata.get("tilth")
    if base is None:
        raise ClusterError(f"{job_id} was not submitted by Tilth: submit a spec instead")
    made = attempts(server.jobs(), base)
    latest = made[-1]
    if not latest.over:
        raise ClusterError(f"{latest.id} runs already; `tilth jobs logs {latest.id}` follows it")
    arguments = _again(latest)
    if gone := [uri for uri in _packages(arguments["runtime_env"]) if not server.holds(uri)]:
        raise ClusterError(
            f"{job_id} cannot be resumed: {server.address} no longer holds its {gone[0]}, as Ray removes packages that "
            "no job uses; `tilth submit SPEC` sends them again and goes on from what is finished"
        )
    return submit_next(server, Request(base, arguments, 0), made)


def _packages(runtime_env: Mapping[str, Any]) -> list[str]:
    """What was uploaded for a job."""
    named = [runtime_env.get("working_dir"), *runtime_env.get("py_modules", ())]
    return [uri for uri in named if isinstance(uri, str) and uri.startswith("gcs://")]


def _again(job: Job) -> dict[str, Any]:
    """What a job was submitted with; its packages are named by where they lay on the cluster."""
    driver = {
        name: int(value) if name == "entrypoint_memory" else float(value)
        for name, value in job.metadata.items()
        if name.startswith("entrypoint_")
    }
    runtime_env = {name: value for name, value in job.runtime_env.items() if not name.startswith("_")}
    metadata = {name: value for name, value in job.metadata.items() if name != "job_submission_id"}
    return {"entrypoint": job.entrypoint, "runtime_env": runtime_env, "metadata": metadata, **driver}


def _followed(job_id: str, server: JobServer) -> int:
    from tilth.jobs.follow import Detached, ended, exit_code, follow

    try:
        job = follow(server, job_id, _write)
    except Detached as left:
        return _detached(left, server)
    ended(job)
    return exit_code(job)


def _detached(left: Detached, server: JobServer) -> int:
    job_id, address = left.job_id, f"--address {server.address}"
    goes_on = f"{job_id} goes on" if left.submitted else f"if {job_id} was submitted, or tried again, it goes on"
    ui.reporter().say(
        f"detached; {goes_on}. Follow it: tilth jobs logs {job_id} {address}; end it: "
        f"tilth jobs stop {job_id} {address}", event="detached", id=job_id,
    )  # fmt: skip
    return 130


def _write(text: str) -> None:
    if ui.reporter().json:
        for line in text.splitlines():
            ui.reporter().say(line, event="log")
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
