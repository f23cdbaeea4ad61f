"""Abuse kept out: a linear model of insults and profanity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tilth.augment.base import Candidate, Filter, Verdict, VerdictsFunction
from tilth.data.transform import Inputs

if TYPE_CHECKING:
    from tilth.data.transform import Fitted


class Toxicity(Filter):
    """Drops added rows that read like abuse, by alt-profanity-check: a linear SVM on tf-idf of English words.

    It was trained on 200,000 comments of Twitter and Wikipedia and knows single words, not what is meant. Of the
    people's turns in hh-rlhf (Bai et al. 2022, test parts) it finds at 0.7 8.8 % of 5,402 that were written to
    provoke and 0.3 % of 5,404 harmless ones, at 0.5 12.2 % and 0.9 %. Of 40 of the latter that were read, none was
    abusive: they say kill, dog, sick or butt. What it does not find is politely said: threats, theft, fraud, most
    prejudice. For those use a judge (`judge_score`) with the rule written as its criterion.

    Recorded: `meta.toxicity`, 4 decimals. Reason: `toxic`.
    """

    max_probability: float = Field(0.7, gt=0.0, le=1.0, description="Probability of abuse from which a row is dropped.")

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        from profanity_check import predict_prob

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            if not candidates:  # scikit-learn refuses an empty list
                return []
            return [self._verdict(float(found)) for found in predict_prob([item.text for item in candidates])]

        return judge

    def _verdict(self, probability: float) -> Verdict:
        probability = round(probability, 4)
        toxic = probability >= self.max_probability
        reason = f"toxic: probability {probability:.2f} >= {self.max_probability:g}" if toxic else None
        return Verdict(reason, {"toxicity": probability})
