"""Preferences that people gave elsewhere, as preference rows: UltraFeedback, exports of Argilla and Label Studio.

HH-RLHF needs none of these: its pairs are read by `jsonl` or `hf` with `implicit_prompt: true`; and of binarised
UltraFeedback the texts are `columns: {chosen: chosen.1.content, rejected: rejected.1.content}`.

A record that people do not decide has the same text on both sides, and is dropped by name as `no_preference`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.data.files import opened
from tilth.data.source import Files, Piece

if TYPE_CHECKING:
    from tilth.data.readers import Item

TIE = "tie"


class Collected(Files):
    """Base of the exports: a JSON array or JSON Lines of records that each hold texts and what people said of them."""

    version: ClassVar[int] = 2  # what is wrong with a file or a record is quarantined under its own name

    def pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Prompt, chosen, rejected and votes of one record; LookupError or ValueError where it holds none."""
        raise TypeError(f"{type(self).__name__} must define pair()")

    def peek(self) -> list[str] | None:
        return ["id", "prompt", "chosen", "rejected", "votes"]

    def records(self, piece: Piece) -> Iterator[Item]:
        from tilth.data.readers import Bad, Record, excerpt

        for item in self._parsed(piece.file):
            if isinstance(item, Bad):
                yield item
                continue
            try:
                yield Record(item.line, {"id": str(item.value.get("id", item.line)), **self.pair(item.value)})
            except (LookupError, ValueError, TypeError, AttributeError) as error:
                text = json.dumps(item.value, ensure_ascii=False).encode("utf-8", "replace")
                yield Bad(item.line, f"no_pair: {error}", excerpt(text))

    def _parsed(self, file: str) -> Iterator[Item]:
        """The objects of a file: items of the one array that it is, else its lines."""
        from tilth.data.arrays import is_array, read_array
        from tilth.data.readers import decompressed, read_jsonl

        with opened(file) as handle:
            read = read_array if is_array(decompressed(handle, file)) else read_jsonl
        with opened(file) as handle:
            yield from read(decompressed(handle, file), self.max_record_bytes)


def _decided(prompt: str, texts: Mapping[str, str], votes: Sequence[str]) -> dict[str, Any]:
    """The text that most votes name before the other; with as many votes for both it is a tie."""
    if not votes:
        raise ValueError("nobody answered it")
    if unknown := [vote for vote in votes if vote not in (*texts, TIE)]:
        raise ValueError(f"the answer {unknown[0]!r} is none of {', '.join(texts)}")
    counts = Counter(votes)
    first, second = sorted(texts, key=lambda name: -counts[name])
    tied = counts[first] == counts[second]
    return {
        "prompt": prompt, "chosen": texts[first], "rejected": texts[first if tied else second],
        "votes": {name: counts[name] for name in (*texts, TIE)},
    }  # fmt: skip


class LabelStudio(Collected):
    """An export of Label Studio (JSON) whose people chose one of two texts, with a Pairwise or a Choices tag."""

    prompt: str = Field("prompt", description="Key of the task's data with what was asked.")
    left: str = Field("text1", description="Key of the task's data with the left text.")
    right: str = Field("text2", description="Key of the task's data with the right text.")
    tag: str | None = Field(None, description="Name of the tag, where a task has several.")
    choices: dict[str, str] = Field(
        {"left": "left", "right": "right"}, description="What a choice means: left, right or tie; others are faults."
    )

    def pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        data = record["data"]
        texts = {"left": data[self.left], "right": data[self.right]}
        done = [item for item in record["annotations"] if not item.get("was_cancelled")]
        votes = [vote for item in done for result in item["result"] for vote in self._votes(result)]
        return _decided(data[self.prompt], texts, votes)

    def _votes(self, result: Mapping[str, Any]) -> list[str]:
        if self.tag not in (None, result.get("from_name")):
            return []
        value = result["value"]
        said = {"pairwise": value.get("selected"), "choices": next(iter(value.get("choices", ())), None)}
        given = said.get(result.get("type", ""))
        return [] if given is None else [self.choices.get(given, str(given))]


class Argilla(Collected):
    """An export of Argilla 2 (`records.to_json`): a question whose answer names one of two fields, or ranks them."""

    prompt: str = Field("prompt", description="Field with what was asked.")
    texts: tuple[str, str] = Field(("response1", "response2"), description="Fields with the two answers.")
    question: str = Field("preference", description="The question that people answered.")
    values: dict[str, str] = Field(default_factory=dict, description="What an answer means: one of texts, or tie.")

    def pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        fields = record["fields"]
        answers = [response["value"] for response in record["responses"].get(self.question, ())]
        votes = [self._first(answer) if isinstance(answer, list) else str(answer) for answer in answers]
        named = [self.values.get(vote, vote) for vote in votes]
        return _decided(fields[self.prompt], {name: fields[name] for name in self.texts}, named)

    def _first(self, ranking: Sequence[Mapping[str, Any]]) -> str:
        """The best of a ranking; a tie where both have its rank."""
        ranks = {item["value"]: item["rank"] for item in ranking}
        best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
        return str(best[0]) if len(best) == 1 else TIE


class UltraFeedback(Collected):
    """UltraFeedback as it was published (Cui et al. 2024, arXiv:2310.01377): the best and the worst of four answers."""

    aspect: str | None = Field(None, description="Aspect whose Rating decides, such as helpfulness; none: their mean.")

    def pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        rated = [(self._rating(item), item["response"]) for item in record["completions"]]
        if len(rated) < 2:
            raise ValueError(f"it has {len(rated)} completions where a pair needs two")
        best, worst = max(rated, key=lambda item: item[0]), min(rated, key=lambda item: item[0])
        rejected = best[1] if best[0] == worst[0] else worst[1]
        votes = {"chosen": best[0], "rejected": worst[0]}
        return {"prompt": record["instruction"], "chosen": best[1], "rejected": rejected, "votes": votes}

    def _rating(self, completion: Mapping[str, Any]) -> float:
        aspects = completion["annotations"]
        named = [aspects[self.aspect]] if self.aspect else list(aspects.values())
        ratings = [float(item["Rating"]) for item in named if str(item["Rating"]) != "N/A"]
        if not ratings:
            raise ValueError("a completion has no rating")
        return sum(ratings) / len(ratings)
