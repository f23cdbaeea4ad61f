"""Stage `feedback`: what people preferred, as a dataset to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tilth.config import Content
from tilth.errors import Problem, StageError
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.runs import Artifact, Out


class AnswersPlace(Content):
    """Where answers are kept; what counts is the answers, not the bytes of a database."""

    def content(self) -> str:
        from tilth.annotate.judgements import from_place
        from tilth.config import digest

        return digest([item.plain() for item in from_place(self)])


class Feedback(Stage):
    """Preference rows from the answers of people, for `dpo`, `kto` and reward models.

    Every item that was judged becomes a row; one that people do not decide is dropped as `tie` or `undecided`, one of
    two models that answered alike as `same`. Rows keep the split of the row that was judged: what is to be trained on
    is collected on training rows. `meta` holds the votes, how many people there were, the confidence or the margin, and
    the models behind both answers.
    """

    produces: ClassVar[str] = "dataset"
    version: ClassVar[int] = 5  # intervals are over rows

    answers: Annotated[str, Field(min_length=1), AfterValidator(AnswersPlace)] = Field(
        description="A campaign's database, by path or SQLAlchemy URL, or its exported answers (.jsonl)."
    )
    min_confidence: float = Field(
        0.5, ge=0, lt=1, description="Of comparisons: the probability that a preference must be above."
    )
    min_margin: float = Field(0.25, ge=0, description="Of marks: by how much standardised marks must differ.")
    max_failed: float = Field(
        0.5, ge=0, le=1, description="Who failed a larger share of attention checks and known items counts for nothing."
    )

    def check(self) -> list[Problem]:
        if "://" in self.answers or Path(self.answers).is_file():
            return []
        what = f"there are no answers at {self.answers}"
        return [Problem("answers", what, "collect them with `tilth annotate RUN`, or check the path")]

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Known once the answers are read."""
        return {}

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        """Read the answers, weigh them, write the pairs; StageError where nobody has answered yet."""
        from tilth.annotate.rows import write
        from tilth.data.finish import finished

        judged = self._judged()
        dataset = finished(out.store) or write(out, judged.preferences)
        told: dict[str, Any] = {"row_type": "preference", "campaign": judged.figures}
        return out.artifact(judged.metrics, dataset.counts, told)

    def _judged(self) -> Any:
        from tilth.annotate.rows import Judged

        judged = Judged.of(self)
        if not judged.preferences:
            raise StageError(f"{self.answers}: nobody has answered yet, or all who did failed the checks")
        return judged
