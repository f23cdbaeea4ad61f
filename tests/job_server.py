"""A small server that speaks Ray's Jobs API: it takes packages, runs entry points as processes, and shows their logs.

What a test can do to it: want a token, hang up on all who follow a log (`hang_up`), answer nobody (`away`), stand as
another that remembers nothing (`replaced`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

from aiohttp import web

STATES = {None: "RUNNING", 0: "SUCCEEDED"}


class JobApi:
    """Jobs as processes of this machine, below `folder`."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.folder, self.token = folder, token
        #: true, or the status that all get
        self.away: bool | int = False
        self.jobs: dict[str, dict[str, Any]] = {}
        self.followers: set[web.WebSocketResponse] = set()
        self.puts: list[str] = []
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(30)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 30)
        app.add_routes([
            web.get("/api/version", self._version),
            web.get("/api/packages/{protocol}/{name}", self._has),
            web.put("/api/packages/{protocol}/{name}", self._put),
            web.get("/api/jobs/", self._list),
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/{id}", self._job),
            web.post("/api/jobs/{id}/stop", self._stop),
            web.get("/api/jobs/{id}/logs", self._logs),
            web.get("/api/jobs/{id}/logs/tail", self._tail),
        ])  # fmt: skip
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        self.loop.run_forever()

    def close(self) -> None:
        for job in self.jobs.values():
            job["process"].kill()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def replaced(self) -> None:
        """Another Ray stands where this one stood: it has none of its jobs and packages."""
        gone, self.jobs = self.jobs, {}
        for job_id, job in gone.items():
            if job["process"].poll() is None:
                os.killpg(job["process"].pid, signal.SIGKILL)
            job["process"].wait()
            shutil.rmtree(self.folder / f"job-{job_id}")
        for package in self.folder.glob("*.zip"):
            package.unlink()

    def hang_up(self) -> None:
        """End the connection of everyone who follows a log."""

        async def end() -> None:
            for follower in list(self.followers):
                assert follower._req is not None
                follower._req.transport.abort()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.away:
            return web.Response(status=503 if self.away is True else self.away)
        given = request.headers.get("authorization")
        if self.token and given is None:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token and given != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _has(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if (self.folder / request.match_info["name"]).exists() else 404)

    async def _put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        (self.folder / name).write_bytes(await request.read())
        self.puts.append(name)
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        job_id = asked["submission_id"]
        if job_id in self.jobs:
            return web.Response(status=500, text=f"Job with submission_id {job_id} already exists.")
        where, environment = self._prepared(job_id, asked.get("runtime_env") or {})
        command = asked["entrypoint"].replace("python", sys.executable, 1)
        with open(self.folder / f"{job_id}.log", "wb") as log:
            process = subprocess.Popen(
                command, shell=True, cwd=where, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.jobs[job_id] = {**asked, "process": process, "began": time.time(), "stopped": False}
        return web.json_response({"job_id": job_id, "submission_id": job_id})

    def _prepared(self, job_id: str, runtime_env: dict[str, Any]) -> tuple[Path, dict[str, str]]:
        """The unpacked working directory, and an environment in which the packages that travelled are found first."""
        where = self.folder / f"job-{job_id}"
        where.mkdir()
        modules = [self._unpacked(uri, self.folder / f"{uri[6:]}.d") for uri in runtime_env.get("py_modules", ())]
        if "working_dir" in runtime_env:
            self._unpacked(runtime_env["working_dir"], where)
        path = os.pathsep.join(map(str, modules))
        return where, {**os.environ, **({"PYTHONPATH": path} if path else {}), **runtime_env.get("env_vars", {})}

    def _unpacked(self, uri: str, where: Path) -> Path:
        with zipfile.ZipFile(self.folder / uri.removeprefix("gcs://")) as package:
            package.extractall(where)
        return where

    def details(self, job_id: str) -> dict[str, Any]:
        job = self.jobs[job_id]
        code = job["process"].poll()
        ended = {} if code is None else {"end_time": int(job.setdefault("ended", time.time()) * 1000)}
        status = "STOPPED" if job["stopped"] and code is not None else STATES.get(code, "FAILED")
        return {
            "type": "SUBMISSION", "submission_id": job_id, "status": status, "entrypoint": job["entrypoint"],
            "message": f"Job ended with exit code {code}" if code else "", "metadata": job.get("metadata"),
            "runtime_env": job.get("runtime_env"), "driver_exit_code": code, "start_time": int(job["began"] * 1000),
            **ended,
        }  # fmt: skip

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([self.details(job_id) for job_id in self.jobs])

    async def _job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        if job_id not in self.jobs:
            return web.Response(status=404, text=f"Job {job_id} does not exist")
        return web.json_response(self.details(job_id))

    async def _stop(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        running = job["process"].poll() is None
        job["stopped"] = job["stopped"] or running
        if running:
            os.killpg(job["process"].pid, 15)
        return web.json_response({"stopped": running})

    async def _logs(self, request: web.Request) -> web.Response:
        text = (self.folder / f"{request.match_info['id']}.log").read_text(encoding="utf-8")
        return web.json_response({"logs": text})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        job_id = request.match_info["id"]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.followers.add(socket)
        sent = 0
        try:
            while True:
                over = self.jobs[job_id]["process"].poll() is not None
                text = (self.folder / f"{job_id}.log").read_text(encoding="utf-8")
                if len(text) > sent:
                    await socket.send_str(text[sent:])
                    sent = len(text)
                if over:
                    return socket
                await asyncio.sleep(0.05)
        finally:
            self.followers.discard(socket)
