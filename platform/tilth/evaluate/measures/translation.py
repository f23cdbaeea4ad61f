"""BLEU and chrF by sacrebleu, with the signatures that make two figures comparable (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.evaluate.measures.base import AnswerMetric, Statistics, Terms

if TYPE_CHECKING:
    from tilth.data.bootstrap import Floats


class Sacrebleu(AnswerMetric, family="metric"):
    """Counts of n-grams, summed over the corpus and only then scored: 0 to 100."""

    best: ClassVar[float | None] = 100.0

    @property
    def figure(self) -> str:
        """The name of its figure."""
        return self.kind

    @property
    def title(self) -> str:
        return self.figure

    def scoring(self) -> Any:
        """The metric of sacrebleu."""
        raise TypeError(f"{type(self).__name__} must define scoring()")

    def scorer(self, inputs: Inputs) -> Callable[[str, list[str]], Terms]:
        metric = self.scoring()

        def score(answer: str, references: list[str]) -> Terms:
            # the counts that sacrebleu itself resamples in its significance tests
            [counts] = metric._extract_corpus_statistics([answer], [[reference] for reference in references])
            return list(map(float, counts))

        return score

    def figures(self, rows: Sequence[Row]) -> Statistics:
        import numpy as np

        from tilth.data.bootstrap import Statistic

        metric = self.scoring()

        def value(sums: Floats) -> Floats:
            counts = np.rint(sums).astype(int).tolist()
            return np.array([metric._compute_score_from_stats(line).score for line in counts])

        return {self.figure: Statistic(np.array(self.terms(rows)), value)}

    def detail(self, rows: Sequence[Row]) -> dict[str, Any]:
        metric = self.scoring()
        counts = {len(row["meta"]["references"]) for row in rows}
        metric.num_refs = counts.pop() if len(counts) == 1 else -1
        return {"signatures": {self.figure: str(metric.get_signature())}}


class Bleu(Sacrebleu):
    """BLEU (Papineni et al. 2002), its tokens and smoothing those of sacrebleu."""

    tokenizer: Literal["13a", "intl", "zh", "char", "none"] = Field("13a", description="As sacrebleu calls it.")
    lowercase: bool = Field(False, description="Compare in small letters.")

    def scoring(self) -> Any:
        from sacrebleu import BLEU

        return BLEU(tokenize=self.tokenizer, lowercase=self.lowercase)


class Chrf(Sacrebleu):
    """chrF, F score of character n-grams (Popović 2015); with `word_order` 2 chrF++ (Popović 2017)."""

    char_order: int = Field(6, ge=1, description="Longest n-gram of characters.")
    word_order: int = Field(0, ge=0, description="Longest n-gram of words; 2: chrF++.")

    @property
    def figure(self) -> str:
        return "chrf" + "+" * self.word_order

    def scoring(self) -> Any:
        from sacrebleu import CHRF

        return CHRF(char_order=self.char_order, word_order=self.word_order)
