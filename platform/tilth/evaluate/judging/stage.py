"""Stage `judge`: models' answers judged by other models, with intervals, and the judges judged by people."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tilth.config import EXECUTION, DatasetRef, ReportRef
from tilth.data.memory import held
from tilth.data.transform import Resources
from tilth.errors import Problem
from tilth.evaluate.judging.people import People
from tilth.evaluate.stage import Bootstrap
from tilth.generate.judges import Judge
from tilth.generate.render import row_problems
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out
    from tilth.weights import Sized


class JudgeAnswers(Stage):
    """Judges score the answers of several models, or compare them in both orders, every row once.

    The answers are those of an evaluation with the task `generation`, or stand in the rows of a dataset. Each judge
    gives marks or outcomes of pairs; told are mean marks, win rates over a baseline, plain and at equal length,
    Bradley-Terry ratings of all models on Elo's scale, and what may be wrong with the judge: how often the place of an
    answer decided, how often the longer one won, how far it favours its own model. Where people judged the same
    answers, agreement with them stands beside theirs with each other.
    """

    produces: ClassVar[str] = "report"
    # rows that a judge failed on before are judged again; ratings are fitted to the end; judges that are one model are
    # not held against each other; judges read the question as models were asked it; tests are corrected
    # for all of them together
    version: ClassVar[int] = 6  # intervals are over rows, n counts judged ones, criteria count alike
    #: the version since which judges are asked the same; those of an earlier run that were are not asked again
    asks: ClassVar[int] = 3

    answers: ReportRef | None = Field(None, description='The evaluation whose answers are judged, as "@stage".')
    data: DatasetRef | None = Field(None, description="Or the dataset whose rows hold the answers.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Model → column or dotted path of its answers in that dataset."
    )
    split: str = Field("test", pattern="^(train|validation|test)$", description="The split of that dataset.")
    question: str | None = Field(
        None,
        description="Jinja template of what was asked, over the row's columns and meta; none: all that the evaluation "
        "asked, its instruction and examples too, and of rows of a dataset what their type calls for.",
    )
    judges: dict[str, Judge] = Field(min_length=1, description="Name in the report → who judges.")
    baseline: str | None = Field(None, description="The model over which win rates are told.")
    people: People | None = Field(None, description="People's judgements of the same answers.")
    seed: int = Field(0, ge=0, description="Seed of judges that draw; each row derives its own from it.")
    bootstrap: Bootstrap = Field(default_factory=Bootstrap, description="How intervals are drawn.")
    resources: Resources = Field(
        default_factory=Resources, json_schema_extra=EXECUTION, description="Where judges run."
    )

    def check(self) -> list[Problem]:
        return [*self._sources(), *self._models(), *row_problems(self.question)]

    def _sources(self) -> Iterator[Problem]:
        if (self.answers is None) == (self.data is None):
            yield Problem("answers", "needs exactly one of answers and data", "name an evaluation, or a dataset")
        if (self.data is None) == bool(self.columns):
            yield Problem("columns", "goes with data: it says where each model's answers stand", "give both or neither")
        for name in self.judges:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                yield Problem(
                    f"judges.{name}", "holds a character that a directory's name cannot", "use letters, digits"
                )

    def _models(self) -> Iterator[Problem]:
        """Models that are named must be among those of the columns; those of an evaluation are known when it runs."""
        for where, model in self.unknown(self.columns) if self.columns else ():
            yield Problem(where, f"{model!r} is none of the models", f"use one of: {', '.join(self.columns)}")

    def unknown(self, models: Collection[str]) -> Iterator[tuple[str, str]]:
        """Where a model is named that is none of `models`, the first one in each place."""
        named = {"baseline": [self.baseline] if self.baseline else []}
        if self.people:
            named["people.ratings"] = list(self.people.ratings)
            named["people.verdicts.models"] = list(self.people.verdicts.models) if self.people.verdicts else []
        for where, names in named.items():
            yield from [(where, name) for name in names if name not in models][:1]

    def memory(self, sized: Sized) -> float | None:
        return held(self, sized, self.resources)

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Ask every judge, then count; StageError where an answer is missing or no judge could say anything."""
        from tilth.evaluate.judging.running import judge

        return judge(self, out, inputs)
