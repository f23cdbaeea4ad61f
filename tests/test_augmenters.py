"""What every augmenter and filter is held to, whoever wrote it."""

from __future__ import annotations

import pytest

from tilth.augment.base import Augmenter, Filter, Sample, Variant, VariantsFunction, Verdict, VerdictsFunction
from tilth.data.schema import original, to_table
from tilth.data.transform import Inputs
from tilth.errors import StageError

ROWS = [original(name, "train", {"text": f"row {name}"}) for name in "abc"]


class Odd(Augmenter):
    """Gives texts that no row may hold."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        return lambda samples: [["fine", " ", "a\ud800b", "nul\x00", Variant("", "mine")] for _ in samples]


class Lossy(Augmenter):
    """Forgets a row."""

    def load_variants(self, inputs: Inputs) -> VariantsFunction:
        def make(samples: list[Sample]) -> list[list[str]]:
            return [[sample.text] for sample in samples[1:]]

        return make


class Silent(Filter):
    """Gives no verdict."""

    def load_verdicts(self, inputs: Inputs, fitted: object) -> VerdictsFunction:
        def judge(candidates: list[object]) -> list[Verdict]:
            return []

        return judge


def test_a_text_that_no_row_may_hold_is_dropped_with_its_reason_and_can_be_stored() -> None:
    made = Odd().load(Inputs(), {})(ROWS[:1])[1:]
    reasons = [row["reason"] for row in made]
    assert reasons == [None, "empty", "bad_character: holds U+D800", "bad_character: holds U+0000", "mine"]
    assert to_table(made, "text").num_rows == 5


def test_a_wrong_number_of_answers_names_who_gave_it() -> None:
    with pytest.raises(StageError, match=r"Lossy gave variants of 2 rows when asked for 3"):
        Lossy().load(Inputs(), {})(ROWS)
    with pytest.raises(StageError, match=r"Silent gave 0 verdicts on 1 rows"):
        Silent().load(Inputs(), {})(Odd().load(Inputs(), {})(ROWS[:1]))
