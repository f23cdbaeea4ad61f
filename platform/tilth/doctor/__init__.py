"""`tilth doctor`: what is wrong with this machine, a cluster or storage, each finding with its mend.

machine.py   packages, GPUs, shared memory, open ports, the token: one machine, also as a task on each node
storage.py   whether a store holds what the ledger relies on
outside.py   a job server, from where one submits
nodes.py     every node of a cluster, from within
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from tilth import ui
from tilth.doctor.finding import FAULT, Finding
from tilth.errors import TilthError

_MARKS = {"ok": "ok   ", "warning": "WARN ", "fault": "FAULT"}


def doctor(options: Namespace) -> int:
    """Look, say what was found, and give the exit code: 1 where there is a fault."""
    found = examined(options.store, options.address)
    if options.json:
        _print_json(found)
    else:
        for finding in found:
            ui.reporter().say(f"{_MARKS[finding.state]} {finding.text()}")
    return int(any(finding.state == FAULT for finding in found))


def examined(store: str | None, address: str | None) -> list[Finding]:
    """Findings of this machine, of the cluster at `address` or RAY_ADDRESS, of `store` from here and from its nodes."""
    from tilth.doctor import machine

    found = [*machine.examined()]
    if store is not None:
        from tilth.doctor.storage import tried

        found += tried(store)
    try:
        if address is not None:
            from tilth.doctor.outside import server

            found += server(address, store)
        elif os.environ.get("RAY_ADDRESS"):
            from tilth.doctor.nodes import nodes

            found += nodes(store)
    except TilthError as error:
        found.append(Finding("cluster", FAULT, str(error)))
    return found


def _print_json(found: Sequence[Finding]) -> None:
    import json

    data: list[dict[str, Any]] = [vars(finding) for finding in found]
    print(json.dumps({"findings": data}))
