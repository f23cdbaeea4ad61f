"""The model hub: its cache on this machine, then the hub itself, which costs a few seconds where it is out of reach."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tilth.content import cache_dir
from tilth.errors import ModelError

PATIENCE_SECONDS = 4.0
#: how long one process's "out of reach" spares the others the wait
MEMORY_SECONDS = 300.0
FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja"]  # no pickles, no code
#: the same weights again, for other programs
ELSEWHERE = ["onnx/*", "openvino/*", "original/*", "consolidated*.safetensors"]


@dataclass(frozen=True)
class Answer:
    """What the hub says of a name: the commit, or why there is none."""

    commit: str | None = None
    why: str = ""
    #: how many it has of each number format, as safetensors calls them (F32, BF16)
    parameters: Mapping[str, int] = field(default_factory=dict)
    #: of a dataset's split
    rows: int | None = None


def cached(name: str, revision: str | None) -> Path | None:
    """The snapshot in the hub's own cache on this machine, if it is whole."""
    root = _root(name)
    wanted = revision or "main"
    try:
        commit = (root / "refs" / wanted).read_text().strip()
    except OSError:
        commit = wanted
    snapshot = root / "snapshots" / commit
    return snapshot if snapshot.is_dir() and lacks(snapshot) is None else None


def keep(name: str, commit: str) -> None:
    """Make a snapshot what the cache has for the name alone, as a download by name does, where it has nothing yet."""
    if cached(name, None) is not None:
        return
    ref = _root(name) / "refs" / "main"
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    except OSError:
        pass  # a read-only cache only costs later runs the question


def _root(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def lacks(folder: Path) -> str | None:
    """What a directory lacks to be a model, None if nothing: a config, and weights that are not pickles."""
    if (folder / "adapter_config.json").is_file():
        return None if (folder / "adapter_model.safetensors").is_file() else "adapter_model.safetensors"
    if not (folder / "config.json").is_file():
        return "config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return next((shard for shard in shards if not (folder / shard).is_file()), None)
    weights = [path for ending in ("safetensors", "gguf") for path in folder.glob(f"*.{ending}")]
    return None if weights else "weights in safetensors"


@functools.cache
def ask(name: str, revision: str | None) -> Answer:
    """The hub's word on a model, asked once per process."""
    return _patiently(lambda: _ask(name, revision))


@functools.cache
def dataset_rows(name: str, config: str | None, split: str, revision: str | None) -> int | None:
    """The rows of a dataset's split as its card tells; None where it does not, or the hub is out of reach."""
    return _patiently(lambda: _ask_dataset(name, config, split, revision)).rows


def _patiently(ask: Callable[[], Answer]) -> Answer:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Answer(why="HF_HUB_OFFLINE keeps the hub out of use")
    if time.time() - _unreachable_at(constants.ENDPOINT) < MEMORY_SECONDS:
        return Answer(why=f"the hub at {constants.ENDPOINT} was out of reach moments ago")
    answers: list[Answer] = []
    # in a thread, since no timeout of the HTTP client covers the look-up of a host name
    asking = threading.Thread(target=lambda: answers.append(_answered(ask)), daemon=True)
    asking.start()
    asking.join(2 * PATIENCE_SECONDS)
    return answers[0] if answers else _unreachable(constants.ENDPOINT, "no answer")


def _answered(ask: Callable[[], Answer]) -> Answer:
    """What the hub says, or that it has nothing of that name, or why it cannot be heard."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return ask()
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            return Answer(why=f"the hub has no such name or revision, or HF_TOKEN gives no right to it ({status})")
        return _unreachable(constants.ENDPOINT, f"status {status}")
    except (httpx.HTTPError, OSError) as error:
        return _unreachable(constants.ENDPOINT, str(error) or type(error).__name__)


def _ask(name: str, revision: str | None) -> Answer:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, timeout=PATIENCE_SECONDS)
    files = [file.rfilename for file in info.siblings or ()]
    if not any(
        name.endswith(".safetensors") and not any(fnmatch(name, other) for other in ELSEWHERE) for name in files
    ):
        return Answer(why="the hub has no safetensors of it, and pickles are not loaded")
    return Answer(info.sha, parameters=dict(info.safetensors.parameters) if info.safetensors else {})


def _ask_dataset(name: str, config: str | None, split: str, revision: str | None) -> Answer:
    """Of the configuration asked for, without a name the one called default, or the only one."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(name, revision=revision, timeout=PATIENCE_SECONDS)
    told = info.card_data.get("dataset_info") if info.card_data else None
    configs = told if isinstance(told, list) else [told or {}]
    wanted = [item for item in configs if item.get("config_name", "default") == (config or "default")]
    if not wanted and config is None and len(configs) == 1:
        wanted = configs
    rows = [part["num_examples"] for item in wanted for part in item.get("splits", ()) if part.get("name") == split]
    return Answer(info.sha, rows=rows[0] if rows else None)


def download(name: str, revision: str | None) -> Path:
    """The snapshot, in the hub's own cache; a download that broke off is taken up again."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=FILES, ignore_patterns=ELSEWHERE, etag_timeout=PATIENCE_SECONDS
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        why = str(error).partition("\n")[0]
        raise ModelError(f"model {name!r}: the download from the hub broke off ({why}); run again to resume") from error
    return Path(found)


def _memory() -> Path:
    return cache_dir() / "hub-unreachable.json"


def _unreachable_at(endpoint: str) -> float:
    try:
        return float(json.loads(_memory().read_text())[endpoint])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # nothing is remembered, or not of this endpoint


def _unreachable(endpoint: str, why: str) -> Answer:
    try:
        _memory().parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _memory().write_text(json.dumps({endpoint: time.time()}))
    except OSError:
        pass  # a read-only home only costs the next process its own wait
    return Answer(why=f"the hub at {endpoint} cannot be reached ({why})")
