"""Models by name: a local directory, a hub name, or where the hub is out of reach a package that carries the model.

    folder = resolve("HuggingFaceTB/SmolLM2-135M-Instruct")     # loads with transformers, offline
    identity("HuggingFaceTB/SmolLM2-135M-Instruct")             # the same on every machine that has this content

A hub name is looked for in the hub's cache, in ours, on the hub, and last in `tilth.carriers`. Which of them it was
shows in the identity, so that a run never takes the one for the other.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tilth import carriers, hub
from tilth.content import cache_dir, file_hash
from tilth.errors import ModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# of a local directory, what decides what the model says
_DECISIVE = (".safetensors", ".gguf", ".json", ".txt", ".model", ".spm", ".jinja")
_INCIDENTAL = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}


def resolve(model: str, revision: str | None = None) -> Path:
    """The local directory of a model, fetched if need be. ModelError when there is none to be had."""
    if (folder := at_hand(model, revision)) is not None:
        return folder
    answer = hub.ask(model, revision)
    if answer.commit is not None:
        return _whole(hub.download(model, revision), model)
    if _carried(model, revision):
        return carriers.fetch(model)
    raise _unknown(model, revision, answer.why)


def planned(model: str, known: str) -> Path:
    """The local directory of a model in the state whose identity a plan or an adapter took.

    ModelError where that state is not to be had.
    """
    if _carried(model, None) and known == _packaged(model):
        return carriers.fetch(model)
    at, pin = known[: len(model) + 1], known[len(model) + 1 :]
    commit = pin if at == f"{model}@" else None
    folder = resolve(model, commit)
    if (found := identity(model, commit)) != known:
        raise ModelError(
            f"model {model!r}: it was {known} when it was planned or trained with, and is {found} here and now; "
            "bring that one back, or run again (an adapter: train again) with this one"
        )
    if commit is not None:
        hub.keep(model, commit)
    return folder


def identity(model: str, revision: str | None = None) -> str:
    """What a fingerprint takes for a model: its content's hash, or its name at a commit or pin. Never a path.

    It fetches nothing, yet is the one that holds after `resolve`.
    """
    if (folder := _directory(model)) is not None:
        return _content(folder)
    if (folder := hub.cached(model, revision)) is not None:
        return f"{model}@{folder.name}"
    if not _carried(model, revision) or carriers.present(model) is None:
        answer = hub.ask(model, revision)
        if answer.commit is not None:
            return f"{model}@{answer.commit}"
        if not _carried(model, revision):
            raise _unknown(model, revision, answer.why)
    return _packaged(model)


def _packaged(model: str) -> str:
    return f"{model}@package-{carriers.MODELS[model].pin}"


def wordnet_dir() -> Path:
    """A directory of NLTK data with WordNet 3.0, fetched if need be and put on NLTK's search path.

    After this call `from nltk.corpus import wordnet` works offline.
    """
    import nltk

    root = cache_dir() / "nltk_data"
    carriers.WORDNET.at(root / "corpora" / "wordnet", "WordNet 3.0")
    if str(root) not in nltk.data.path:
        nltk.data.path.insert(0, str(root))
    return root


def _directory(model: str) -> Path | None:
    """The directory that a reference names; None if it is a hub name."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _whole(folder, model)
    if _HUB_NAME.fullmatch(model):
        return None
    raise ModelError(
        f"model {model!r}: no such directory (looked from {Path.cwd()}), and it has not the form of a hub name, "
        "owner/name; correct it to one of the two"
    )


def _whole(folder: Path, model: str) -> Path:
    missing = hub.lacks(folder)
    if missing is None:
        return folder
    pickled = any(folder.glob("*.bin"))
    mend = "save the pickled weights as safetensors (save_pretrained does)" if pickled else "give a whole directory"
    raise ModelError(f"model {model!r}: a model directory needs a config and safetensors; it lacks {missing}; {mend}")


def at_hand(model: str, revision: str | None = None) -> Path | None:
    """A directory, or what an earlier process fetched; None where there is neither. No network."""
    if (folder := _directory(model)) is not None:
        return folder
    if (folder := hub.cached(model, revision)) is not None:
        return folder
    return carriers.present(model) if _carried(model, revision) else None


def _carried(model: str, revision: str | None) -> bool:
    """A package holds one state of a model, which is no revision of the hub's: asked for one, it does not serve."""
    return revision is None and model in carriers.MODELS


def _unknown(model: str, revision: str | None, why: str) -> ModelError:
    close = difflib.get_close_matches(model, carriers.MODELS, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}? " if close and close[0] != model else ""
    at = "" if revision is None else f" at revision {revision!r}"
    if revision is not None and model in carriers.MODELS:
        guess = f"without revision {revision!r} it comes from a package; "
    return ModelError(
        f"model {model!r}{at}: it is not in the caches of this machine, and {why}. {guess}"
        f"Give a local directory, set HF_ENDPOINT to a mirror within reach, or take one that packages carry: "
        f"{', '.join(carriers.MODELS)}"
    )


def _content(folder: Path) -> str:
    """One hash over the names and contents of the files that decide what the model says; an adapter's base counts."""
    files = [path for pattern in ("*", "[0-9]_*/config.json") for path in folder.glob(pattern)]
    parts = [
        f"{path.relative_to(folder).as_posix()} {file_hash(path)}"
        for path in sorted(files)
        if path.is_file() and path.name.endswith(_DECISIVE) and path.name not in _INCIDENTAL
    ]
    if (below := _below(folder)) is not None:
        parts.append(f"base {identity(below)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _below(folder: Path) -> str | None:
    """The model that an adapter stands on, where the adapter's own files do not say in which state."""
    card = _read(folder / "tilth.json")
    if card.get("base_identity") or "://" in card.get("base", ""):
        return None  # the URI of a stage's model holds its fingerprint
    return card.get("base") or _read(folder / "adapter_config.json").get("base_model_name_or_path")


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
