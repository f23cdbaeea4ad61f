"""ROUGE by rouge-score and METEOR by NLTK, for summaries and other texts that may be put in several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.evaluate.measures.base import AnswerMetric, Statistics, Terms

RougeType = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Rouge(AnswerMetric):
    """ROUGE, the F measure of shared n-grams or subsequences (Lin 2004), averaged over rows, 0 to 1.

    Of several references the best counts. rougeLsum takes each line of a text for a sentence. Its tokens are runs of
    a-z and 0-9: other scripts leave nothing to compare.
    """

    best: ClassVar[float | None] = 1.0

    types: tuple[RougeType, ...] = Field(
        ("rouge1", "rouge2", "rougeL", "rougeLsum"), min_length=1, description="Which, the one that counts most first."
    )
    stemming: Literal["none", "porter"] = Field(
        "none", description="porter: words of four letters or more are stemmed."
    )

    def scorer(self, inputs: Inputs) -> Callable[[str, list[str]], Terms]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(self.types), use_stemmer=self.stemming == "porter")

        def score(answer: str, references: list[str]) -> Terms:
            found = scorer.score_multi(references, answer)
            return [float(found[name].fmeasure) for name in self.types]

        return score

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        return {name: mean(each) for name, each in zip(self.types, zip(*self.terms(rows), strict=True), strict=True)}


class Meteor(AnswerMetric):
    """METEOR of NLTK (Banerjee and Lavie 2005): words, stems and WordNet's synonyms aligned; the mean of rows, 0 to 1.

    Words are split by NLTK's Treebank rules, each text as one sentence. English only.
    """

    def scorer(self, inputs: Inputs) -> Callable[[str, list[str]], Terms]:
        from tilth.models import wordnet_dir

        wordnet_dir()
        from nltk.corpus import wordnet
        from nltk.tokenize import word_tokenize
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()

        def words(text: str) -> list[str]:
            found: list[str] = word_tokenize(text, preserve_line=True)
            return found

        return lambda answer, references: [float(meteor_score([words(text) for text in references], words(answer)))]

    def figures(self, rows: Sequence[Row]) -> Statistics:
        from tilth.data.bootstrap import mean

        return {"meteor": mean([value for [value] in self.terms(rows)])}
