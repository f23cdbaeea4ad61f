"""Judges by themselves: marks on aspects, and reward models that score as they do outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from test_preferences import Reader, run, user
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.base import Answer, Completion, Generate, Generator, Prompt, SamplingParams
from tilth.generate.judges import Aspects, Contest, RewardModel


def test_marks_on_aspects_are_averaged_and_missing_ones_left_out():
    class Forgetful(Generator):
        retries: int = 0

        def load(self, inputs: Inputs) -> Generate:
            marks = iter(["5", "4", "none", "2", "1", "3"])
            return lambda prompts: [Answer((Completion(next(marks)),)) for _ in prompts]

    judge = Aspects(generator=Forgetful(), aspects={"clear": "It is clear.", "true": "It is true.", "brief": "Brief."})
    [found] = judge.load(Inputs())([Contest(user("q"), ("x", "y"))])
    assert found.scores == (4.5, 2.0)
    assert found.figures == {"marks": 6, "unjudged": 1}
    assert found.failure is None


def test_the_mean_of_several_marks_tells_answers_apart():
    asked: list[Prompt] = []

    class Drawing(Generator):
        def load(self, inputs: Inputs) -> Generate:
            marks = iter([("3", "3", "4"), ("3", "none", "3"), ("1", "5", "2"), ("none", "none", "none")])

            def answer(prompts):
                asked.extend(prompts)
                return [Answer(tuple(map(Completion, next(marks)))) for _ in prompts]

            return answer

    judge = Aspects(generator=Drawing(retries=0), aspects={"clear": "It is clear.", "true": "It is true."}, samples=3)
    [found] = judge.load(Inputs())([Contest(user("q"), ("x", "y"))])
    assert [(prompt.n, prompt.temperature) for prompt in asked] == [(3, 1)] * 4
    assert found.scores == pytest.approx(((10 / 3 + 3) / 2, 8 / 3), abs=2e-4)
    assert found.figures == {"marks": 12, "unjudged": 4}


@pytest.mark.parametrize(("samples", "drawn"), [(3, (1.0, 0, 1.0)), (1, (0.8, 5, 1.2))])
def test_several_marks_are_drawn_from_all_of_them(samples: int, drawn: tuple[float, int, float]):
    opened: list[SamplingParams] = []

    class Noted(Generator):
        def load(self, inputs: Inputs) -> Generate:
            opened.append(self.sampling)
            return lambda prompts: []

    sampling = SamplingParams(top_p=0.8, top_k=5, repetition_penalty=1.2, max_tokens=7)
    Aspects(generator=Noted(sampling=sampling), samples=samples).load(Inputs())
    [found] = opened
    assert (found.top_p, found.top_k, found.repetition_penalty) == drawn
    assert found.max_tokens == 7


def test_every_aspect_of_every_answer_is_asked_with_its_own_description():
    asked: list[Prompt] = []

    class Watching(Reader):
        def load(self, inputs: Inputs) -> Generate:
            answer = super().load(inputs)
            return lambda prompts: (asked.extend(prompts), answer(prompts))[1]

    Aspects(generator=Watching()).load(Inputs())([Contest(user("why?"), ("x", "yy"))])
    assert len(asked) == 8
    assert len({(prompt.messages[-1]["content"]) for prompt in asked}) == 8
    assert all("why?" in prompt.messages[-1]["content"] and prompt.temperature == 0 for prompt in asked)


def test_a_rubric_says_what_each_of_five_marks_means():
    marks = ("useless", "poor", "fair", "good", "excellent")
    judge = Aspects(generator=Reader(), aspects={"clear": "It is clear."}, rubric=marks)
    assert "1: useless\n2: poor" in judge.prompts(Contest(user("q"), ("x",)))[0].messages[-1]["content"]
    assert judge.check() == []
    [problem] = Aspects(generator=Reader(), rubric=marks[:3]).check()
    assert str(problem) == "rubric: says what 3 marks mean; there are five, from 1 to 5"


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with one output: MiniLM with a head that nobody trained."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tilth import models

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    source = models.resolve("sentence-transformers/all-MiniLM-L6-v2")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def test_a_reward_model_scores_as_it_does_outside(reward, shared):
    """Real answers, in a batch of unlike lengths, against one forward pass each."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with gzip.open(shared / "data/hh-rlhf/helpful-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["chosen"][-n * 40 :] for n in range(1, 9)]
    [found] = RewardModel(model=str(reward)).load(Inputs())([Contest(user("What now?"), tuple(texts))])
    tokenizer = AutoTokenizer.from_pretrained(reward)
    model = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    with torch.inference_mode():
        for text, score in zip(texts, found.scores, strict=True):
            alone = model(**tokenizer(f"What now?\n\n{text}", return_tensors="pt")).logits.item()
            assert score == pytest.approx(alone, abs=2e-4)
    assert found.figures == {"scored": 8, "cut": 0, "unjudged": 0}
    assert len(set(found.scores)) == 8


def test_a_long_answer_loses_its_beginning_and_that_is_counted(reward):
    judge = RewardModel(model=str(reward)).load(Inputs())
    [found] = judge([Contest(user("q"), ("word " * 2000 + "the end", "other " * 2000 + "the end", "short"))])
    assert found.figures == {"scored": 3, "cut": 2, "unjudged": 0}
    [again] = judge([Contest(user("a different question"), ("word " * 2000 + "the end",))])
    assert again.scores[0] == found.scores[0], "what is cut is the beginning"


def test_a_score_that_is_no_number_is_none(reward, tmp_path):
    """A model whose weights overflowed gives no pair, and no NaN to the data."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(reward)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(reward).save_pretrained(tmp_path / "broken")
    judge = RewardModel(model=str(tmp_path / "broken"))
    [found] = judge.load(Inputs())([Contest(user("q"), ("x", "y"))])
    assert found.scores == (None, None)
    assert found.figures == {"scored": 2, "cut": 0, "unjudged": 2}
    with pytest.raises(StageError, match="1 too_few"):
        run(tmp_path, "a|bb", judge={"kind": "reward_model", "model": str(tmp_path / "broken")}, n=2)


def test_a_classifier_is_no_reward_model(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tilth import models

    source = models.resolve("sentence-transformers/all-MiniLM-L6-v2")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=3).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    with pytest.raises(StageError, match="has 3 outputs, a reward model has one"):
        RewardModel(model=str(tmp_path)).load(Inputs())


def test_a_reward_model_chooses(reward, tmp_path):
    judge = {"kind": "reward_model", "model": str(reward)}
    _, kept, _ = run(tmp_path, "a short one|a rather longer answer|no", judge=judge, n=3, min_margin=0.0001)
    [row] = kept
    scores = dict(zip(("a short one", "a rather longer answer", "no"), row["meta"]["scores"], strict=True))
    assert row["chosen"] == max(scores, key=scores.__getitem__)
    assert row["rejected"] == min(scores, key=scores.__getitem__)
    assert row["meta"]["margin"] == pytest.approx(scores[row["chosen"]] - scores[row["rejected"]], abs=1e-4)
