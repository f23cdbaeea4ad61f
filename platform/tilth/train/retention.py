"""Forgetting at work: probes scored, rows replayed, weights pulled back to where they began."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback

from tilth.data.dataset import Dataset
from tilth.data.loading import load_trained
from tilth.data.schema import row_rng
from tilth.storage import Store
from tilth.train.chat import as_trl, assistant_turns
from tilth.train.forgetting import Probe, Replay
from tilth.train.job import Job
from tilth.train.masking import IGNORED

Scores = dict[str, float]
PROBES = "probes.json"


def probe_before(job: Job, model: Any, tokenizer: Any) -> None:
    """Score the model as it comes, unless an earlier attempt at this job did."""
    known = job.out.read_json(PROBES)
    if job.stage.probes and (known is None or known["fingerprint"] != job.fingerprint):
        job.out.write_json(PROBES, {"fingerprint": job.fingerprint, "before": probe_all(job, model, tokenizer)})


def probe_after(job: Job, folder: Path) -> dict[str, dict[str, Scores]]:
    """`probes` with the scores before training and after, of the model that is left in `folder`."""
    if not job.stage.probes:
        return {}
    loaded = load_trained(folder)
    before = (job.out.read_json(PROBES) or {})["before"]
    return {"probes": {"before": before, "after": probe_all(job, loaded.model, loaded.tokenizer)}}


def probe_all(job: Job, model: Any, tokenizer: Any) -> Scores:
    """Every probe's perplexity and share of tokens guessed right, by name; rows are cut at the stage's max_length."""
    found: Scores = {}
    for probe in job.stage.probes:
        perplexity, accuracy = score(model, tokenizer, _rows(job, probe), job.stage.max_length)
        found |= {f"{probe.name} perplexity": perplexity, f"{probe.name} token accuracy": accuracy}
    return found


def score(model: Any, tokenizer: Any, rows: list[dict[str, Any]], max_length: int) -> tuple[float, float]:
    """(perplexity, share of tokens that are the likeliest) over the learnt tokens of `rows`, each row by itself."""
    loss, right, asked = 0.0, 0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for row in rows:
            ids, labels = (torch.tensor(part[:max_length]) for part in _tokens(tokenizer, row))
            found = model(ids[None].to(model.device), use_cache=False).logits[0]
            logits = found[len(found) - len(ids) : -1].float().cpu()  # virtual tokens of an adapter come before
            wanted = labels[1:]
            loss += torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum").item()
            right += int((logits.argmax(-1) == wanted).sum())
            asked += int((wanted != IGNORED).sum())
    model.train(was_training)
    return (math.exp(min(loss / asked, 700.0)), right / asked) if asked else (math.nan, math.nan)


def _rows(job: Job, probe: Probe) -> list[dict[str, Any]]:
    dataset = Dataset.open(Store.at(job.inputs.urls[probe.data])).split(probe.split)
    return list(islice(dataset.rows(), probe.rows))


def _tokens(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """input_ids and labels: a text whole, a completion after its prompt, the assistant's turns of a conversation."""
    if row.get("messages"):
        found = assistant_turns(tokenizer, row["messages"])
        return found["input_ids"], found["labels"]
    if "completion" in row:
        asked = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        return whole, [IGNORED] * len(asked) + whole[len(asked) :]
    ids = tokenizer(row["text"])["input_ids"]
    return ids, ids


def replayed(job: Job, replay: Replay, learnt: int, folder: Path) -> datasets.Dataset:
    """Rows of the replayed split, chosen by their ids, in TRL's forms; ids are "@stage/id"."""
    dataset = Dataset.open(Store.at(job.inputs.urls[replay.data])).split(replay.split)
    rows = dataset.write_to(folder / "replay")
    seed = job.stage.optimisation.seed
    order = sorted(range(len(rows)), key=lambda number: row_rng(seed, rows[number]["id"], "replay").random())
    chosen = rows.select(sorted(order[: replay.rows(learnt, len(rows))]))
    form = as_trl(dataset.row_type, "completion", None)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"{replay.data}/{row['id']}", **form(row)}

    key = f"{job.fingerprint[:32]}-replay"
    return chosen.map(encode, remove_columns=rows.column_names, new_fingerprint=key, desc="Preparing replay")


class PullToInit(TrainerCallback):  # type: ignore[misc]
    """After each step, `weight -= lr * strength * (weight - where it began)`; made before any checkpoint is loaded."""

    def __init__(self, model: Any, strength: float) -> None:
        self.strength = strength
        self.began = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["optimizer"].param_groups[0]["lr"] * self.strength
        model = getattr(kwargs["model"], "module", kwargs["model"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.lerp_(self.began[name].to(parameter.device), rate)
