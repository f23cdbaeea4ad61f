"""Self-Instruct: instructions bootstrapped from a few written by people.

Come up with a series of tasks: 1. … 8. Suggest a better word for "good".  →  9. Explain why the sky is blue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.errors import Problem
from tilth.generate.base import Answer, Completion, Generator, Message, Prompt
from tilth.generate.base import Generate as Ask
from tilth.generate.drafts import instruction_of, user
from tilth.generate.method import Made, MakeFunction, Pool, PoolMethod, Yield, opened, why_not
from tilth.generate.shape import Shape

_NUMBERED = re.compile(r"^\s*(?:Task\s*)?(\d{1,3})\s*[.:)]\s*", re.MULTILINE)
# what a text model cannot do, and how such tasks begin: the paper's list
_UNFIT = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b", re.IGNORECASE
)
_KIND = Shape(choices=("classification", "generation"))
_NOT_ASKED = Answer((Completion("generation", value="generation"),))
_TEXT = {"type": "string"}


def _example(*order: str) -> Shape:
    fields = {"properties": dict.fromkeys(order, _TEXT), "required": order, "additionalProperties": False}
    return Shape(json.dumps({"type": "object", **fields}))


_INPUT_FIRST, _OUTPUT_FIRST = _example("input", "output"), _example("output", "input")


class SelfInstruct(PoolMethod):
    """Self-Instruct (Wang et al. 2023, arXiv:2212.10560).

    Each round shows the model `demonstrations` instructions, a few of them its own, and lets it go on with new ones.
    Each new instruction is told apart as classification or not, and answered: for classification the label is
    chosen first and an input for it written (output-first), else the answer follows the instruction (input-first).
    One that the model does not tell apart is quarantined.
    Put a gate `novelty` among the steps: the paper keeps what has ROUGE-L below 0.7 with everything in the pool.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("completion", "text")
    version: ClassVar[int] = 2  # what was not told apart as classification or generation is no generation

    demonstrations: int = Field(8, ge=2, le=32, description="Instructions shown for each ask.")
    own: int = Field(2, ge=0, description="How many of them are the model's own, once there are some.")
    per_ask: int = Field(4, ge=1, le=20, description="New instructions that one ask is expected to give.")
    answers: Literal["yes", "no"] = Field("yes", description="no: instructions alone, with an empty completion.")
    classification: Literal["auto", "never"] = Field("auto", description="never: all are answered input-first.")
    min_words: int = Field(3, ge=1, description="Shorter instructions are dropped.")
    max_words: int = Field(150, ge=1, description="Longer instructions are dropped.")

    def check(self) -> list[Problem]:
        if self.own < self.demonstrations and self.min_words <= self.max_words:
            return []
        return [Problem("own", "must be below demonstrations, and min_words not above max_words", "mend either")]

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        seeds = [_instruction(row) for row in pool.seeds]
        own = [row["meta"]["instruction"] for row in pool.accepted]
        return [self._asked(number, index, seeds, own) for index in range(-(-wanted // self.per_ask))]

    def _asked(self, number: int, index: int, seeds: Sequence[str], own: Sequence[str]) -> Row:
        rng = row_rng(self.seed, f"{number}.{index}", self.via)
        mine = rng.sample(own, min(self.own, len(own)))
        shown = [*rng.sample(seeds, min(self.demonstrations - len(mine), len(seeds))), *mine]
        rng.shuffle(shown)
        return self.ask(number, index, demonstrations=shown)

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            answers = ask([Prompt(self._request(row), self.seed_of(row)) for row in asks])
            found = [self._instructions(row, answer) for row, answer in zip(asks, answers, strict=True)]
            if self.answers == "no":
                return [Yield(made, [answer]) for made, answer in zip(found, answers, strict=True)]
            return self._answered(ask, asks, answers, found)

        return make

    def _request(self, ask: Row) -> tuple[Message, ...]:
        shown = ask["meta"]["demonstrations"]
        lines = "\n".join(f"{number}. {text}" for number, text in enumerate(shown, 1))
        first, last = len(shown) + 1, len(shown) + self.per_ask
        text = (
            "Here is a list of diverse tasks for a text assistant, each one complete in itself:\n"
            f"{lines}\nContinue the list with tasks {first} to {last}, unlike those above. Write only the list."
        )
        return user(text)

    def _instructions(self, ask: Row, answer: Answer) -> list[Made]:
        """The numbered items of the answer; the last one is dropped where the text was cut off."""
        if answer.failure is not None:
            return [Made({}, why_not(answer))]
        items = split_list(answer.first)
        shown = set(ask["meta"]["demonstrations"])
        return [
            Made({"prompt": text, "completion": ""}, self._unfit(text, whole, shown), {"instruction": text})
            for text, whole in items
        ]

    def _unfit(self, text: str, whole: bool, shown: set[str]) -> str | None:
        count = len(text.split())
        if not whole:
            return "truncated: the list was cut off in this item"
        if not self.min_words <= count <= self.max_words:
            return f"length: {count} words, not {self.min_words} to {self.max_words}"
        if text in shown:
            return "copied: one of the tasks that were shown"
        if unfit := _UNFIT.search(text):
            return f"unfit: asks for {unfit.group().lower()}, which text is not"
        return None if text[0].isalnum() or text[0] in "\"'“" else "unfit: begins with a sign"

    def _answered(self, ask: Ask, asks: list[Row], asked: list[Answer], found: list[list[Made]]) -> list[Yield]:
        """The instructions that are fit, each told apart and answered; all of a unit in two calls."""
        fit = [(at, n) for at, made in enumerate(found) for n, item in enumerate(made) if item.reason is None]
        tasks = [(found[at][n].payload["prompt"], self.seed_of(asks[at], f"answer.{n}")) for at, n in fit]
        kinds = ask([_kind_of(*task) for task in tasks]) if self.classification == "auto" else [_NOT_ASKED] * len(tasks)
        whys = [why_not(kind) for kind in kinds]
        told = [(*task, _is_label(kind)) for task, kind, why in zip(tasks, kinds, whys, strict=True) if why is None]
        given = iter(ask([_example_of(*task) for task in told]))
        costs = [[answer] for answer in asked]
        for (at, n), kind, why in zip(fit, kinds, whys, strict=True):
            costs[at].append(kind)
            if why is not None:
                found[at][n] = replace(found[at][n], reason=why)
                continue
            costs[at].append(answer := next(given))
            found[at][n] = _with_example(found[at][n], answer, _is_label(kind))
        return [Yield(made, cost) for made, cost in zip(found, costs, strict=True)]


def split_list(completion: Completion) -> list[tuple[str, bool]]:
    """The items of a numbered list, each with whether it is whole; a text without numbers is one item."""
    parts = _NUMBERED.split(f"\n{completion.text}")
    items = [" ".join(text.split()) for text in parts[2::2]] or [" ".join(completion.text.split())]
    cut_off = completion.finish != "stop"
    return [(text, not (cut_off and at == len(items) - 1)) for at, text in enumerate(items) if text]


def _instruction(row: Row) -> str:
    """A seed's instruction in one line, as a list shows it."""
    return " ".join(instruction_of(row).split())


def _kind_of(instruction: str, seed: int) -> Prompt:
    text = (
        "Does this task ask to choose one of a few fixed labels, or to write freely? Answer with one word, "
        f"classification or generation.\nTask: {instruction}"
    )
    return Prompt(user(text), seed, shape=_KIND, temperature=0)


def _is_label(kind: Answer) -> bool:
    return bool(kind.first.value == "classification")


def _example_of(instruction: str, seed: int, first: bool) -> Prompt:
    """Asks for an example of the task; for classification the label is written `first`, then an input for it."""
    how = (
        "Choose one of its possible labels as output, then write an input to which that label belongs."
        if first
        else "Write an input if the task needs one, else leave it empty; then write the right output."
    )
    text = f"Make one example of this task, as JSON. {how}\nTask: {instruction}"
    return Prompt(user(text), seed, shape=_OUTPUT_FIRST if first else _INPUT_FIRST)


def _with_example(made: Made, answer: Answer, is_label: bool) -> Made:
    """The instruction and its input as prompt, the output as completion."""
    meta = {**made.meta, "classification": is_label}
    value = answer.first.value
    if value is None:
        return Made(made.payload, why_not(answer), meta)
    given, output = value["input"].strip(), value["output"].strip()
    instruction = made.payload["prompt"]
    prompt = f"{instruction}\n\n{given}" if given and given not in instruction else instruction
    reason = None if output else "empty: the answer says nothing"
    if reason is None and output == given:
        reason = "copied: the answer repeats its input"
    return Made({"prompt": prompt, "completion": output}, reason, meta)
