"""Marks that a model gives, by the rule of `echo` and by a real small model."""

from __future__ import annotations

from collections import Counter

import pytest

from tilth.augment.judge_score import JudgeScore
from tilth.data.schema import generated, original
from tilth.data.transform import Inputs
from tilth.generate.base import Answer, Completion, Generate, Generator
from tilth.generate.echo import Echo
from tilth.generate.hf import HuggingFace
from tilth.generate.http import Http
from tilth.kinds import load_class


class Recorder(Generator):
    """Gives every row the same mark and keeps what it was asked."""

    mark: str = "4"
    failing: bool = False

    def load(self, inputs: Inputs) -> Generate:
        def answer(prompts):
            ASKED.extend(prompts)
            failure = "http: 500" if self.failing else None
            return [Answer((), failure=failure) if failure else Answer((Completion(self.mark),)) for _ in prompts]

        return answer


ASKED: list = []


def judged(gate, *rows):
    return gate.load(Inputs(), {})([original("o", "train", {"prompt": "x", "completion": ""}), *rows])[1:]


def answer(number=0, text="Paris."):
    return generated(f"m.{number}", "m", 1, None, {"prompt": "What is the capital of France?", "completion": text})


def test_rows_under_the_least_mark_are_dropped_with_it():
    rows = judged(JudgeScore(generator=Echo(), field="completion"), *(answer(i, f"Answer {i}") for i in range(60)))
    marks = Counter(row["meta"]["judge_score"] for row in rows)
    assert set(marks) == {1, 2, 3, 4, 5}
    for row in rows:
        score = row["meta"]["judge_score"]
        assert row["reason"] == (None if score >= 4 else f"judged: {score} < 4")
        assert row["meta"]["judge"] == "echo"


def test_a_row_has_one_mark_in_whatever_company_it_is_judged():
    gate = JudgeScore(generator=Echo(), field="completion")
    rows = [answer(i, f"Answer {i}") for i in range(10)]
    together = [row["meta"] for row in judged(gate, *map(dict, rows))]
    assert [judged(gate, dict(row))[0]["meta"] for row in rows] == together


def test_the_tokens_of_judges_are_added_to_those_of_the_row_by_names_of_their_own():
    row = {**answer(), "meta": {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}}
    gate = JudgeScore(generator=Echo(failing=0.0), field="completion", min_score=1)
    once = judged(gate, row)[0]["meta"]["usage"]
    assert once["judge_prompt_tokens"] > once["judge_completion_tokens"] == 1
    assert (once["prompt_tokens"], once["completion_tokens"]) == (7, 5)
    twice = judged(gate, {**row, "meta": {"usage": once}})[0]["meta"]["usage"]
    assert twice == {name: count * (1 + name.startswith("judge_")) for name, count in once.items()}
    assert judged(gate, answer(1))[0]["meta"]["usage"].keys() == {"judge_prompt_tokens", "judge_completion_tokens"}


def test_a_row_without_a_mark_stays_out_of_the_dataset():
    failed = judged(JudgeScore(generator=Echo(failing=1.0), field="completion"), answer())[0]
    assert failed["reason"] == "quarantined/judge: echo: this question was to fail"
    talks = judged(JudgeScore(generator=Recorder(mark="four"), field="completion"), answer())[0]
    assert talks["reason"] == "quarantined/judge: malformed, 'four' is no mark"
    assert "judge_score" not in talks["meta"]
    cut = judged(JudgeScore(generator=Echo(malformed=1.0, retries=0), field="completion"), answer())[0]
    assert cut["reason"].startswith("quarantined/judge: malformed")


def test_the_judge_sees_the_question_the_rubric_and_greedy_choices():
    ASKED.clear()
    gate = JudgeScore(
        generator=Recorder(), field="completion", criteria="rhyme", rubric=("none", "one", "two", "three", "four")
    )
    assert judged(gate, answer())[0]["reason"] is None
    prompt = ASKED[0]
    text = prompt.messages[-1]["content"]
    for part in (
        "What is the capital of France?",
        "[Answer]\nParis.",
        "for rhyme",
        "1: none\n2: one",
        "digit from 1 to 5",
    ):
        assert part in text
    assert text.index("[Question]") < text.index("[Answer]")
    assert prompt.shape.choices == ("1", "2", "3", "4", "5")
    assert (prompt.temperature, prompt.n) == (0, 1)


def test_conversations_and_labels_are_shown_whole():
    ASKED.clear()
    talk = generated(
        "m", "m", 1, None, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
    )
    judged(JudgeScore(generator=Recorder(), field="messages"), talk)
    judged(JudgeScore(generator=Recorder()), generated("l", "m", 1, None, {"text": "Card lost", "label": "lost_card"}))
    assert "[Conversation]\nuser: Hi\nassistant: Yes?" in ASKED[0].messages[-1]["content"]
    assert "[Label]\nlost_card" in ASKED[1].messages[-1]["content"]


def test_as_many_units_are_in_flight_as_the_engine_takes():
    server = Http(base_url="http://127.0.0.1:1/v1", model="m", pace={"concurrency": 5})
    assert JudgeScore(generator=Echo()).in_flight == 1
    assert JudgeScore(generator=server).in_flight == server.in_flight == 10
    assert load_class("transform", "judge_score") is JudgeScore
    with pytest.raises(ValueError, match="rubric"):
        JudgeScore(generator=Echo(), rubric=("bad", "good"))


def test_a_real_small_model_gives_marks_of_the_scale():
    model = HuggingFace(model="HuggingFaceTB/SmolLM2-135M-Instruct")
    rows = judged(JudgeScore(generator=model, field="completion", min_score=1), answer(0), answer(1, "Bananas."))
    assert all(row["reason"] is None for row in rows)
    assert all(row["meta"]["judge_score"] in range(1, 6) for row in rows)
    assert rows[0]["meta"]["judge"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
