"""How many tokens a model has positions for, told from its config."""

from __future__ import annotations

from typing import Any

# these number positions from the padding token's number plus one, so that of RoBERTa's 514 there are 512 for tokens
_FROM_PADDING = frozenset(
    {
        "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert",
        "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm",
        "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip


def positions(config: Any) -> int | None:
    """Tokens that fit a model; None where its config names no limit, as of models with relative positions."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known: int = getattr(text, "max_position_embeddings", None) or 0
    fit = known - _before(text)
    return fit if fit > 0 else None


def readable(config: Any, tokenizer: Any, trained: int | None, most: int | None = None) -> int:
    """Tokens that are read at a time: as many as it was `trained` on and has positions for, and `most` at most."""
    known = [size for size in (trained, positions(config)) if size] or [tokenizer.model_max_length]
    return int(min([*known, most] if most else known))


def _before(config: Any) -> int:
    """Positions that no token has."""
    kind = getattr(config, "model_type", "")
    # ESM with rotary positions has no table of them
    if kind not in _FROM_PADDING or getattr(config, "position_embedding_type", "absolute") == "rotary":
        return 0
    # MPNet has its padding built in
    return 2 if kind == "mpnet" else int(config.pad_token_id or 0) + 1
