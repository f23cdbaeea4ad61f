"""Magpie: an aligned model, shown nothing but the beginning of a user's turn, writes that turn itself.

<|im_start|>user⏎  →  What is the best way to learn a new language?  →  The best way to learn a language is …
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tilth.data.schema import Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.errors import Problem
from tilth.generate.base import Completion, Generator, Prompt
from tilth.generate.drafts import Draft, asked, user, yields
from tilth.generate.method import MakeFunction, Pool, PoolMethod, Yield, opened
from tilth.generate.render import fault, render

_CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>user\n"
)


class Magpie(PoolMethod):
    """Magpie (Xu et al. 2024, arXiv:2406.08464).

    The model continues its own template up to where a user would speak, and then answers what it wrote, in the
    usual way. `pre_query` is that beginning: a Jinja template over `messages`, written as the chat template of the
    model is; the default is ChatML (Qwen, SmolLM2, Yi). For Llama 3: <|begin_of_text|>{% for turn in messages %}
    <|start_header_id|>{{ turn.role }}<|end_header_id|>⏎⏎{{ turn.content }}<|eot_id|>{% endfor %}
    <|start_header_id|>user<|end_header_id|>⏎⏎ in one line, with stop <|eot_id|>. A server of vLLM (`http`) finds such
    stops with `extra: {skip_special_tokens: false}` alone. The given dataset is not read.
    """

    pre_query: str = Field(_CHATML, min_length=1, description="Template of all before a user's turn, see above.")
    stop: tuple[str, ...] = Field(("<|im_end|>", "<|im_start|>"), description="What ends a user's turn.")
    systems: tuple[str, ...] = Field(
        (), description="System messages that lead to topics, in turn; the answer does not see them."
    )
    row_type: Literal["completion", "chat"] = Field("completion", description="What is made of it.")
    turns: int = Field(1, ge=1, le=16, description="Questions and answers in a conversation; above 1 for chat rows.")
    temperature: float = Field(1.0, ge=0, le=5, description="Of questions; answers are as the generator is set.")
    max_tokens: int = Field(256, ge=1, description="Longest question.")
    min_words: int = Field(3, ge=1, description="Shorter questions are dropped.")

    @property
    def makes(self) -> RowType:
        return self.row_type

    def check(self) -> list[Problem]:
        problems = []
        if self.turns > 1 and self.row_type != "chat":
            problems.append(Problem("turns", "a completion has one question and one answer", "set row_type: chat"))
        if wrong := fault(self.pre_query, ("messages",)):
            problems.append(Problem("pre_query", wrong, "write it over messages, as a chat template"))
        return problems

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        systems = list(self.systems) or [""]
        row_rng(self.seed, str(number), self.via).shuffle(systems)
        return [self.ask(number, index, system=systems[index % len(systems)]) for index in range(wanted)]

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row, {"messages": []}, _led(row)) for row in asks]
            for _ in range(self.turns):
                for draft, answer in asked(ask, drafts, self._wondering):
                    draft.reason = self._unfit(draft, answer)
                    draft.payload["messages"] += user(answer.text.strip())
                for draft, answer in asked(ask, drafts, self._answering):
                    draft.payload["messages"].append({"role": "assistant", "content": answer.text.strip()})
            for draft in drafts:
                draft.payload = draft.payload if self.row_type == "chat" else _completion(draft.payload["messages"])
            return yields(asks, drafts)

        return make

    def _wondering(self, draft: Draft) -> Prompt:
        turns = draft.payload["messages"]
        system = [{"role": "system", "content": draft.ask["meta"]["system"]}] if draft.ask["meta"]["system"] else []
        text = render(self.pre_query, messages=[*system, *turns])
        seed = self.seed_of(draft.ask, f"question.{len(turns)}")
        return Prompt(text, seed, temperature=self.temperature, max_tokens=self.max_tokens, stop=self.stop)

    def _answering(self, draft: Draft) -> Prompt:
        turns = draft.payload["messages"]
        return Prompt(tuple(turns), self.seed_of(draft.ask, f"answer.{len(turns)}"))

    def _unfit(self, draft: Draft, answer: Completion) -> str | None:
        text, count = answer.text.strip(), len(answer.text.split())
        if text in [turn["content"] for turn in draft.payload["messages"]]:
            return "copied: the user says again what was said"
        return f"length: {count} words, fewer than {self.min_words}" if count < self.min_words else None


def _led(ask: Row) -> dict[str, Any]:
    return {"system": ask["meta"]["system"]} if ask["meta"]["system"] else {}


def _completion(turns: list[dict[str, str]]) -> dict[str, str]:
    """The payload of a completion; what there is of it where the conversation broke off."""
    return {name: turn["content"] for name, turn in zip(("prompt", "completion"), turns, strict=False)}
