"""Augment rows that do not fit into Ray's object store, on a Ray of this process alone with about the least it takes.

python tests/fill_the_store.py DISK ROOT, where DISK is `sound`, `full`, `broken` or `breaks`: what becomes of objects
for which there is no room in memory; one that breaks does so on the way, and is mended once that is said. Prints what
came of it as one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import tilth
from tilth import room, ui
from tilth.data import engine
from tilth.data.dataset import Dataset
from tilth.errors import TilthError

#: what was said of a disk that broke
SAID: list[str] = []
#: a row with what is made of it is 12 MiB, a unit 96, the store 80: no unit fits
STORE, ROWS, LETTERS, VARIANTS, UNIT = 80 << 20, 16, 1 << 20, 11, 8


def recipe(root: Path) -> dict[str, Any]:
    """Rows made by one pool of workers and gone on with by another: each unit lies in the store between them."""
    rows = [{"text": f"{n:04d} " + "word " * (LETTERS // 5), "label": str(n % 3)} for n in range(ROWS)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [
        {"kind": "faulty:Numbered", "variants": VARIANTS},
        {"kind": "faulty:Numbered", "name": "again", "resources": {"workers": 1}},
    ]
    source = {"kind": "jsonl", "path": str(root / "rows.jsonl")}
    return {"name": "large", "stages": {
        "data": {"kind": "data", "row": "labelled", "source": source, "resources": {"workers": 0}},
        "more": {"kind": "augment", "data": "@data", "steps": steps, "unit_rows": UNIT, "resources": {"workers": 1}},
    }}  # fmt: skip


def most_on_disk(over: threading.Event, found: list[int]) -> None:
    """The most that this Ray's raylet ever held in files that are its store's, unlinked or not."""
    import ray

    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    while not over.wait(0.05):
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{raylet}/fd").iterdir()]
        except OSError:
            continue
        found.append(sum("spilled/" in link for link in links))


def started(disk: str, root: Path) -> None:
    """A Ray whose store is small."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if disk == "full":  # every disk is fuller than that
        os.environ |= {"RAY_local_fs_capacity_threshold": "0.00001"}
    import ray

    folder = root / "spilled"
    folder.mkdir()
    ray.init("local", num_cpus=2, object_store_memory=STORE, object_spilling_directory=str(folder),
             include_dashboard=False, log_to_driver=False)  # fmt: skip
    if disk == "broken":
        broken(folder)
    if disk == "breaks":
        breaking(folder)


def broken(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def breaking(folder: Path) -> None:
    """Right after it was found sound."""
    room.LACK_SECONDS = 3.0
    found_sound = engine.refuse_unspillable

    def then_broken(ray: Any) -> None:
        found_sound(ray)
        broken(folder)

    engine.refuse_unspillable = then_broken

    def heard(text: str, **_: Any) -> None:
        if "cannot spill" in text and folder.is_file():
            SAID.append(text)
            folder.unlink()
            folder.mkdir()

    ui.reporter().say = heard  # type: ignore[method-assign]


def main(disk: str, root: Path) -> dict[str, Any]:
    started(disk, root)
    over, files = threading.Event(), [0]
    threading.Thread(target=most_on_disk, args=(over, files), daemon=True).start()
    began = time.monotonic()
    try:
        done = Dataset.open(tilth.run(recipe(root), root / "out")["more"])
    except TilthError as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - began}
    finally:
        over.set()
    ids = [row["id"] for row in done.rows()]
    return {"rows": len(ids), "different": len(set(ids)), "counts": done.counts, "on_disk": max(files), "said": SAID}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))), flush=True)
