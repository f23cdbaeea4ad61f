"""A model whose answers a test writes, and the recipe that asks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field

import tilth
from tilth.data.dataset import Dataset
from tilth.data.transform import Inputs
from tilth.errors import RecipeError
from tilth.generate.base import Answer, Completion, Generator, Prompt
from tilth.generate.base import Generate as Ask

SCRIPTS: dict[str, Any] = {}


class Scripted(Generator):
    """Answers by one of the functions below: the text of a prompt, and the prompt → a text or a completion."""

    script: str = Field(description="Its name.")

    def load(self, inputs: Inputs) -> Ask:
        answer = SCRIPTS[self.script]

        def ask(prompts: Any) -> list[Answer]:
            made = [answer(said(prompt), prompt) for prompt in prompts]
            items = [item if isinstance(item, Completion) else Completion(item, tokens=3) for item in made]
            return [Answer((item,), 5, item.tokens) for item in items]

        return ask


def said(prompt: Prompt) -> str:
    return prompt.messages if isinstance(prompt.messages, str) else prompt.messages[-1]["content"]


def script(function):
    SCRIPTS[function.__name__] = function
    return function


def recipe(folder, row, rows, method, **fields):
    (folder / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    carry = sorted({name for item in rows for name in item} - {"text", "label", "prompt", "completion"})
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "carry": carry}
    generator = fields.pop("generator", {"kind": "echo"})
    generator = {"kind": "scripted:Scripted", "script": generator} if isinstance(generator, str) else generator
    here = {"resources": {"workers": 0}, "keep_data": False, "max_quarantined": 0.5}
    made = {"kind": "generate", "data": "@data", "method": method, "generator": generator, **here, **fields}
    return {
        "name": "methods",
        "stages": {"data": {"kind": "data", "row": row, "source": source}, "made": made},
    }


def run(folder, row, rows, method, **fields):
    artifact = tilth.run(recipe(folder, row, rows, method, **fields), folder / "out")["made"]
    return artifact, Dataset.open(artifact)


def texts(*items):
    return [{"text": text} for text in items]


def reasons(done):
    """Reasons, without details, by what the rejected rows descend from."""
    found = {}
    for row in done.rejected_rows():
        found.setdefault(row["parent"], set()).add(row["reason"].partition(":")[0])
    return found


def problems(folder, row, rows, method, **fields):
    with pytest.raises(RecipeError) as found:
        tilth.load(recipe(folder, row, rows, method, **fields))
    return {problem.where.removeprefix("stages.made.method."): problem for problem in found.value.problems}


#: a schema and columns for the method `rules`
REVIEW = {
    "answer": {
        "type": "object",
        "properties": {"product": {"type": "string"}, "review": {"type": "string"}},
        "required": ["product", "review"],
    },
    "columns": {"prompt": "Review the {{ product }}.", "completion": "{{ review }}"},
}
