"""Sources of reward: each against what it should say by plain arithmetic, and what each refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tilth.config import identity
from tilth.content import identity_of
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.base import Answer, Completion, Generate, Generator
from tilth.train.rewards import Function, Judged, PassesTests, Reward, WeightedSum, disagreement

EXACT = "tilth.train.answers:exact_answer"


def rows(*payloads: dict[str, Any], **meta: Any) -> list[dict[str, Any]]:
    return [original(f"r{number}", "train", payload, meta) for number, payload in enumerate(payloads)]


def longer(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [float(len(text)) for text in completions]


def one(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [1.0]


def endless(prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [math.inf for _ in completions]


class Marker(Generator):
    """Marks an answer by its number of exclamation marks; none at all for a silent one."""

    retries: int = 0

    def load(self, inputs: Inputs) -> Generate:
        def mark(prompts: Any) -> list[Answer]:
            said = [prompt.messages[-1]["content"].count("!") for prompt in prompts]
            return [Answer((Completion(str(count) if count else "none"),)) for count in said]

        return mark


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("so 5\n#### 5", 1.0),
        ("#### 5.0", 1.0),
        ("#### 6", 0.0),
        ("5", 0.0),
        ("#### 6 no, #### 5", 1.0),
        ("#### .", 0.0),
    ],
)
def test_an_exact_answer_is_the_last_marked_number(completion: str, right: float) -> None:
    score = Function(function=EXACT).load(Inputs())
    source = rows({"prompt": "How many?", "completion": "2 + 3 = 5\n#### 5"})
    assert score(["How many?"], [completion], source) == [right]


def test_a_large_number_may_have_commas_and_a_row_without_an_answer_rewards_nothing() -> None:
    score = Function(function=EXACT).load(Inputs())
    source = rows({"completion": "#### 1,200"}, {"completion": "none"})
    assert score(["a", "b"], ["#### 1200.", "none"], source) == [1.0, 0.0]


def test_a_function_is_known_by_the_content_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    for worth in (1, 2):
        (tmp_path / "mine_own.py").write_text(f"def worth(prompts, completions, rows): return [{worth}]\n")
        seen.append(identity(Function(function="mine_own:worth"), identity_of))
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere_at_all:f", "which is not installed"), ("tilth.train.answers:f", "has no 'f'")]
)
def test_a_function_that_is_not_there_is_found_before_anything_starts(name: str, why: str) -> None:
    [problem] = Function(function=name).check()
    assert why in str(problem)


@pytest.mark.parametrize(("name", "why"), [("one", "gave 1 rewards for 2 completions"), ("endless", "the reward inf")])
def test_a_function_that_breaks_its_word_is_refused(name: str, why: str) -> None:
    with pytest.raises(StageError, match=why):
        Function(function=f"test_rewards:{name}").load(Inputs())(["a", "b"], ["x", "y"], rows({}, {}))


def test_a_judge_gives_its_mean_mark_and_a_set_value_where_it_gives_none() -> None:
    reward = Judged(judge={"kind": "aspects", "generator": Marker(), "aspects": {"loud": "It is."}}, unjudged=-1.0)  # type: ignore[arg-type]
    assert reward.load(Inputs())(["q", "q", "q"], ["yes!", "yes!!!", "yes"], rows({}, {}, {})) == [1.0, 3.0, -1.0]


def test_a_judge_of_pairs_cannot_mark_one_answer() -> None:
    reward = Reward.model_validate({"kind": "judge", "judge": {"kind": "pairwise", "generator": {"kind": "echo"}}})
    assert [problem.where for problem in reward.check()] == ["judge"]


def test_programs_are_rewarded_for_passing_the_tests_of_their_row() -> None:
    score = PassesTests().load(Inputs())
    source = rows({}, {}, {}, test_list=["assert double(2) == 4", "assert double(0) == 0"])
    said = ["Here:\n```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return x", "raise SystemExit(0)"]
    assert score(["p"] * 3, said, source) == [1.0, 0.0, 0.0]
    with pytest.raises(StageError, match=r"row r0 carries no tests in meta\.test_list"):
        score(["p"], ["x"], rows({}))


def test_a_sum_weighs_its_parts_and_has_no_disagreement_where_none_of_them_has() -> None:
    parts = {
        "long": {"kind": "function", "function": "test_rewards:longer"},
        "right": {"kind": "function", "function": EXACT},
    }
    reward = Reward.model_validate({"kind": "sum", "parts": parts, "weights": {"long": -0.5}})
    given = (["p", "p"], ["#### 5", "12345678"], rows({"completion": "#### 5"}, {"completion": "#### 5"}))
    assert reward.load(Inputs())(*given) == [-3.0 + 1.0, -4.0]
    assert disagreement(reward.load(Inputs()), *given) is None
    faulty = WeightedSum.model_validate({"parts": parts, "weights": {"lng": 1.0}})
    assert [problem.where for problem in faulty.check()] == ["weights.lng"]
