"""Whether a store holds what the ledger relies on: whole files, replaced at once, created once."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

from tilth.doctor.finding import FAULT, OK, Finding
from tilth.errors import TilthError
from tilth.storage import Store

#: how often a file is replaced under a reader's eyes, and how large it is
TIMES, SIZE = 20, 1 << 16
_MEND = "give another --out: a local disk, a file system with atomic rename, or an object store"


def tried(url: str) -> list[Finding]:
    """What a store does when it is written to, read and cleared; what was written is removed again."""
    store = Store.at(url).sub(f"tilth-doctor-{uuid.uuid4().hex[:8]}")
    try:
        found = [_written(store), _created(store), _replaced(store)]
        store.remove()
    except (TilthError, OSError) as error:
        return [Finding(f"storage {url}", FAULT, f"cannot be used: {error}", "check its name, rights and room")]
    return [Finding(f"storage {url}", OK if well else FAULT, what, "" if well else _MEND) for well, what in found]


def seen(url: str, marker: str) -> list[Finding]:
    """Whether this node sees the file `marker` that the driver wrote; nothing where none was written."""
    try:
        if not marker or Store.at(url).exists(marker):
            return []
    except (TilthError, OSError):
        pass  # that it cannot be used is a finding already
    what = "does not see what the driver wrote there: it is another disk of the same name"
    return [Finding(f"storage {url}", FAULT, what, "give a shared file system or a URI such as s3://bucket/run")]


def _written(store: Store) -> tuple[bool, str]:
    data = bytes(range(256))
    store.write("whole", data)
    back = store.read("whole") == data and store.list() == ["whole"]
    return (
        back,
        "what is written is read and listed at once" if back else "what is written is not read or listed at once",
    )


def _created(store: Store) -> tuple[bool, str]:
    first, second = store.create("once", b"1"), store.create("once", b"2")
    once = first and not second and store.read("once") == b"1"
    return once, "a file is created once" if once else "a file can be created twice: two runs could hold one directory"


def _replaced(store: Store) -> tuple[bool, str]:
    """A reader sees the old or the new file, never a part, while it is replaced."""
    versions = [bytes([mark]) * SIZE for mark in (1, 2)]
    store.write("replaced", versions[0])

    def replace() -> None:
        for turn in range(TIMES):
            store.write("replaced", versions[turn % 2])

    whole = True
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(replace)
        while not writing.done():
            whole = whole and store.read("replaced") in versions
    writing.result()  # raises what the writer met
    return whole, "files are replaced whole" if whole else "a reader saw a part of a file while it was replaced"
