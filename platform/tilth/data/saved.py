"""Datasets that `save_to_disk` wrote, as far as their small files tell: no library is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilth.errors import Problem
from tilth.paths import no_match


def split_folder(folder: Path, split: str) -> Path:
    """Where the rows of a split lie; a dataset without splits is one itself."""
    return folder / split if (folder / "dataset_dict.json").is_file() else folder


def features(folder: Path) -> list[str] | None:
    """The columns of the dataset in `folder`."""
    return list(_json(folder / "dataset_info.json").get("features") or {}) or None


def unsaved(path: str, split: str) -> Problem | None:
    """Why a directory is no saved dataset with that split."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return Problem("path", no_match(path), "check the path")
    splits = _json(folder / "dataset_dict.json").get("splits", [split])
    if split not in splits:
        return Problem("subset", f"the dataset has no split {split!r}", f"there are: {', '.join(splits)}")
    if not (split_folder(folder, split) / "state.json").is_file():
        mend = "name a directory that save_to_disk wrote; for plain files use jsonl, csv or parquet"
        return Problem("path", f"{path!r} holds no saved dataset", mend)
    return None


def _json(file: Path) -> dict[str, Any]:
    """The mapping in a small file that `datasets` wrote; empty where there is none or it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
