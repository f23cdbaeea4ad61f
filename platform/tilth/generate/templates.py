"""Templates: labelled rows become instructions with their answers, without any model.

{{text}} Which label describes it? ||| {{answer_choices[label]}}   →  prompt "Wall St. … Which label describes it?",
                                                                      completion "Business"
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PrivateAttr

from tilth.config import Component, DataFiles, DatasetRef
from tilth.data.files import opened
from tilth.data.schema import PAYLOADS, RowType
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.generate.base import Generator
from tilth.generate.method import MakeFunction, RowMethod
from tilth.generate.promptsource import inspected, read_templates
from tilth.paths import local_files, no_match

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset

Split = Literal["train", "validation", "test"]
#: what every row offers besides its own columns and those that it carries
_ALWAYS = ("id", "task", "label_name", "answer_choices")


class Template(Component):
    """A Jinja template in the form of P3: the prompt, `|||`, the completion."""

    name: str = Field(min_length=1, description="Recorded with each row.")
    jinja: str = Field(description='Names the row\'s columns: "{{text}} Is it spam? ||| {{answer_choices[label]}}".')
    answer_choices: str | None = Field(None, description='The possible answers, "no ||| yes"; a template too.')

    @property
    def inspected(self) -> tuple[set[str], str | None]:
        """The names that it takes from a row, and what is wrong with it."""
        choices, fault = inspected(self.answer_choices or "")
        names, wrong = inspected(self.jinja)
        # what it makes of the row itself, nobody has to give
        made = {"answer_choices"} if self.answer_choices else set()
        return (names - made) | choices, wrong or fault


class Demonstrations(Component):
    """Rows of the same task shown solved before the row's own prompt (in-context learning)."""

    data: DatasetRef = Field(description='Where they are drawn from, "@stage": its training rows only.')
    shots: int = Field(3, ge=1, le=64, description="How many are shown.")
    zero_shot: float = Field(0.5, ge=0, le=1, description="Share of prompts that show none.")
    separator: str = Field("\n\n", description="Between two demonstrations, and before the row's own prompt.")
    between: str = Field("\n", description="Between the prompt and the answer of a demonstration.")
    pool: int = Field(1000, ge=1, description="Rows of each task to draw from at most, chosen by their ids.")


class Limits(Component):
    """What one rendering may use. A template that wants more is dropped for that row."""

    seconds: float = Field(2.0, gt=0, le=600, description="CPU time.")
    characters: int = Field(100_000, ge=1, description="Length of prompt and completion together.")
    memory_mib: int = Field(512, ge=128, description="Memory of the process that renders.")


class Templates(RowMethod):
    """Instructions out of labelled data, as FLAN (Wei et al. 2022, arXiv:2109.01652; Longpre et al. 2023,
    arXiv:2301.13688) and T0 (Sanh et al. 2022, arXiv:2110.08207) were trained on.

    Templates see the row's payload, what it carries in `meta`, `id` and `task`. `label` is a number where the label
    is written in digits or stands in `classes`, else a text; `label_name` is what `label_names` calls it. A template
    that needs what a row lacks, or leaves prompt or completion empty (so templates say that a row is not for them),
    makes a dropped row with that reason; one that needs what no row has ends the stage. Templates are not trusted:
    they are rendered in a sandbox, in a process of its own with limits. `meta` holds `template`, `shots` and the
    answer `choices`.
    """

    takes: ClassVar[tuple[RowType, ...]] = ("text", "labelled", "completion", "chat")
    needs_generator: ClassVar[bool] = False
    version: ClassVar[int] = 2  # with a target rows are asked about by how many may come of each

    templates: tuple[Template, ...] = Field((), description="Templates written here.")
    file: DataFiles | None = Field(None, description="More of them: a templates.yaml of promptsource.")
    only: tuple[str, ...] = Field((), description="Names of those to use; none: all.")
    per_row: int | None = Field(1, ge=1, description="Templates for each row, drawn by its id; null: every one.")
    classes: tuple[str, ...] = Field((), description="Labels by the numbers that templates know them by, from 0.")
    label_names: dict[str, str] = Field(default_factory=dict, description="Label as in the data: what to call it.")
    columns: tuple[str, ...] | None = Field(
        None, description="Columns that rows carry in meta; given, `check` finds templates that name others."
    )
    task: str | None = Field(None, description="Name of the task; none: the row's own.")
    splits: tuple[Split, ...] = Field(
        ("train", "validation", "test"), min_length=1, description="The splits that are turned into instructions."
    )
    demonstrations: Demonstrations | None = Field(None, description="Mix in-context prompts with zero-shot ones.")
    limits: Limits = Field(default_factory=Limits, description="What a rendering may use.")
    _offered: frozenset[str] | None = PrivateAttr(None)

    def check(self) -> list[Problem]:
        if not self.templates and self.file is None:
            return [Problem("templates", "there are none", "write templates, or name a file of promptsource")]
        if self.file is not None and "://" in self.file:
            return [*self._template_problems(self.templates)]
        try:
            every = self.every
        except (ValueError, OSError) as error:
            return [Problem("file", str(error), "check the file")]
        return [*self._template_problems(every), *self._name_problems(every)]

    def _template_problems(self, templates: tuple[Template, ...]) -> Iterator[Problem]:
        payload = {name for row_type in self.takes for name in PAYLOADS[row_type]}
        known = None if self.columns is None else {*self.columns, *payload, *_ALWAYS}
        for template in templates:
            if self.only and template.name not in self.only:
                continue
            where = f"templates.{self.templates.index(template)}" if template in self.templates else "file"
            names, wrong = template.inspected
            if wrong:
                yield Problem(where, f"template {template.name!r} {wrong}")
            if known is not None and (unknown := names - known):
                what = f"template {template.name!r} names {', '.join(sorted(unknown))}, which rows do not have"
                yield Problem(where, what, f"they have: {', '.join(sorted(known))}")
            if "|||" not in template.jinja:
                yield Problem(where, f"template {template.name!r} has no |||", "write PROMPT ||| COMPLETION")

    def _name_problems(self, every: tuple[Template, ...]) -> Iterator[Problem]:
        names = [template.name for template in every]
        for name in self.only:
            if name not in names:
                yield Problem("only", f"no template is called {name!r}", f"there are: {', '.join(names)}")
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem("templates", f"two templates are called {name!r}", "give one of them another name")

    @cached_property
    def every(self) -> tuple[Template, ...]:
        """All templates, those of the file last. ValueError or OSError where the file cannot be read.

        The file is read where the recipe is checked; workers get what was read, for their paths are others.
        """
        if self.file is None:
            return self.templates
        files = [self.file] if "://" in self.file else local_files(self.file)[0]
        if len(files) != 1:
            raise ValueError(f"must be one file, not {len(files)}" if files else no_match(self.file))
        with opened(files[0]) as handle:
            text = handle.read().decode("utf-8")
        return (*self.templates, *(Template(**item) for item in read_templates(text)))

    @property
    def chosen(self) -> tuple[Template, ...]:
        """The templates that are used. StageError where the file is none of templates."""
        try:
            every = self.every
        except ValueError as error:
            raise StageError(f"templates: {self.file} {error}") from error
        return tuple(template for template in every if not self.only or template.name in self.only)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.splits

    @property
    def per_ask(self) -> int:
        return min(self.per_row or len(self.chosen), len(self.chosen))

    @property
    def offered(self) -> frozenset[str] | None:
        """What a template may name of any row; None where the rows were not seen."""
        return self._offered

    def seeing(self, data: Dataset, inputs: Inputs) -> Templates:
        """Knows what no row has. StageError where no row has the task of any demonstration."""
        from tilth.generate.templating import offered, refuse_other_tasks

        if self.demonstrations is not None:
            refuse_other_tasks(self.demonstrations, data, inputs)
        seen = self.model_copy()
        seen._offered = offered(self, data)
        return seen

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        from tilth.generate.templating import Templating

        return Templating(self, inputs)
