"""Reward models: the loss by its formula, long pairs, ties, margins, ensembles, figures of held-out pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tilth.data.loading import Card, load_pretrained, load_trained
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.evaluate.predictor import Predictor
from tilth.generate import judges
from tilth.generate.engines.reward import RewardScorer
from tilth.storage import Store
from tilth.train.held_pairs import JudgedPairs, calibration, calibration_error, tell
from tilth.train.merge import merge
from tilth.train.rewards import RewardModel, disagreement
from tiny import model_folder
from training import dataset, die, questions, run_stage, stage_of, trace

Row = dict[str, Any]
FAST = {"epochs": 6, "global_batch": 4, "learning_rate": 0.01}


def pairs(count: int, split: str = "train", **meta: Any) -> list[Row]:
    """The friendly answer is the better one, and of changing length."""
    return [
        original(
            f"{split}{i}",
            split,
            {"prompt": f"say {i}:", "chosen": " yes please" + "!" * (i % 5), "rejected": " no" + "?" * (i % 7)},
            meta,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def base(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose head was trained a little, for stages that are to begin at known scores."""
    root = tmp_path_factory.mktemp("base")
    dataset(root, [*pairs(8), *pairs(40, "validation")], "preference")
    made = run_stage(root, stage_of("reward", str(llama), FAST, validation="validation"))
    assert made.metrics["held_out_accuracy"] > 0.9
    return Store.at(root).sub("train").fetch("model")


def score(loaded: Any, text: str, most: int = 1000) -> torch.Tensor:
    """The outputs for one text by itself: no batch, no padding."""
    ids = [*loaded.tokenizer(text)["input_ids"], loaded.tokenizer.eos_token_id]
    ids = ids if len(ids) <= most else [ids[0], *ids[1 - most :]]
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([ids])).logits[0]


def leads(loaded: Any, rows: list[Row], most: int = 1000) -> list[torch.Tensor]:
    return [
        score(loaded, row["prompt"] + row["chosen"], most) - score(loaded, row["prompt"] + row["rejected"], most)
        for row in rows
    ]


def first_loss(tmp_path: Path, base: Path, rows: list[Row], **fields: Any) -> tuple[float, float, Any]:
    """The loss of a first step over all `rows`, and the mean loss without margins or ties by its formula."""
    dataset(tmp_path, rows, "preference")
    settings = {"steps": 1, "global_batch": len(rows), "learning_rate": 1e-9}
    made = run_stage(tmp_path, stage_of("reward", str(base), settings, **fields))
    found = [lead.item() for lead in leads(load_trained(base, device="cpu"), rows)]
    return trace(tmp_path)[0]["loss"], float(np.mean(np.log1p(np.exp(-np.array(found))))), (made, np.array(found))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_better_answers_score_higher_and_the_loss_is_that_of_bradley_and_terry(tmp_path: Path, kind: str) -> None:
    dataset(tmp_path, [*pairs(9), *pairs(5, "validation")], "preference")
    model = str(model_folder(tmp_path / "model", kind))
    made = run_stage(tmp_path, stage_of("reward", model, FAST, validation="validation"))
    assert made.counts == {"rows": 9, "rows_seen": 9, "cut": 0}
    loaded = load_trained(Store.at(tmp_path).sub("train").fetch("model"), device="cpu")
    assert (loaded.objective, loaded.labels) == ("reward", ("reward",))
    losses = []
    for row in pairs(5, "validation"):
        texts = [row["prompt"] + row[name] + ("</s>" if kind == "llama" else "") for name in ("chosen", "rejected")]
        with torch.inference_mode():
            chosen, rejected = (
                loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits.item() for text in texts
            )
        losses.append(math.log1p(math.exp(rejected - chosen)))
    assert made.metrics["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert made.metrics["held_out_accuracy"] == 1.0


def test_margins_and_ties_enter_the_loss(tmp_path: Path, base: Path) -> None:
    rows = [*pairs(3, margin=0.5), *pairs(4, tie=True)[3:]]
    loss, plain, (_, found) = first_loss(tmp_path, base, rows, margin="meta.margin", ties="meta.tie")
    margins, better = np.array([0.5, 0.5, 0.5, 0]), np.array([1, 1, 1, 0.5])
    by_hand = better * np.log1p(np.exp(-(found - margins))) + (1 - better) * np.log1p(np.exp(found - margins))
    assert loss == pytest.approx(by_hand.mean(), rel=1e-4)
    assert abs(loss - plain) > 0.01


@pytest.mark.parametrize(
    ("fields", "meta", "why"),
    [
        ({"margin": "meta.margin"}, {"margin": "much"}, r"has 'much' at meta.margin; a margin is a number"),
        ({"margin": "meta.margin"}, {}, r"has None at meta.margin"),
        ({"ties": "meta.tie"}, {"tie": "maybe"}, r"has 'maybe' at meta.tie; a tie is true or false"),
    ],
)
def test_margins_and_ties_that_are_none_are_refused(
    tmp_path: Path, llama: Path, fields: Row, meta: Row, why: str
) -> None:
    dataset(tmp_path, pairs(4, **meta), "preference")
    with pytest.raises(StageError, match=why):
        run_stage(tmp_path, stage_of("reward", str(llama), {"steps": 1}, **fields))


def test_what_is_too_long_loses_its_beginning_and_is_counted(tmp_path: Path, base: Path) -> None:
    rows = pairs(4)
    rows[2]["prompt"] = "a long story " * 4
    loss, _, (made, _) = first_loss(tmp_path, base, rows, max_length=32)
    assert made.counts == {"rows": 4, "rows_seen": 4, "cut": 1}
    cut = [lead.item() for lead in leads(load_trained(base, device="cpu"), rows, 32)]
    assert loss == pytest.approx(np.mean(np.log1p(np.exp(-np.array(cut)))), rel=1e-4)


def test_rows_that_fill_up_the_last_batch_teach_nothing(tmp_path: Path, base: Path) -> None:
    dataset(tmp_path, pairs(3), "preference")
    run_stage(tmp_path, stage_of("reward", str(base), {"steps": 1, "global_batch": 4, "learning_rate": 1e-9}))
    found = [lead.item() for lead in leads(load_trained(base, device="cpu"), pairs(3))]
    [line] = trace(tmp_path)
    assert line["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-np.array(found)))), rel=1e-4)
    assert line["reward_margin"] == pytest.approx(np.mean(found), rel=1e-4)
    assert line["reward_accuracy"] == pytest.approx(np.mean([lead > 0 for lead in found]))


def test_heads_are_an_ensemble_whose_members_learn_from_other_pairs(tmp_path: Path, llama: Path) -> None:
    rows = [*pairs(12), *pairs(6, "validation")]
    dataset(tmp_path, rows, "preference")
    stage = stage_of("reward", str(llama), FAST, validation="validation", ensemble={"heads": 3})
    made = run_stage(tmp_path, stage)
    folder = Store.at(tmp_path).sub("train").fetch("model")
    loaded = load_trained(folder, device="cpu")
    reward = RewardModel(model=str(folder), caution=2.0).load(Inputs())
    given = ([row["prompt"] for row in rows], [row["chosen"] for row in rows], rows)
    each = np.array([score(loaded, row["prompt"] + row["chosen"]).tolist() for row in rows])
    assert each.shape == (18, 3)
    answers = [
        score(loaded, row["prompt"] + row[name]).tolist() for row in rows[12:] for name in ("chosen", "rejected")
    ]
    apart = (each - np.mean(answers, axis=0)).std(axis=1)
    assert disagreement(reward, *given) == pytest.approx(apart, abs=2e-4)
    assert reward(*given) == pytest.approx(each.mean(axis=1) - 2 * apart, abs=5e-4)
    assert made.metrics["disagreement"] > 0
    assert len(made.detail["pairs"]["members"]["accuracy"]) == 3
    held_out = torch.stack(leads(loaded, rows[12:]))
    assert made.metrics["validation_loss"] == pytest.approx(torch.log1p(torch.exp(-held_out)).mean().item(), rel=1e-3)


def test_seeds_are_an_ensemble_of_whole_models(tmp_path: Path, llama: Path) -> None:
    dataset(tmp_path, [*pairs(6), *pairs(4, "validation")], "preference")
    settings = {"steps": 3, "global_batch": 4, "learning_rate": 0.01}
    fields = {"validation": "validation", "ensemble": {"seeds": 2}}
    made = run_stage(tmp_path, stage_of("reward", {"name": str(llama), "lora": {"rank": 2}}, settings, **fields))
    folder = Store.at(tmp_path).sub("train").fetch("model")
    alone = [load_trained(part, device="cpu") for part in (folder, folder / "members" / "1")]
    row = pairs(1)[0]
    text = row["prompt"] + row["chosen"]
    each = [score(loaded, text).item() for loaded in alone]
    [found] = RewardScorer(folder, 1000)([(row["prompt"], row["chosen"])])
    assert found.members == pytest.approx(each, abs=2e-4)
    assert abs(each[0] - each[1]) > 1e-3
    assert made.metrics["disagreement"] > 0
    assert not Store.at(tmp_path).sub("train").exists("members")
    # exported, its members are merged and say the same
    merge(str(folder), "auto", Store.at(tmp_path).sub("merged"), Inputs())
    whole = Store.at(tmp_path).sub("merged").fetch("model")
    assert Card.read(whole / "members" / "1").peft is None
    [again] = RewardScorer(whole, 1000)([(row["prompt"], row["chosen"])])
    assert again.members == pytest.approx(each, abs=2e-4)
    # the second member is the model that the second seed gives alone
    dataset(tmp_path / "one", [*pairs(6), *pairs(4, "validation")], "preference")
    run_stage(tmp_path / "one", stage_of("reward", {"name": str(llama), "lora": {"rank": 2}}, {**settings, "seed": 1}))
    second = load_trained(Store.at(tmp_path / "one").sub("train").fetch("model"), device="cpu")
    assert score(second, text).item() == pytest.approx(each[1], abs=1e-5)


def test_a_reward_model_stands_on_the_adapter_of_a_language_model(tmp_path: Path, llama: Path) -> None:
    """SFT with LoRA, then a reward model with LoRA on what came of it, loaded again from its two adapters."""
    dataset(tmp_path, [original(f"t{i}", "train", {"text": f"yes please {i}"}) for i in range(4)], "text")
    run_stage(tmp_path, stage_of("sft", {"name": str(llama), "lora": {}}, {"steps": 3, "learning_rate": 0.05}))
    below = Store.at(tmp_path).sub("train").fetch("model")
    merged = load_pretrained(below, "language_model").model.model.state_dict()
    start = load_pretrained(below, "reward", ("reward",))
    assert start.new == ("score",)
    assert all(torch.allclose(value, merged[name]) for name, value in start.model.model.state_dict().items())
    dataset(tmp_path / "reward", [*pairs(8), *pairs(2, "validation")], "preference")
    stage = stage_of("reward", {"name": str(below), "lora": {"rank": 2}}, FAST, validation="validation")
    made = run_stage(tmp_path / "reward", stage)
    loaded = load_trained(Store.at(tmp_path / "reward").sub("train").fetch("model"), device="cpu")
    held_out = torch.stack(leads(loaded, pairs(2, "validation")))
    assert made.metrics["validation_loss"] == pytest.approx(torch.log1p(torch.exp(-held_out)).mean().item(), rel=1e-3)


@pytest.mark.slow
def test_a_killed_training_is_run_again_to_the_same_model(tmp_path: Path, llama: Path) -> None:
    settings = {"epochs": 2, "global_batch": 4, "learning_rate": 0.01}
    fields: Row = {"ensemble": {"heads": 2}, "checkpointing": {"every_steps": 2}}
    stage = stage_of("reward", {"name": str(llama), "lora": {"rank": 2}}, settings, **fields)
    for name in ("whole", "killed"):
        dataset(tmp_path / name, pairs(21), "preference")
    die(tmp_path / "killed", stage, step=5)
    for name in ("whole", "killed"):
        run_stage(tmp_path / name, stage)
    assert trace(tmp_path / "killed") == trace(tmp_path / "whole")
    texts = [(row["prompt"], row["chosen"]) for row in pairs(3)]
    folders = [Store.at(tmp_path / name).sub("train").fetch("model") for name in ("whole", "killed")]
    assert RewardScorer(folders[0], 1000)(texts) == RewardScorer(folders[1], 1000)(texts)


def test_prompt_and_answer_are_read_alike_whether_they_were_stripped_or_not(base: Path) -> None:
    scorer = RewardScorer(base, 1000)
    forms = [("say 3:", " yes"), ("say 3:", "yes"), ("say 3: ", "yes")]
    alike = {item.score for item in scorer(forms)}
    assert len(alike) == 1
    assert alike != {item.score for item in scorer([("say 3:", " yes!")])}


def test_a_judge_reads_what_a_stage_trained_as_a_reward_does(base: Path) -> None:
    answers = (" yes please", " no", " perhaps")
    [judged] = judges.RewardModel(model=str(base)).load(Inputs())(
        [judges.Contest(({"role": "user", "content": "say 3:"},), answers)]
    )
    rows = pairs(3)
    assert list(judged.scores) == RewardModel(model=str(base)).load(Inputs())(["say 3:"] * 3, list(answers), rows)


def test_length_is_regressed_out_of_every_score(tmp_path: Path, base: Path) -> None:
    rows = [*pairs(4), *pairs(30, "validation")]
    dataset(tmp_path, rows, "preference")
    settings = {"steps": 1, "global_batch": 4, "learning_rate": 1e-9}
    stage = stage_of("reward", str(base), settings, validation="validation", length_bias="regress_out")
    made = run_stage(tmp_path, stage)
    folder = Store.at(tmp_path).sub("train").fetch("model")
    plain = load_trained(base, device="cpu")
    apart = np.array([len(row["chosen"]) - len(row["rejected"]) for row in rows[4:]])
    before = np.array([lead.item() for lead in leads(plain, rows[4:])])
    slope = (before @ apart) / (apart @ apart)
    assert Card.read(folder).length_slope == pytest.approx(slope, rel=1e-2)
    reward = RewardModel(model=str(folder)).load(Inputs())
    prompts = [row["prompt"] for row in rows[4:]]
    chosen, rejected = (reward(prompts, [row[name] for row in rows[4:]], rows[4:]) for name in ("chosen", "rejected"))
    after = np.array(chosen) - np.array(rejected)
    assert after == pytest.approx(before - slope * apart, abs=2e-3)
    assert abs(after @ apart) / (apart @ apart) < 1e-3 * max(1.0, abs(slope))
    assert made.detail["pairs"]["with_length"]["held_out_accuracy"] == np.mean(before > 0)


def judged(scores: Any, lengths: Any, ties: Any = None) -> JudgedPairs:
    scores = np.asarray(scores, dtype=float)
    return JudgedPairs(scores, np.asarray(lengths, dtype=float), np.zeros(len(scores), bool) if ties is None else ties)


def test_no_pair_is_judged_by_a_slope_that_was_learnt_from_it() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 50, size=(6, 2)).astype(float)
    scores = rng.normal(size=(6, 2, 1))
    lead, longer = scores[:, 0, 0] - scores[:, 1, 0], lengths[:, 0] - lengths[:, 1]
    found = judged(scores, lengths).without_length().lead
    for half in (0, 1):
        own, other = slice(half, None, 2), slice(1 - half, None, 2)
        slope = (lead[other] @ longer[other]) / (longer[other] @ longer[other])
        assert found[own] == pytest.approx(lead[own] - slope * longer[own])
    one = judged(scores[:1], lengths[:1])
    assert one.without_length().lead == pytest.approx(one.lead), "of a single pair nothing is known"


def test_figures_agree_with_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    scores, lengths = rng.normal(size=(60, 2, 3)), rng.integers(1, 50, size=(60, 2))
    ties = np.arange(60) < 10
    told = tell(judged(scores, lengths, ties))
    lead = [float(row[0].mean() - row[1].mean()) for row in scores[10:]]
    assert told["metrics"]["held_out_accuracy"] == pytest.approx(sum(value > 0 for value in lead) / 50)
    flat = np.corrcoef(scores.mean(axis=2).ravel(), lengths.ravel())[0, 1]
    assert told["metrics"]["length_correlation"] == pytest.approx(flat)
    inside = np.corrcoef((scores[:, 0] - scores[:, 1]).mean(axis=1), lengths[:, 0] - lengths[:, 1])[0, 1]
    assert told["metrics"]["length_correlation_in_pairs"] == pytest.approx(inside)
    means = [np.mean(scores[:, :, member]) for member in range(3)]
    assert told["metrics"]["disagreement"] == pytest.approx(np.mean([np.std(s - means) for row in scores for s in row]))
    # scores of pairs have no zero: what a member adds to all of them is no disagreement
    assert tell(judged(scores + np.array([0, 5, -3]), lengths, ties))["metrics"]["disagreement"] == pytest.approx(
        told["metrics"]["disagreement"]
    )
    signs = np.sign(scores[10:, 0] - scores[10:, 1])
    assert told["members"]["split"] == pytest.approx(np.mean([len(set(row)) > 1 for row in signs]))
    assert (told["pairs"], told["ties"]) == (60, 10)


def test_a_calibrated_model_has_a_small_error_and_a_boastful_one_a_large_one() -> None:
    rng = np.random.default_rng(1)
    lead = np.abs(rng.normal(scale=1.5, size=4000))
    right = (rng.random(4000) < 1 / (1 + np.exp(-lead))).astype(float)
    signed = np.where(right == 1, lead, -lead)
    curve = calibration(signed, right)
    assert sum(part["pairs"] for part in curve) == 4000
    assert all(part["low"] <= part["accuracy"] <= part["high"] for part in curve)
    assert calibration_error(curve) < 0.03
    assert calibration_error(calibration(5 * signed, right)) > 0.1
    [one] = calibration(signed[:10], right[:10])
    assert one["accuracy"] == pytest.approx(right[:10].mean())


def test_what_cannot_be_is_refused(tmp_path: Path, llama: Path, base: Path) -> None:
    [problem] = stage_of("reward", str(llama), {}, length_bias="regress_out").check()
    assert "set validation" in str(problem)
    dataset(tmp_path, questions(4))
    with pytest.raises(StageError, match="reward needs preference rows"):
        run_stage(tmp_path, stage_of("reward", str(llama), {}))
    dataset(tmp_path / "t5", pairs(4), "preference")
    with pytest.raises(StageError, match="stands on a causal language model or an encoder"):
        run_stage(tmp_path / "t5", stage_of("reward", str(model_folder(tmp_path / "m", "t5")), {}))
    gpt2 = {"name": str(model_folder(tmp_path / "g", "gpt2")), "prompt_tuning": {"length": 2}}
    with pytest.raises(StageError, match="take lora or prefix_tuning"):
        run_stage(tmp_path / "t5", stage_of("reward", gpt2, {}))
    with pytest.raises(StageError, match="is a reward model: its own stage tells"):
        Predictor(base)
    Card().write(tmp_path / "g")
    with pytest.raises(StageError, match="was trained for language_model; name the model of a stage of kind reward"):
        RewardModel(model=str(tmp_path / "g")).load(Inputs())
