"""Evol-Instruct: instructions made harder, or other, step by step.

Name three rivers of Europe.  →  Name three rivers of Europe that cross at least four countries, from north to south.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.generate.base import Completion, Generator, Prompt
from tilth.generate.drafts import Draft, asked, instruction_of, user, yields
from tilth.generate.method import MakeFunction, Pool, PoolMethod, Yield, opened
from tilth.generate.shape import Shape

Operation = Literal["constraints", "deepen", "concretise", "reasoning", "complicate_input", "breadth"]

_IN_DEPTH: dict[str, str] = {
    "constraints": "Please add one more constraint or requirement into #Given Prompt#.",
    "deepen": "If #Given Prompt# contains inquiries about certain issues, increase the depth and breadth of the "
    "inquiry.",
    "concretise": "Please replace general concepts in #Given Prompt# with more specific concepts.",
    "reasoning": "If #Given Prompt# can be solved with just a few simple thinking processes, rewrite it to explicitly "
    "request multiple-step reasoning.",
    "complicate_input": "You must add input data to #Rewritten Prompt#, such as a table, JSON, code or a formula, "
    "which has to be worked on.",
}
_DEPTH = """\
I want you to act as a Prompt Rewriter. Your objective is to rewrite a given prompt into a more complex version, to \
make it a bit harder to handle for an AI system. But the rewritten prompt must be reasonable and must be understood \
and answered by humans. Do not omit the input, tables or code in #Given Prompt#.
You SHOULD complicate the given prompt using the following method: {method}
Try not to make #Rewritten Prompt# verbose: it can only add 10 to 20 words to #Given Prompt#. '#Given Prompt#', \
'#Rewritten Prompt#', 'given prompt' and 'rewritten prompt' are not allowed to appear in #Rewritten Prompt#.
#Given Prompt#:
{instruction}
#Rewritten Prompt#:
"""
_BREADTH = """\
I want you to act as a Prompt Creator. Your goal is to draw inspiration from #Given Prompt# to create a brand new \
prompt. It should belong to the same domain as #Given Prompt# but be even more rare, with similar length and \
complexity. It must be reasonable and must be understood and answered by humans. '#Given Prompt#', \
'#Created Prompt#', 'given prompt' and 'created prompt' are not allowed to appear in #Created Prompt#.
#Given Prompt#:
{instruction}
#Created Prompt#:
"""
_COMPARE = """\
Here are two instructions to an AI. Do you think that they are equal to each other, with the same constraints and \
requirements and the same depth and breadth of the inquiry?
The first: {old}
The second: {new}
Answer with Equal or Not Equal. Your judgement:"""
_EQUAL = Shape(choices=("Equal", "Not Equal"))
_COPIED = re.compile(r"\b(?:given|rewritten|created) prompts?\b|prompt (?:rewriter|creator)", re.IGNORECASE)
_SORRY_WORDS = 80
_STOP_WORDS = set(
    re.findall(
        r"\w+",
        "a about after all also am an and any are as at be been but by can could did do does for from had has have he "
        "her here him his how i if in into is it its just me more my no nor not now of on or our out own she so some "
        "such than that the their them then there these they this those to too up us very was we were what when where "
        "which who why will with would you your",
    )
)


class EvolInstruct(PoolMethod):
    """Evol-Instruct (WizardLM; Xu et al. 2024, arXiv:2304.12244).

    Each round evolves instructions by an operation drawn at random, in depth or in breadth, and answers the new ones.
    Eliminated is what brings nothing new (`no_gain`, which the model judges), what copies words of the question to it
    (`copied`), and an answer that refuses (`refusal`) or says nothing (`empty`). An instruction whose evolution was
    eliminated, by a gate too, stays to be evolved in a later round; each is evolved once. The generations that an
    instruction is away from its seed are in `meta`.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("completion", "text")

    generations: int = Field(4, ge=1, description="Times that a seed is evolved, one on top of the other.")
    operations: tuple[Operation, ...] = Field(
        ("constraints", "deepen", "concretise", "reasoning", "complicate_input", "breadth"),
        min_length=1,
        description="Ways to evolve an instruction; one named twice is drawn twice as often.",
    )

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        done = {row["parent"] for row in pool.accepted}
        front = [(0, row) for row in pool.seeds if row["id"] not in done and instruction_of(row)]
        front += [(row["meta"]["generation"], row) for row in pool.accepted if row["id"] not in done]
        # another order each round, so that instructions which never evolve keep nothing else from being tried
        row_rng(self.seed, str(number), self.via).shuffle(front)
        front = sorted((item for item in front if item[0] < self.generations), key=lambda item: item[0])
        return [self._asked(number, index, *item) for index, item in enumerate(front[:wanted])]

    def _asked(self, number: int, index: int, generation: int, parent: Row) -> Row:
        operation = row_rng(self.seed, f"{number}.{index}", self.via).choice(self.operations)
        parent = {**parent, "prompt": instruction_of(parent), "completion": parent.get("completion") or ""}
        return self.ask(number, index, parent, operation=operation, generation=generation + 1)

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row, meta=dict(row["meta"])) for row in asks]
            for draft, answer in asked(ask, drafts, self._evolving):
                draft.payload = {"prompt": answer.text.strip()}
                draft.reason = _unfit(draft)
            for draft, answer in asked(ask, drafts, _comparing):
                draft.reason = "no_gain: asks for the same as its parent" if answer.value == "Equal" else None
            for draft, answer in asked(ask, drafts, self._answering):
                draft.payload["completion"] = answer.text.strip()
                draft.reason = _no_answer(answer)
            return yields(asks, drafts)

        return make

    def _evolving(self, draft: Draft) -> Prompt:
        method = _IN_DEPTH.get(draft.meta["operation"])
        text = (_DEPTH if method else _BREADTH).format(method=method, instruction=draft.ask["prompt"])
        return Prompt(user(text), self.seed_of(draft.ask))

    def _answering(self, draft: Draft) -> Prompt:
        return Prompt(user(draft.payload["prompt"]), self.seed_of(draft.ask, "answer"))


def _comparing(draft: Draft) -> Prompt:
    text = _COMPARE.format(old=draft.ask["prompt"], new=draft.payload["prompt"])
    return Prompt(user(text), shape=_EQUAL, temperature=0)


def _unfit(draft: Draft) -> str | None:
    """Why an evolved instruction is none, as far as that needs no model."""
    if copied := _COPIED.search(draft.payload["prompt"]):
        return f"copied: holds {copied.group().lower()!r}, from the question that asked for it"
    if draft.payload["prompt"].split() == draft.ask["prompt"].split():
        return "no_gain: is its parent again"
    return None


def _no_answer(answer: Completion) -> str | None:
    """Why an answer shows that the instruction is too hard, or none."""
    words = re.findall(r"\w+", answer.text.lower())
    if "sorry" in words and len(words) < _SORRY_WORDS:
        return f"refusal: the answer is sorry, in {len(words)} words"
    return "empty: the answer holds only stop words and punctuation" if _STOP_WORDS.issuperset(words) else None
