"""Object stores on loopback, each with a bucket: S3 by moto, Google Cloud Storage by its emulator."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer
from typing import Any

import fsspec
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
from moto.server import ThreadedMotoServer

BUCKET = "tilth-test"


@contextmanager
def s3() -> Iterator[str]:
    """The URI of a bucket; the environment leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with _environment("s3", AWS_ENDPOINT_URL=f"http://{host}:{port}", **given):
        if not fsspec.filesystem("s3").exists(BUCKET):  # moto keeps them as long as the process lives
            fsspec.filesystem("s3").mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@contextmanager
def gcs() -> Iterator[str]:
    """The same of Google's."""
    kept = Storage(use_memory_fs=True)
    with HTTPServer(("127.0.0.1", 0), partial(Conditional, kept)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        # where there is more than one kind of bucket, gcsfs asks of which it is by gRPC, which the emulator lacks
        quiet = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        with _environment("gs", STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{server.server_port}", **quiet):
            fsspec.filesystem("gs").mkdir(BUCKET)
            yield f"gs://{BUCKET}"
        server.shutdown()
        thread.join()


@contextmanager
def _environment(protocol: str, **values: str) -> Iterator[None]:
    """With these variables, and without connections of before."""
    saved = dict(os.environ)
    os.environ.update(values)
    fsspec.get_filesystem_class(protocol).clear_instance_cache()
    yield
    os.environ.clear()
    os.environ.update(saved)
    fsspec.get_filesystem_class(protocol).clear_instance_cache()


def put(bucket: str, name: str, data: bytes) -> None:
    """Write to a bucket as another process does: this one's connections do not know of it."""
    protocol, _, path = f"{bucket}/{name}".partition("://")
    fsspec.filesystem(protocol, skip_instance_cache=True).pipe_file(path, data)


class Taken(Exception):
    """There is such an object already."""


class Once:
    """The emulator's storage, for a request that asks for an object to be new (`ifGenerationMatch=0`)."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def create_file(self, bucket: str, name: str, content: bytes, what: Any, *more: Any) -> None:
        with suppress(NotFound):
            self._kept.get_file_obj(bucket, name)
            raise Taken
        self._kept.create_file(bucket, name, content, what, *more)


class Conditional(RequestHandler):  # type: ignore[misc]
    """The emulator, and the precondition that it does not know."""

    def do_POST(self) -> None:
        if "ifGenerationMatch=0" in self.path:
            self.storage = Once(self.storage)
        try:
            super().do_POST()
        except Taken:
            self.send_error(HTTPStatus.PRECONDITION_FAILED)
