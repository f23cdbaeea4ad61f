"""Run a recipe and kill this process (SIGKILL) at the Nth durable write: `run_and_die.py RECIPE OUT N`.

A durable write is an fsync or a rename; even N kill just before one, odd N just after. N < 0 never kills and
prints how many points there are.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


if __name__ == "__main__":
    recipe, out, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.fsync = deadly(os.fsync, at)
    Path.replace = deadly(Path.replace, at)  # type: ignore[method-assign]
    import tilth

    tilth.run(recipe, out)
    print(2 * calls)
