"""The scores of reward models, batched by tokens: of those that a stage trained, and of others with one output."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import torch

from tilth.data.batching import in_batches
from tilth.data.loading import CARD, MEMBERS, Card, Loaded, load_pretrained, load_tokenizer, load_trained
from tilth.data.positions import positions
from tilth.errors import StageError
from tilth.generate.base import Message
from tilth.generate.judges import transcript


@dataclass(frozen=True)
class Scored:
    """What each member of an ensemble, or the one model, says of an answer; `cut`: its beginning was not read."""

    members: tuple[float, ...]
    cut: bool = False
    #: what each member says on average, as far as it was measured on held-out pairs
    usual: tuple[float, ...] = ()

    @property
    def score(self) -> float:
        """The mean over the members."""
        return round(fmean(self.members), 4)

    @property
    def disagreement(self) -> float:
        """The standard deviation over the members of what they say beyond what they usually do."""
        usual = self.usual or (0.0,) * len(self.members)
        return pstdev(value - mean for value, mean in zip(self.members, usual, strict=True))


class RewardScorer:
    """(prompt, answer) pairs → scores, in order; a prompt is a text or a conversation. One call runs at a time.

    What a stage trained reads prompt and answer as it did there, see `reading`. Others read the conversation through
    their chat template, or where they have none, with a blank line between its turns.
    """

    def __init__(self, folder: Path, batch_tokens: int) -> None:
        self.card = Card.read(folder)
        self.trained = self.card.objective == "reward"
        members = [_loaded(part) for part in (folder, *sorted(folder.glob(f"{MEMBERS}/*")))]
        self.models: list[Any] = [member.model for member in members]
        self.tokenizer: Any = members[0].tokenizer
        self.batch_tokens = batch_tokens
        told = members[0].max_length or self.tokenizer.model_max_length
        self.limit = min(told, positions(self.models[0].config) or told)
        for model in self.models:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        adapters = getattr(self.models[0], "peft_config", {})
        self.tokenizer.padding_side = padding_side(self.models[0], adapters.get("default"))
        self.lock = threading.Lock()

    def __call__(self, pairs: Sequence[tuple[Sequence[Message] | str, str]]) -> list[Scored]:
        texts = [self._text(prompt, answer) for prompt, answer in pairs]
        special = self.trained or not self.tokenizer.chat_template
        with self.lock:
            tokens, cut = encode(self.tokenizer, texts, self.limit, special)
            scores = in_batches(tokens, self._forward, size=self.batch_tokens, length=len)
        found = zip(pairs, scores, cut, strict=True)
        usual = self.card.member_means
        return [Scored(self._corrected(members, answer), short, usual) for (_, answer), members, short in found]

    def _corrected(self, members: Sequence[float], answer: str) -> tuple[float, ...]:
        """Without what the length of the answer explains, where the stage regressed it out."""
        excess = self.card.length_slope * (len(answer) - self.card.length_mean)
        return tuple(value - excess for value in members)

    def _text(self, prompt: Sequence[Message] | str, answer: str) -> str:
        if self.trained:
            return reading(self.tokenizer, prompt if isinstance(prompt, str) else transcript(prompt), answer)
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(dict, prompt)
        turns = [*asked, {"role": "assistant", "content": answer}]
        if self.tokenizer.chat_template:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return "\n\n".join(turn["content"] for turn in turns)

    def _forward(self, tokens: list[list[int]]) -> list[list[float]]:
        """Of each text, what every head of every member says."""
        padded = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.models[0].device)
        with torch.inference_mode():
            logits = torch.cat([model(**padded).logits.float().cpu() for model in self.models], dim=1)
        # float error moves the last decimals with the batch: rounded, an answer is scored alike wherever it stands
        return [[round(value, 4) for value in row] for row in logits.tolist()]


def reading(tokenizer: Any, prompt: str, answer: str) -> str:
    """What a reward model reads: prompt, answer, and the token that ends texts.

    A space goes between prompt and answer where neither has white space there, so that it is the same whether rows
    were stripped or not. A tokenizer that ends texts itself, as BERT's does, needs no token more.
    """
    apart = prompt[-1:].isspace() or answer[:1].isspace() or not prompt
    text = f"{prompt}{answer}" if apart else f"{prompt} {answer}"
    ends_itself = tokenizer.eos_token is None or tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids
    return text if ends_itself else f"{text}{tokenizer.eos_token}"


def encode(
    tokenizer: Any, texts: Sequence[str], limit: int, special: bool = True
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each text, and whether its beginning was left out so that it has no more than `limit`."""
    if not texts:
        return [], []
    found = tokenizer(list(texts), add_special_tokens=special)["input_ids"]
    cut = [len(ids) > limit for ids in found]
    if any(cut):
        tokenizer.truncation_side = "left"
        found = tokenizer(list(texts), add_special_tokens=special, truncation=True, max_length=limit)["input_ids"]
    return found, cut


def padding_side(model: Any, adapter: Any) -> Literal["left", "right"]:
    """Where a batch is padded: left under a learnt prompt, for its head then reads the last place, padding or not.

    `adapter` is PEFT's configuration, or None. An encoder's head reads the first place.
    """
    virtual = getattr(adapter, "is_prompt_learning", False) and adapter.peft_type != "PREFIX_TUNING"
    return "left" if virtual and hasattr(model, "score") else "right"


def _loaded(folder: Path) -> Loaded:
    """A reward model on its device; StageError where a directory holds another kind of model."""
    card = Card.read(folder)
    if card.objective == "reward":
        return load_trained(folder, dtype="float32")
    if (folder / CARD).exists():
        raise StageError(
            f"reward_model: {folder} was trained for {card.objective}; name the model of a stage of kind reward"
        )
    found = load_pretrained(folder, "reward", dtype="float32")
    if found.model.config.num_labels != 1:
        raise StageError(
            f"reward_model: {folder.name} has {found.model.config.num_labels} outputs, a reward model has one; name "
            "another model, or judge by pairwise or aspects"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(found.model.to(device).eval(), load_tokenizer(folder), "reward", ())
