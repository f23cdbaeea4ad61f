"""Forgetting at work: probes scored, rows replayed, weights pulled back to where they began."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from transformers import TrainerCallback

from tilth.data.batching import in_batches
from tilth.data.dataset import Dataset
from tilth.data.loading import load_trained
from tilth.data.schema import Row, row_rng
from tilth.generate.choosing import Choosing, Said
from tilth.generate.render import joined
from tilth.storage import Store
from tilth.train.chat import as_trl, assistant_turns
from tilth.train.forgetting import Probe, Replay
from tilth.train.job import Job
from tilth.train.masking import IGNORED

Scores = dict[str, float]
#: input_ids and labels of a row
Tokens = tuple[list[int], list[int]]
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
    """What every probe finds, by name; texts are cut at the stage's max_length."""
    asks = Asks(model, tokenizer, job.stage.max_length)
    found: Scores = {}
    for probe in job.stage.probes:
        rows = _rows(job, probe)
        if probe.zero_shot is None:
            perplexity, accuracy = asks.language(rows)
            found |= {f"{probe.name} perplexity": perplexity, f"{probe.name} token accuracy": accuracy}
        else:
            labels = Dataset.open(Store.at(job.inputs.urls[probe.data])).labels()
            found[f"{probe.name} accuracy"] = asks.choices(rows, probe.zero_shot, labels)
    return found


class Seen(NamedTuple):
    """What a model makes of the learnt tokens of a row: their summed loss in nats, and how many were the likeliest."""

    loss: float
    right: int
    tokens: int


@dataclass(frozen=True)
class Asks:
    """A causal language model, asked about rows in batches of at most `size` padded tokens."""

    model: Any
    tokenizer: Any
    max_length: int
    size: int = 1024

    def language(self, rows: list[Row]) -> tuple[float, float]:
        """(perplexity, share of tokens that are the likeliest) over the learnt tokens of `rows`."""
        found = self._seen([_tokens(self.tokenizer, row) for row in rows], slice(self.max_length))
        asked = sum(each.tokens for each in found)
        if not asked:
            return math.nan, math.nan
        loss, right = sum(each.loss for each in found), sum(each.right for each in found)
        return math.exp(min(loss / asked, 700.0)), right / asked

    def choices(self, rows: list[Row], choosing: Choosing, labels: Sequence[str]) -> float:
        """Share of the rows whose right choice is the likeliest; of a text that is too long the beginning goes."""
        offered = [choosing.offered(row, labels) for row in rows]
        parts = [
            _tokens(self.tokenizer, {"prompt": question, "completion": joined(question, choice)[len(question) :]})
            for row, choices in zip(rows, offered, strict=True)
            for question in [choosing.question(row, choices)]
            for choice in choices
        ]
        found = iter(self._seen(parts, slice(-self.max_length, None)))
        said = [[Said(each.loss, each.tokens) for each in islice(found, len(choices))] for choices in offered]
        right = [
            choosing.likeliest(choices, each)[0] == choosing.right(row, choices)
            for row, choices, each in zip(rows, offered, said, strict=True)
        ]
        return sum(right) / len(right)

    def _seen(self, encoded: list[Tokens], kept: slice) -> list[Seen]:
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            parts = [(ids[kept], labels[kept]) for ids, labels in encoded]
            found = in_batches(parts, self._pass, size=self.size, length=lambda part: len(part[0]))
        self.model.train(was_training)
        return found

    def _pass(self, batch: list[Tokens]) -> list[Seen]:
        """One forward pass over rows padded at their right."""
        ids, mask, labels = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(part) for part in parts], True, fill)
            for parts, fill in (
                ([part for part, _ in batch], 0),
                ([[1] * len(part) for part, _ in batch], 0),
                ([part for _, part in batch], IGNORED),
            )
        )
        device = self.model.device
        found = self.model(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        logits = found[:, found.shape[1] - ids.shape[1] : -1].float().cpu()  # virtual tokens of an adapter come before
        wanted = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        ).sum(1)
        right, tokens = (logits.argmax(-1) == wanted).sum(1), (wanted != IGNORED).sum(1)
        return [Seen(*each) for each in zip(losses.tolist(), right.tolist(), tokens.tolist(), strict=True)]


def _rows(job: Job, probe: Probe) -> list[Row]:
    dataset = Dataset.open(Store.at(job.inputs.urls[probe.data])).split(probe.split)
    return list(islice(dataset.rows(), probe.rows))


def _tokens(tokenizer: Any, row: Mapping[str, Any]) -> Tokens:
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
