"""What a model directory holds: all weights, or an adapter and the model that it stands on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilth import models
from tilth.content import cache_dir, file_hash
from tilth.data.loading import UNMERGEABLE, Card, adapted, base_folder, load_pretrained, load_tokenizer, load_whole
from tilth.errors import ModelError

ADAPTER = "adapter_config.json"
# what is more than a pair of matrices of one rank and one scale for every module: no vLLM serves all of it, and 0.29
# takes some of it for plain without a word
_BEYOND = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices",
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
)  # fmt: skip
# how a plain adapter may have begun; the other ways (pissa, olora, …) change the base that it stands on
_BEGINNINGS = ("true", "false", "gaussian", "eva", "orthogonal", "mica", "lora_ga")


@dataclass(frozen=True)
class Weights:
    """A directory with all weights of a language model, an adapter on it or none, and its tokenizer's home."""

    base: Path
    adapter: Path | None
    tokenizer: Path
    #: language_model, or seq2seq: an encoder reads what its decoder answers
    objective: str = "language_model"

    @staticmethod
    def at(folder: Path) -> Weights:
        """What `folder` holds; ModelError where it is no language model or its base is not to be had."""
        card = Card.read(folder)
        if card.objective not in ("language_model", "seq2seq"):
            raise ModelError(f"{folder} was trained for {card.objective}; a generator needs a language model")
        if not (folder / ADAPTER).is_file():
            return Weights(folder, None, folder, card.objective)
        base = base_folder(card) if card.base else models.resolve(_settings(folder)["base_model_name_or_path"])
        own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return Weights(base, folder, folder if own else base, card.objective)

    @property
    def settings(self) -> dict[str, Any]:
        """PEFT's configuration of the adapter; empty where there is none."""
        return {} if self.adapter is None else _settings(self.adapter)

    @property
    def rank(self) -> int:
        """Rank of a plain LoRA adapter, one for all modules; 0 where there is no adapter or one of another kind."""
        rank: int = self.settings["r"] if _plain(self.settings) else 0
        return rank

    def load(self, device: str, dtype: str) -> tuple[Any, Any]:
        """The model in evaluation mode, its adapter beside its weights, and the tokenizer."""
        import transformers

        transformers.logging.disable_progress_bar()
        if self.adapter is None:
            model = load_whole(self.base, self.objective, dtype=dtype)
        else:  # which may hold what its base lacks
            model = adapted(load_pretrained(self.base, self.objective, dtype=dtype).model, self.adapter)
        return model.to(device).eval(), load_tokenizer(self.tokenizer)

    def whole(self, dtype: str = "auto") -> Path:
        """A directory with all weights in one: an adapter, of whatever kind, is merged and kept in the cache.

        `dtype` is the number format that it is merged in; auto: that of its base.
        """
        return self.base if self.adapter is None else _merged(self.adapter, dtype)

    def servable(self) -> tuple[Path, Path | None]:
        """For an engine that knows full weights and plain LoRA: a directory of the former, an adapter or None.

        Whatever else there is (an adapter on an adapter, DoRA, patterns of ranks, IA3) is merged, once, and kept in
        the cache.
        """
        if self.adapter is None:
            return self.base, None
        if not self.rank:
            return _merged(self.adapter), None
        return (_merged(self.base) if (self.base / ADAPTER).is_file() else self.base), self.adapter


def _plain(settings: dict[str, Any]) -> bool:
    return (
        settings.get("peft_type") == "LORA"
        and settings.get("bias", "none") == "none"
        and str(settings.get("init_lora_weights", True)).lower() in _BEGINNINGS
        and not any(settings.get(name) for name in _BEYOND)
    )


def _merged(folder: Path, dtype: str = "auto") -> Path:
    """A directory with the adapter in `folder` merged into what it stands on; cached by content and number format."""
    from tilth.packages import install

    weights = Weights.at(folder)
    kind = weights.settings["peft_type"].lower()
    if kind in UNMERGEABLE:
        what = kind.replace("_", " ")
        raise ModelError(f"{folder}: {what} is no change of weights, so vLLM cannot load it; use `kind: hf` for it")
    if weights.settings.get("layer_replication"):
        # the copies share their weights, and PEFT would merge what belongs to one into all
        raise ModelError(f"{folder}: layers that are replicated cannot be merged for vLLM; use `kind: hf` for it")
    own = [file_hash(file) for file in sorted(folder.glob("adapter_*")) if file.is_file()]
    parts = [models.identity(str(weights.base)), *own, *([] if dtype == "auto" else [dtype])]
    pin = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def make(new: Path) -> None:
        below = load_pretrained(weights.base, weights.objective, dtype=dtype).model
        beside = adapted(below, folder)
        try:
            whole = beside.merge_and_unload()
        except (ValueError, RuntimeError) as error:  # PEFT says in both that there is no such merge
            raise ModelError(f"{folder} cannot be merged for vLLM: {error}; use `kind: hf` for it") from error
        whole.save_pretrained(new)
        load_tokenizer(weights.tokenizer).save_pretrained(new)

    return install(cache_dir() / "merged" / pin, pin, make)


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    return found
