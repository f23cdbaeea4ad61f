"""Ray as it answers in a cluster that does not run: which nodes there are, and what its tables hold."""

from __future__ import annotations

from collections.abc import Mapping

import pytest


def nodes(
    monkeypatch: pytest.MonkeyPatch,
    *resources: Mapping[str, float],
    held: Mapping[str, bytes] | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Nodes with these resources, all with the same labels; the first is aa11, the second aa12."""
    import ray
    from ray._private.state import state
    from ray.experimental import internal_kv

    there = [
        {"NodeID": f"aa{11 + number}", "Alive": True, "Resources": dict(has), "Labels": dict(labels or {})}
        for number, has in enumerate(resources)
    ]
    tables = held or {}
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace=None: tables.get(key))
