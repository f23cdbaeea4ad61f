"""Fixtures that every subject shares: real data where it is there, and one local Ray for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # one that is busy is no fault
ROOT = Path(__file__).parents[1]
#: what the tests of a module name that start a Ray, a vLLM or a whole run
STARTING = ("ray_session", "engines.vllm", '"tilth", "run"')


class ByModule(LoadScopeScheduling):
    """A module's tests share one process and its fixtures, and all that start a Ray share one: never two at once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "ray" if _starts_ray(ROOT / module) else module


@lru_cache
def _starts_ray(module: Path) -> bool:
    text = module.read_text(encoding="utf-8")
    return any(word in text for word in STARTING)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    return ByModule(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; the test is skipped where it is absent."""
    folder = Path(os.environ.get("TILTH_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder}; set TILTH_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A local Ray with two logical CPUs, ended after the session: each worker of a stage loads its libraries anew."""
    from tilth import cluster

    ray = cluster.ray_ready(num_cpus=2)
    yield ray
    ray.shutdown()
