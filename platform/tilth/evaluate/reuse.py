"""What models said is said once: an evaluation that only measures otherwise takes over what an earlier one was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilth.config import digest
from tilth.data.dataset import Dataset
from tilth.data.finish import finished
from tilth.storage import Store

if TYPE_CHECKING:
    from tilth.runs import Out

#: beside the predictions of a model: what they depend on
KEY = "said.json"


def said_key(out: Out, name: str, asks: object) -> str:
    """The identity of what one model says: rows, model and how it is asked, but nothing of how that is measured.

    `asks` is the version of how a stage asks models, with what it asks for besides.
    """
    parts = out.identity
    task: dict[str, Any] = {k: v for k, v in parts.get("task", {}).items() if k not in ("metrics", "generators")}
    model = parts.get("models", {}).get(name) or parts.get("task", {}).get("generators", {}).get(name)
    return digest([parts.get("data"), parts.get("split"), parts.get("dtype"), asks, task, model])


def earlier(out: Out, name: str, wanted: str) -> Dataset | None:
    """Predictions of every row with the identity `wanted`, as another version of this stage left them; else None.

    What is decided at first is written down, so that a resumed run goes on as it began.
    """
    home, _, own = out.store.url.rpartition("/")
    store = out.store.sub(f"predictions/{name}")
    told = store.read_json(KEY)
    if told is None:
        told = {"key": wanted, "from": _version(Store.at(home), own, name, wanted)}
        store.write_json(KEY, told)
    return _whole(Store.at(home).sub(f"{told['from']}/predictions/{name}")) if told["from"] else None


def key_of(predictions: Store) -> Any:
    """The identity of finished predictions."""
    return (predictions.read_json(KEY) or {}).get("key")


def _version(home: Store, own: str, name: str, wanted: str) -> str | None:
    for version in home.list():
        store = home.sub(f"{version}/predictions/{name}")
        told = store.read_json(KEY) if version != own else None
        if told is not None and told["key"] == wanted and _whole(store) is not None:
            return version
    return None


def _whole(store: Store) -> Dataset | None:
    """Finished predictions of every row: where some failed, taking over the others would leave those out unseen."""
    dataset = finished(store)
    return None if dataset is None or dataset.rejected else dataset
