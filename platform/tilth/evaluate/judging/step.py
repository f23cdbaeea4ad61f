"""Judging as a transform: every row once, whatever dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import ReportRef
from tilth.data.schema import Row, row_seed, value_at
from tilth.data.transform import Inputs, RowsFunction, Transform
from tilth.errors import StageError
from tilth.evaluate.tasks.prompting import ASKED, Questions
from tilth.generate.judges import Contest, Judge, Judgement

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Judging(Transform):
    """Adds to each row `meta.candidates`, the models' answers, and `meta.judged`, what the judge says of them.

    A judge that compares leaves `pairs`: [first model, second model, the first one's share of a win, whether the place
    decided, whether for the first place]. One that scores leaves `scores`, by model. What it could say nothing of is
    left out.
    """

    sees_parents: ClassVar[bool] = False

    judge: Judge = Field(description="Who judges.")
    models: tuple[str, ...] = Field(min_length=1, description="Whose answers are judged.")
    places: dict[str, str] = Field(default_factory=dict, description="Where they stand, if in the rows themselves.")
    answers: ReportRef | None = Field(None, description="The evaluation in which they were given, if not.")
    question: str | None = Field(None, description="Jinja template of what was asked.")
    seed: int = Field(0, ge=0, description="Seed of judges that draw.")

    @property
    def in_flight(self) -> int:
        return self.judge.in_flight

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        judge = self.judge.load(inputs)
        given = self._given(inputs)
        questions = self._questions(inputs)

        def judged(rows: list[Row]) -> list[Row]:
            candidates = [{model: self._answer(row, model, given) for model in self.models} for row in rows]
            pairs = zip(rows, candidates, strict=True)
            contests = [self._contests(questions.conversation(row), row["id"], texts) for row, texts in pairs]
            found = iter(judge([contest for parts in contests for contest in parts]))
            return [
                self._told(row, texts, [next(found) for _ in parts])
                for row, texts, parts in zip(rows, candidates, contests, strict=True)
            ]

        return judged

    def _questions(self, inputs: Inputs) -> Questions:
        """Those that are told; else those that the evaluation asked, with its instruction and examples."""
        from tilth.storage import Store

        if self.question is not None or self.answers is None:
            return Questions(self.question)
        return Questions(**Store.at(inputs.urls[self.answers]).read_json(ASKED))

    def _given(self, inputs: Inputs) -> dict[str, dict[str, str]]:
        """Model → row id → its answer, from the predictions of an evaluation."""
        from tilth.data.dataset import Dataset
        from tilth.storage import Store

        if self.answers is None:
            return {}
        store = Store.at(inputs.urls[self.answers])
        rows = {model: Dataset.open(store.sub(f"predictions/{model}")).rows() for model in self.models}
        return {model: {row["id"]: row["meta"]["answers"][0].strip() for row in told} for model, told in rows.items()}

    def _answer(self, row: Row, model: str, given: Mapping[str, Mapping[str, str]]) -> str:
        found = given[model].get(row["id"]) if given else value_at(row, self.places[model])
        if not isinstance(found, str):
            where = "the evaluation" if given else self.places[model]
            raise StageError(f"row {row['id']} has no answer of {model} in {where}: it is {found!r}")
        return found

    def _contests(self, turns: Any, row_id: str, texts: Mapping[str, str]) -> list[Contest]:
        """Each pair by itself where the judge compares, so that all is known of it; else all answers at once."""
        seed = row_seed(self.seed, row_id, "judge")
        if not self.judge.compares:
            return [Contest(turns, tuple(texts.values()), seed)]
        return [
            Contest(turns, (texts[one], texts[other]), row_seed(seed, f"{one}/{other}", "judge"))
            for one, other in combinations(self.models, 2)
        ]

    def _told(self, row: Row, texts: Mapping[str, str], found: Sequence[Judgement]) -> Row:
        judged: dict[str, Any] = {"failures": [item.failure for item in found if item.failure is not None]}
        if self.judge.compares:
            pairs = zip(combinations(self.models, 2), found, strict=True)
            judged["pairs"] = [
                [*names, item.scores[0], item.figures.get("flipped", 0) > 0, item.figures.get("first", 0) > 0]
                for names, item in pairs
                if item.failure is None
            ]
        else:
            scores = zip(self.models, found[0].scores, strict=True)
            judged["scores"] = {model: score for model, score in scores if score is not None}
        return {**row, "meta": {**row["meta"], "candidates": dict(texts), "judged": judged}}
