"""What adapters need around a Trainer: a learnt prompt that can be resumed, and PiSSA saved as a plain adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LEARNT = "learnt.safetensors"
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"

Tensors = dict[str, torch.Tensor]


def learns_prompt(model: Any) -> bool:
    """Whether the model has an adapter of virtual tokens."""
    settings = getattr(model, "peft_config", None) or {}
    return any(getattr(config, "is_prompt_learning", False) for config in settings.values())


def virtual_tokens(config: Any) -> int:
    """How many tokens PEFT puts before those of a text; a prefix lies in the cache instead and adds none."""
    prompts = getattr(config, "is_prompt_learning", False) and config.peft_type != "PREFIX_TUNING"
    return int(config.num_virtual_tokens) if prompts else 0


def save_learnt(model: Any, folder: Path) -> None:
    """Write all trainable weights: PEFT keeps of a prompt what it says, not the network that is still learning it."""
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(weights, folder / LEARNT)


def load_learnt(model: Any, folder: Path) -> bool:
    """Put back what `save_learnt` wrote; False where it wrote nothing."""
    if not (folder / LEARNT).is_file():
        return False
    model.load_state_dict(load_file(folder / LEARNT), strict=False)
    return True


def factors(model: Any) -> Tensors:
    """Copies of the low-rank factors, by their names in PEFT's files."""
    return {
        name.replace(".default.", "."): p.detach().clone().cpu()
        for name, p in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def plain_lora(folder: Path, start: Tensors) -> None:
    """Rewrite a PiSSA adapter, whose base has lost its principal part, as a plain one of twice the rank.

    (W - B₀A₀) + BA = W + [B, B₀][A, -A₀]: it stands on the model as it was, anywhere that LoRA is known.
    """
    weights = load_file(folder / _WEIGHTS)
    for name, before in start.items():
        now, before = weights[name], before.to(weights[name].dtype)
        weights[name] = torch.cat([now, -before] if ".lora_A." in name else [now, before], int(".lora_B." in name))
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    # of two ranks the scale alpha / rank stays, and with the root of the rank it grows by the root of two
    grown = 2**0.5 if settings["use_rslora"] else 2
    settings |= {
        "init_lora_weights": True,
        "r": 2 * settings["r"],
        "lora_alpha": grown * settings["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in settings["rank_pattern"].items()},
        "alpha_pattern": {name: grown * alpha for name, alpha in settings["alpha_pattern"].items()},
    }
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
