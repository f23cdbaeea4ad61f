"""Constrained generation: rows of a schema of one's own, under rules of one's own, and nothing that breaks one.

{product: string, review: string}, "name no price", review: at least 20 words  →  {"product": "rain gauge", …}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from tilth.config import Component, DataFiles
from tilth.data.files import opened as opened_file
from tilth.data.schema import PAYLOADS, Row, RowType, row_rng
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.generate.base import Generate, Generator, Prompt
from tilth.generate.drafts import Draft, asked, instruction_of, user, yields
from tilth.generate.method import MakeFunction, Pool, PoolMethod, Yield, opened
from tilth.generate.render import RenderError, fault, render
from tilth.generate.shape import Shape

_ASK = """\
{task}
{rules}{examples}Answer as JSON of this schema:
{schema}"""
_VERIFY = """\
Does this keep the rule? Answer with yes or no.
Rule: {rule}
{answer}
Answer:"""
_YES_OR_NO = Shape(choices=("yes", "no"))


class FieldRule(Component):
    """What one field of an answer must be, beyond its schema; other values than texts are judged as JSON."""

    pattern: str | None = Field(None, description="Regular expression that the whole value matches.")
    min_words: int = Field(0, ge=0, description="Fewest words.")
    max_words: int | None = Field(None, ge=0, description="Most words.")
    must_contain: tuple[str, ...] = Field((), description="Texts that it holds, in upper or lower case.")
    must_not_contain: tuple[str, ...] = Field((), description="Texts that it does not hold, in upper or lower case.")

    def check(self) -> list[Problem]:
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            return [Problem("pattern", f"is no regular expression: {error}", "mend it")]
        return []

    def broken(self, value: Any) -> str | None:
        """How a value breaks this rule; None where it keeps it."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        words, lower = len(text.split()), text.casefold()
        if self.pattern is not None and not re.fullmatch(self.pattern, text, re.DOTALL):
            return f"does not match {self.pattern}"
        if words < self.min_words or (self.max_words is not None and words > self.max_words):
            return f"has {words} words, not {self.min_words} to {'any' if self.max_words is None else self.max_words}"
        if missing := [part for part in self.must_contain if part.casefold() not in lower]:
            return f"lacks {missing[0]!r}"
        present = [part for part in self.must_not_contain if part.casefold() in lower]
        return f"holds {present[0]!r}" if present else None


class Rules(PoolMethod):
    """Rows from rules: the task in words, a JSON schema, constraints in words, and checks on fields.

    The model is held to the schema (guided decoding, where the generator has it: Willard and Louf 2023,
    arXiv:2307.09702) and told the constraints; what breaks a rule is dropped as `rule: …`. `verify` also asks the
    model whether each constraint in words is kept. Columns are Jinja templates over the fields of the answer, which
    is kept whole in `meta.answer`; a gate `unique` can be put on it.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("text", "labelled", "completion")

    task: str = Field(min_length=1, description="What to write, as said to the model.")
    answer: dict[str, Any] | None = Field(None, description="JSON schema of an answer: an object.")
    answer_file: DataFiles | None = Field(None, description="A file with the schema, instead.")
    constraints: tuple[str, ...] = Field((), description="Rules in words.")
    rules: dict[str, FieldRule] = Field(default_factory=dict, description="Checks by field of the answer.")
    verify: bool = Field(False, description="Ask the model whether each constraint in words is kept.")
    row_type: Literal["completion", "labelled", "text", "preference"] = Field("completion", description="What is made.")
    columns: dict[str, str] = Field(description="A template over the answer's fields for each column of the row.")
    demonstrations: int = Field(0, ge=0, le=32, description="Rows of the data shown with each ask.")

    @property
    def makes(self) -> RowType:
        return self.row_type

    def check(self) -> list[Problem]:
        wanted = ", ".join(PAYLOADS[self.row_type])
        if set(self.columns) != set(PAYLOADS[self.row_type]):
            return [Problem("columns", f"a {self.row_type} row has the columns {wanted}", "give a template for each")]
        if (self.answer is None) == (self.answer_file is None):
            return [Problem("answer", "needs exactly one of answer and answer_file", "give one")]
        if self.answer_file is not None and "://" in self.answer_file:
            return []  # known when it runs
        try:
            fields = sorted(self.schema_of_answer.get("properties", {}))
        except StageError as error:
            return [Problem("answer" if self.answer_file is None else "answer_file", str(error), "mend the schema")]
        mend = f"the answer has: {', '.join(fields)}"
        problems = [
            Problem(f"rules.{name}", "is no field of the answer", mend) for name in self.rules if name not in fields
        ]
        for name, template in self.columns.items():
            if wrong := fault(template, fields):
                problems.append(Problem(f"columns.{name}", wrong, mend))
        return problems

    @cached_property
    def schema_of_answer(self) -> dict[str, Any]:
        """The schema as plain JSON; StageError where it cannot be read or is none of an object.

        The file is read where the recipe is checked; workers get what was read, for their paths are others.
        """
        from jsonschema import SchemaError

        try:
            schema = json.loads(json.dumps(self.answer) if self.answer_file is None else _read(self.answer_file))
            Shape.of(schema)
        except (OSError, ValueError, TypeError, SchemaError) as error:
            raise StageError(f"is no JSON schema: {str(error).splitlines()[0]}") from error
        if schema.get("type") != "object":
            raise StageError("must be the schema of an object, with type: object and its properties")
        return dict(schema)

    def plan(self, number: int, pool: Pool, wanted: int) -> list[Row]:
        texts = [text for row in pool.seeds if (text := instruction_of(row))] if self.demonstrations else []
        asks = []
        for index in range(wanted):
            rng = row_rng(self.seed, f"{number}.{index}", self.via)
            asks.append(self.ask(number, index, demonstrations=rng.sample(texts, min(self.demonstrations, len(texts)))))
        return asks

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask, schema = opened(generator, inputs), self.schema_of_answer
        shape = Shape.of(schema)

        def make(asks: list[Row]) -> list[Yield]:
            drafts = [Draft(row) for row in asks]
            for draft, answer in asked(ask, drafts, partial(self._asking, schema, shape)):
                draft.meta["answer"] = answer.value
                self._fill(draft, answer.value)
            if self.verify:
                self._verified(ask, drafts)
            return yields(asks, drafts)

        return make

    def _asking(self, schema: Mapping[str, Any], shape: Shape, draft: Draft) -> Prompt:
        rules = "".join(f"- {rule}\n" for rule in self.constraints)
        shown = "".join(f"- {text}\n" for text in draft.ask["meta"]["demonstrations"])
        text = _ASK.format(
            task=self.task,
            rules=rules and f"Keep these rules:\n{rules}",
            examples=shown and f"Examples:\n{shown}",
            schema=json.dumps(schema, ensure_ascii=False),
        )
        return Prompt(user(text), self.seed_of(draft.ask), shape=shape)

    def _fill(self, draft: Draft, answer: Mapping[str, Any]) -> None:
        """The columns of the row, and the first rule that the answer breaks."""
        try:
            draft.payload = {name: render(template, **answer).strip() for name, template in self.columns.items()}
        except RenderError as error:
            draft.reason = f"rule: a column cannot be filled: {error}"
        if empty := [name for name, text in draft.payload.items() if not text]:
            draft.reason = f"empty: column {empty[0]}"
        for name, rule in self.rules.items():
            if draft.reason is None and name in answer and (broken := rule.broken(answer[name])):
                draft.reason = f"rule: {name} {broken}"

    def _verified(self, ask: Generate, drafts: list[Draft]) -> None:
        for rule in self.constraints:
            for draft, said in asked(ask, drafts, partial(_verifying, rule)):
                draft.reason = f"rule: {rule}" if said.value == "no" else None


def _read(file: str) -> str:
    with opened_file(file) as handle:
        return handle.read().decode("utf-8")


def _verifying(rule: str, draft: Draft) -> Prompt:
    answer = json.dumps(draft.meta["answer"], ensure_ascii=False)
    return Prompt(user(_VERIFY.format(rule=rule, answer=answer)), shape=_YES_OR_NO, temperature=0)
