"""Kill a run (SIGKILL) at each of its durable writes in turn, and run it again: `run_and_die.py
RECIPE FOLDER STEP`, where STEP 1 tries every point and 4 every fourth.

A durable write is an fsync or a rename; there is a point just before and one just after each. Runs are forked
children, so that importing costs once. Leaves FOLDER/whole and FOLDER/POINT; prints the number of points.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet  # noqa: F401

import tilth.augment.stage
import tilth.data.finish
import tilth.data.ingest
import tilth.data.placement
import tilth.data.stage
from tilth import ui

calls = 0


def deadly(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        global calls
        here, calls = calls, calls + 1
        if at == 2 * here:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if at == 2 * here + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def forked(recipe: str, out: Path, at: int) -> int:
    """Run in a child that dies at point `at`; returns its wait status. The number of points goes to OUT.points."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.fsync = deadly(os.fsync, at)
    Path.replace = deadly(Path.replace, at)  # type: ignore[method-assign]
    ui.use(ui.Reporter("plain"))
    tilth.run(recipe, out)
    out.with_suffix(".points").write_text(str(2 * calls))
    os._exit(0)


if __name__ == "__main__":
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    if forked(recipe, folder / "whole", -1):
        sys.exit("the undisturbed run failed")
    points = int((folder / "whole.points").read_text())
    for point in range(0, points, int(sys.argv[3])):
        if forked(recipe, folder / str(point), point) != signal.SIGKILL:
            sys.exit(f"point {point}: was not killed")
        if forked(recipe, folder / str(point), -1):
            sys.exit(f"point {point}: could not be resumed")
    print(points)
