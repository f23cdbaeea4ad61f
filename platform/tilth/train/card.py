"""The model card that lies beside the weights, README.md: what was trained, on which rows, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tilth import yaml12

if TYPE_CHECKING:
    from tilth.config import Component
    from tilth.data.dataset import Dataset
    from tilth.runs import Artifact

README = "README.md"


def model_card(made: Artifact, stage: Component, lineage: Mapping[str, int], library: str) -> str:
    """Markdown with the front matter of the hub; `lineage` are rows by what made them, `library` what loads it."""
    detail = made.detail
    parts = [
        *_front(detail["base"], library),
        f"# {made.stage}",
        f"{_kind(detail)}, trained by Tilth's stage `{made.kind}` from `{detail['base']}`. "
        f"Fingerprint `{made.fingerprint[:16]}`.",
        "## Metrics",
        *_table(("metric", "value"), made.metrics),
        "## Rows",
        *_table(("made by", "rows"), lineage),
        "## Recipe",
        f"```yaml\n{yaml12.dump(stage.model_dump()).strip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def lineage(dataset: Dataset, split: str) -> dict[str, int]:
    """Rows of a split by what made them; `original` were there from the start."""
    found: Counter[str] = Counter()
    for table in dataset.split(split).tables(["via"]):
        found.update(via or "original" for via in table["via"].to_pylist())
    return dict(found.most_common())


def _front(base: str, library: str) -> Iterator[str]:
    # a path or the URI of another stage is no model that the hub knows
    known = [] if "://" in base or base.startswith(("/", ".")) else [f"base_model: {base}"]
    yield "\n".join(["---", f"library_name: {library}", *known, "tags: [tilth]", "---"])


def _kind(detail: Mapping[str, Any]) -> str:
    what = str(detail["objective"]).replace("_", " ")
    return f"An adapter ({detail['peft']}) for {what}" if detail["peft"] else f"All weights for {what}"


def _table(head: tuple[str, str], cells: Mapping[str, Any]) -> Iterator[str]:
    rows = [f"| {name} | {_number(value)} |" for name, value in cells.items() if value is not None]
    yield "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *rows]) if rows else "None."


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
