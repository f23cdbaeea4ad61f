"""Learning from feedback: the known optimum is reached, what is drawn is what is learnt from, and nothing is lost."""

from __future__ import annotations

import asyncio
import math
import re
import statistics
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import feedback
from tilth.data.loading import load_tokenizer, load_trained
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.engines import buckets
from tilth.generate.engines.vllm_engine import Engine, Life
from tilth.recipe import Stage
from tilth.report.sections import sections
from tilth.storage import Store
from tilth.train.checkpoint import StoreLink
from tilth.train.config import ModelConfig, Optimisation, Validation
from tilth.train.ppo import looks
from tilth.train.ppo.advantages import Advantage
from tilth.train.ppo.batch import Batch
from tilth.train.ppo.decoding import Decoder
from tilth.train.ppo.detecting import alarms
from tilth.train.ppo.learner import Learner, Settings
from tilth.train.ppo.loop import Loop, Plan
from tilth.train.ppo.placement import Scoring
from tilth.train.ppo.policy import Critic, Policy
from tilth.train.ppo.probes import probes
from tilth.train.ppo.prompts import prompts_of, taken
from tilth.train.ppo.rollouts import Ask, Home, HuggingFaceRollouts, Rollouts, Sample, VllmRollouts
from tilth.train.ppo.scorers import Scorers, opened
from tilth.train.ppo.served import Served
from tilth.train.ppo.settings import Algorithm, Kl, Shaping, Watchers
from tilth.train.ppo.source import Source
from tilth.train.rewards import Reward, disagreement
from tilth.weights import Weights
from tiny import model_folder
from training import dataset, killer, run_stage, trace

BETA = 0.5


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "llama", "llama")


def asked(count: int, split: str = "train") -> list[dict[str, Any]]:
    texts = ["say ", "now say ", "and then say "]
    return [
        original(f"{split}{i}", split, {"prompt": texts[i % 3] + str(i % 7), "completion": "x"}) for i in range(count)
    ]


def learner(folder: Path, advantage: dict[str, Any], **rollouts: Any) -> Learner:
    """A learner of one-token completions, where a letter is worth 1."""
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    config = HuggingFaceRollouts.model_validate({"kind": "hf", "max_tokens": 1, **rollouts})
    kind = Advantage.model_validate(advantage)
    model = AutoModelForCausalLM.from_pretrained(folder)
    policy = Policy(model, valued=kind.critic is not None, temperature=config.temperature)
    algorithm = Algorithm(advantage=kind, kl=Kl(coefficient=BETA), shaping=Shaping(missing_end=0.0), epochs=2)
    settings = Settings(algorithm, config, Optimisation(learning_rate=0.03, weight_decay=0.0))
    source = Source(Inputs(), ModelConfig(name=str(folder)))
    home = Home(policy, tokenizer, source, 64)
    return Learner(policy, tokenizer, Decoder(config, home), Scorers(feedback.letters), settings)


@pytest.mark.parametrize(
    "advantage",
    [
        {"kind": "gae"},
        {"kind": "rloo", "size": 4},
        pytest.param({"kind": "grpo", "size": 4, "scale": "none"}, marks=pytest.mark.slow),
        pytest.param({"kind": "reinforce_plus_plus", "per_prompt": 4}, marks=pytest.mark.slow),
    ],
    ids=lambda item: item["kind"],
)
def test_the_optimum_of_a_bandit_is_reached(llama: Path, advantage: dict[str, Any]) -> None:
    """With a price β on KL the best policy is that of the reference times exp(reward / β), normalised."""
    found = learner(llama, advantage)
    tokenizer = found.tokenizer
    prompts, _ = prompts_of(
        [{**row, "prompt": "say"} for row in asked(16 * (4 if advantage["kind"] == "gae" else 1))], tokenizer, 60
    )
    good = torch.tensor(feedback.letters([], [tokenizer.decode([t]) for t in range(260)], []))

    def share() -> float:
        with torch.no_grad():
            logits = found.policy.model(input_ids=torch.tensor([prompts[0].tokens])).logits[0, -1]
        return float((logits.softmax(0) * good).sum())

    before = share()
    wanted = before * math.exp(1 / BETA) / (before * math.exp(1 / BETA) + 1 - before)
    for step in range(40):
        line = found.step(step, 40, prompts)
        assert line["sync_ratio"] == pytest.approx(1, abs=1e-4)
    assert wanted - before > 0.3
    assert share() == pytest.approx(wanted, abs=0.06)


def test_updates_end_where_the_policy_is_far_enough_from_where_the_step_began(llama: Path) -> None:
    prompts, _ = prompts_of([{**row, "prompt": "say"} for row in asked(16)], load_tokenizer(llama), 60)

    def told(limit: float | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        found = learner(llama, {"kind": "gae"})
        found.updater.algorithm = found.algorithm.model_copy(update={"epochs": 6, "stop_at_kl": limit})
        line = found.step(0, 10, prompts)
        return line, {name: weight.detach().clone() for name, weight in found.policy.learnt().items()}

    whole, _ = told(None)
    assert whole["updates"] == 6
    cut, weights = told(1e-4)
    assert cut["updates"] == 1, "the second pass sees how far the first has gone, and is dropped"
    once = learner(llama, {"kind": "gae"})
    once.updater.algorithm = once.algorithm.model_copy(update={"epochs": 1})
    once.step(0, 10, prompts)
    assert all(torch.equal(weights[name], weight) for name, weight in once.policy.learnt().items())


def test_what_is_learnt_of_a_score(llama: Path) -> None:
    found = learner(llama, {"kind": "rloo", "size": 2})
    samples = [Sample(Ask("r", (5,), 1), (6,), (0.0,), ended) for ended in (True, False, True, False)]

    def shaped(scores: list[float], **shaping: Any) -> list[float]:
        found.algorithm = found.algorithm.model_copy(update={"shaping": Shaping(**shaping)})
        return [round(value, 4) for value in found._shaped(torch.tensor(scores), samples).tolist()]

    scores = [1.0, 2.0, 30.0, -40.0]
    assert shaped(scores, clip=None, missing_end=0.0) == scores
    assert shaped(scores, clip=10.0, missing_end=0.5) == [1.0, 1.5, 10.0, -10.5]
    deviation = statistics.pstdev(scores)
    assert shaped(scores, normalise=True, clip=None, missing_end=0.0) == [round(s / deviation, 4) for s in scores]
    again = statistics.pstdev([*scores, *[0.0] * 4])
    assert shaped([0.0, 0.0, 0.0, 0.0], normalise=True, clip=None, missing_end=again) == [0.0, -round(again, 4)] * 2


def test_entropy_is_worth_something_where_it_is_asked_for(llama: Path) -> None:
    prompts, _ = prompts_of([{**row, "prompt": "say"} for row in asked(16)], load_tokenizer(llama), 60)

    def entropies(worth: float) -> list[float]:
        found = learner(llama, {"kind": "gae"}, temperature=0.1)
        found.scorers = Scorers(lambda prompts, completions, rows: [0.0] * len(prompts))
        found.updater.algorithm = found.algorithm.model_copy(update={"entropy": worth})
        found.optimiser.optimisation = found.optimiser.optimisation.model_copy(update={"learning_rate": 1e-3})
        return [found.step(step, 10, prompts)["entropy"] for step in range(4)]

    assert entropies(1.0)[-1] > entropies(0.0)[-1] + 1e-3


def test_a_critic_that_cannot_foretell_is_refused(llama: Path) -> None:
    assert Critic(AutoModelForCausalLM.from_pretrained(llama)).causal()
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    assert not Critic(transformers.BertLMHeadModel(config)).causal()


def test_a_sample_is_the_same_in_whatever_batch_it_is_drawn(llama: Path) -> None:
    found = learner(llama, {"kind": "gae"}, max_tokens=12, temperature=0.8)
    asks = [Ask(f"r{i}", tuple(range(5, 6 + i)), 7 + i) for i in range(9)]
    together = found.generating.generate(asks)
    alone = [found.generating.generate([ask])[0] for ask in reversed(asks)][::-1]
    assert [sample.tokens for sample in alone] == [sample.tokens for sample in together]
    assert len({sample.tokens for sample in together}) == len(asks)
    for sample in together:
        assert sample.ended == (sample.tokens[-1] == found.tokenizer.eos_token_id)
        assert len(sample.tokens) == 12 or sample.ended
    # what the generator says of its tokens is what the learner says of them
    seen = found.seen(together)
    assert ((seen.old - seen.behaviour) * seen.mask).abs().max() < 1e-4


def test_prompts_of_different_lengths_are_read_as_each_alone(llama: Path) -> None:
    """Decoding pads prompts at their left: what it says of a token is what the model says of the text alone."""
    found = learner(llama, {"kind": "gae"}, max_tokens=5)
    asks = [Ask(f"r{n}", tuple(range(20, 21 + 3 * n)), n) for n in range(5)]
    for sample in found.generating.generate(asks):
        with torch.no_grad():
            logits = found.policy.model(torch.tensor([[*sample.ask.prompt, *sample.tokens]])).logits[0]
        for at, (token, said) in enumerate(zip(sample.tokens, sample.logprobs, strict=True)):
            row = logits[len(sample.ask.prompt) - 1 + at].double()
            assert said == pytest.approx(float(row[token] - torch.logsumexp(row, 0)), abs=1e-5)


def test_draws_follow_the_distribution(llama: Path) -> None:
    found = learner(llama, {"kind": "gae"})
    prompt = (5, 6, 7)
    drawn = found.generating.generate([Ask("r", prompt, seed) for seed in range(3000)])
    with torch.no_grad():
        shares = found.policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(0)
    half = int((shares.cumsum(0) < 0.5).sum())
    below = sum(sample.tokens[0] <= half for sample in drawn) / len(drawn)
    assert below == pytest.approx(float(shares[: half + 1].sum()), abs=0.04)


def test_activations_are_recomputed_while_learning_and_only_then(llama: Path) -> None:
    losses, passes = [], []
    for again in (False, True):
        found = learner(llama, {"kind": "gae"}, max_tokens=4)
        if again:
            found.policy.recompute()
        calls: list[int] = []
        found.policy.model.model.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        prompts, _ = prompts_of(asked(4), found.tokenizer, 60)
        losses.append(found.step(0, 1, prompts)["loss"])
        passes.append(len(calls))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert passes[1] == passes[0] + 2  # once for each of two updates


def test_layers_that_draw_dropout_by_themselves_draw_none_while_they_learn(tmp_path: Path) -> None:
    config = OPTConfig(vocab_size=300, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
                       max_position_embeddings=64, word_embed_proj_dim=16, dropout=0.3)  # fmt: skip
    batch = Batch.of([Sample(Ask("r", (5, 6, 7), 0), (8, 9, 10, 11), (), True)], 0)
    for recomputed in (False, True):
        policy = Policy(OPTForCausalLM(config), valued=True)
        if recomputed:
            policy.recompute()
        with torch.no_grad():
            before = policy(batch).logprobs
        with policy.learning():
            assert torch.allclose(policy(batch).logprobs, before, atol=1e-6)


def test_weights_that_say_otherwise_while_they_learn_end_the_run(llama: Path) -> None:
    found = learner(llama, {"kind": "gae"})
    prompts, _ = prompts_of([{**row, "prompt": "say"} for row in asked(8)], load_tokenizer(llama), 60)
    assert found.step(0, 10, prompts)["log_ratio"] >= 0
    forward = found.policy.model.forward
    noisy = torch.nn.Linear(1, 1)  # a layer that draws as soon as a gradient is asked for

    def drawn(*args: Any, **more: Any) -> Any:
        out = forward(*args, **more)
        if torch.is_grad_enabled():
            out.logits = out.logits + torch.randn_like(out.logits) * noisy.weight.abs().clamp(min=1)
        return out

    found.policy.model.forward = drawn
    with pytest.raises(StageError, match=r"unchanged weights differ by .* set the model's dropout to 0"):
        found.step(1, 10, prompts)


def test_every_pass_asks_every_prompt_once() -> None:
    passes = [place for step in range(15) for place in taken(step, 4, 20, seed=3)]
    for start in range(0, 60, 20):
        assert sorted(passes[start : start + 20]) == list(range(20))
    assert passes[:20] != passes[20:40]


# the stage


def stage(model: Any, **fields: Any) -> Any:
    written = {
        "kind": "ppo", "data": "@data", "model": model, "max_length": 40,
        "reward": {"kind": "function", "function": "feedback:letters"},
        "rollouts": {"kind": "hf", "max_tokens": 6},
        "optimisation": {"learning_rate": 0.02, "global_batch": 8, "steps": 6, "scheduler": "constant"},
        "algorithm": {"kl": {"target": 2.0, "horizon": 50}, "shaping": {"normalise": True}, "minibatches": 2},
        "scale": {"workers": 0}, "checkpointing": {"every_steps": 2},
        "validation": {"split": "validation", "every_steps": 3},
        "gold": {"reward": {"kind": "function", "function": "feedback:lower_case"}, "prompts": 4, "shown": 2},
    }  # fmt: skip
    return Stage.model_validate({**written, **fields})


def figures(root: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "times"} for line in trace(root)]


def prompts_at(root: Path) -> Path:
    dataset(root, [*asked(20), *asked(6, "validation")], "completion")
    return root


@pytest.mark.parametrize(
    ("method", "more"),
    [
        pytest.param({"lora": {"rank": 4}}, {}, marks=pytest.mark.slow),
        ({}, {"rollouts": {"kind": "hf", "max_tokens": 6, "staleness": 1}}),
        ({"lora": {"rank": 4}}, {"watchers": {"kl": {"limit": 0.05, "action": "roll_back"}, "roll_backs": 9}}),
    ],
    ids=["lora", "full, one step off", "with a way back"],
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, llama: Path, method: dict[str, Any], more: dict[str, Any]
) -> None:
    what = stage({"name": str(llama), **method}, **more)
    whole = run_stage(prompts_at(tmp_path / "whole"), what)
    root = prompts_at(tmp_path / "parts")
    feedback.fails_after = 8
    try:
        with pytest.raises(feedback.Failed):
            run_stage(root, what)
    finally:
        feedback.fails_after = None
    assert (root / "train" / "checkpoints").is_dir()
    again = run_stage(root, what)
    assert figures(root) == figures(tmp_path / "whole")
    assert any("alarms" in line for line in figures(root)) == ("watchers" in more)
    # samples of an older policy are known as such, and the others are the learner's own
    apart = [line["sync_gap"] > 1e-4 for line in figures(root)]
    assert apart == ([False] + [True] * 5 if "rollouts" in more else [False] * 6)
    for name in ("gold_gain", "reward_gain", "held_out_kl", "reward"):
        assert again.metrics[name] == whole.metrics[name]
    left = [load_trained(r / "train/model", device="cpu").model.state_dict() for r in (root, tmp_path / "whole")]
    assert all(torch.equal(value, left[1][name]) for name, value in left[0].items())


def test_the_stage_leaves_the_best_policy_and_says_what_it_did(tmp_path: Path, llama: Path) -> None:
    gold = {"reward": {"kind": "function", "function": "feedback:lower_case"}, "prompts": 4, "shown": 2}
    gold["judge"] = {"kind": "feedback:MostLetters"}
    made = run_stage(prompts_at(tmp_path), stage({"name": str(llama), "bottleneck": {"width": 4}}, gold=gold))
    store = Store.at(tmp_path).sub("train")
    seen = [store.read_json(f"looks/{name}") for name in store.list("looks")]
    assert [look["step"] for look in seen] == [0, 3, 6]
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-5)
    top = max(seen, key=lambda look: look["gold"])
    assert made.metrics["gold"] == top["gold"]
    assert made.metrics["gold_gain"] == pytest.approx(
        sum(b - a for a, b in zip(seen[0]["golds"], top["golds"], strict=True)) / 4
    )
    assert [len(look["shown"]) for look in seen] == [2, 2, 2]
    first = [row["completion"] for row in seen[0]["shown"]]
    for look in seen[1:]:
        shares = [feedback.letters([], [a, row["completion"]], []) for a, row in zip(first, look["shown"], strict=True)]
        wins = [0.5 if a == b else float(b > a) for a, b in shares if a and b]
        assert look["judged"] == len(wins)
        assert look.get("win_rate") == (pytest.approx(sum(wins) / len(wins)) if wins else None)
    assert "judged" not in seen[0]
    [section] = [part for part in sections({"train": made}) if part.anchor == "feedback-train"]
    assert len(section.pictures) == 1
    won = f"answers win {seen[-1]['win_rate']:.0%} of {seen[-1]['judged']}"
    compared = f"Judged against those from before training, {won}."
    learnt = (
        f"Kept is the policy after step {top['step']}, of which" if top["step"] else "Nothing that was learnt is kept"
    )
    kept = "" if top is seen[-1] else f" {learnt}"
    assert f"over 4 prompts.{kept}" in section.words[0]
    assert f"{compared} Reward and gold do not part" in section.words[0]
    assert re.match(r"A step takes [\d.e-]+ s in the median: sync [\d.e-]+, generate ", section.words[1])
    assert [len(table.rows) for table in section.tables] == [3, 2]
    lines = figures(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert all(line["sync_gap_max"] < 1e-3 for line in lines)
    assert {"generate", "score", "examine", "learn", "sync"} == set(trace(tmp_path)[0]["times"])
    assert load_trained(store.fetch("model"), device="cpu").objective == "language_model"


APART = {"advantage": {"kind": "gae", "value": {"trunk": "separate"}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "method", "more"),
    [
        (None, {"lora": {"rank": 4}}, {}),
        ({"stage": 2}, {"lora": {"rank": 4}}, {}),
        ({"stage": 1}, {}, {"algorithm": APART}),
        ({"stage": 2}, {}, {"algorithm": APART}),
    ],
    ids=["plain", "zero2", "zero1, full weights and a critic", "zero2, full weights and a critic"],
)
def test_two_learners_learn_what_one_does(
    tmp_path: Path, llama: Path, zero: Any, method: dict[str, Any], more: dict[str, Any], ray_session: Any
) -> None:
    """And when one of them is killed, they go on from the checkpoint to the same end as if it had not been."""
    found = []
    for workers, killed_at in ((0, None), (2, None), (2, 3)):
        root = prompts_at(tmp_path / f"{workers}-{killed_at}")
        scale = {"workers": workers, "cpus": 0.5, "deepspeed": zero if workers else None}
        with killer(root, at=killed_at) if killed_at else nullcontext([1]) as killed:
            run_stage(root, stage({"name": str(llama), **method}, scale=scale, **more))
        assert killed
        found.append(figures(root))
    alone, together, broken_off = found
    assert [line["rows"] for line in together] == [line["rows"] for line in alone]
    for name in ("reward", "loss", "kl", "entropy"):
        ours, theirs, resumed = ([line[name] for line in lines] for lines in (together, alone, broken_off))
        assert resumed == pytest.approx(ours, rel=1e-5, abs=1e-6)
        # later a sum in another order has turned a sampled token into its neighbour, and with it all that follows
        assert ours[:3] == pytest.approx(theirs[:3], abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, {"lora": {"rank": 4}}], ids=["full", "lora"])
def test_rewards_and_the_reference_may_have_actors_of_their_own(
    tmp_path: Path, llama: Path, method: dict[str, Any], ray_session: Any
) -> None:
    """The figures are those of a learner that does it all, also where an actor dies on the way."""
    found = []
    for name, scoring in (("one", {}), ("apart", {"placement": "disaggregate", "actors": 2, "cpus": 0.25})):
        root = prompts_at(tmp_path / name)
        scale = {"workers": 1, "cpus": 0.25}
        with killer(root, 2, "ray::Scorer") if scoring else nullcontext() as killed:
            run_stage(root, stage({"name": str(llama), **method}, scale=scale, scoring=scoring))
        assert killed or not scoring
        found.append([{**line, "seconds": 0} for line in figures(root)])
    alone, apart = found
    assert len(alone) == 6
    assert apart == alone


@pytest.mark.slow
def test_actors_draw_while_the_step_before_is_learnt(tmp_path: Path, llama: Path, ray_session: Any) -> None:
    """One step off, rollouts beside the learner are those that it would draw itself, also where an actor dies."""
    found = []
    for name, where in (("here", {}), ("apart", {"placement": "disaggregate", "actors": 2, "cpus": 0.25})):
        root = prompts_at(tmp_path / name)
        rollouts = {"kind": "hf", "max_tokens": 6, "staleness": 1, **where}
        with killer(root, 3, "ray::Mirror") if where else nullcontext() as killed:
            run_stage(root, stage(str(llama), scale={"workers": 1, "cpus": 0.25}, rollouts=rollouts))
        assert killed or not where
        found.append([{**line, "seconds": 0, "moved_bytes": 0} for line in figures(root)])
    here, apart = found
    assert len(here) == 6
    for ours, theirs in zip(apart, here, strict=True):
        assert ours.pop("rows") == theirs.pop("rows")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert all(line["sync_gap"] > 1e-4 for line in apart[1:]), "of the policy before"


def test_an_error_of_a_reward_in_an_actor_is_told_as_it_was_raised(ray_session: Any) -> None:
    nothing = {"reward": Reward.model_validate({"kind": "function", "function": "feedback:nothing"})}
    scorers = opened(Scoring(placement="disaggregate", actors=2, cpus=0.25), nothing, Inputs(), None, 1)
    try:
        assert scorers.reference is None
        assert disagreement(scorers.reward, ["p"], ["c"], [{}]) is None  # type: ignore[typeddict-item]
        with pytest.raises(StageError, match=r"^feedback:nothing gave the reward nan to completion 0 of 1"):
            scorers.reward(["p"] * 2, ["c"] * 2, [{}] * 2)  # type: ignore[typeddict-item]
    finally:
        scorers.close()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_half_precision_learns_with_a_critic(tmp_path: Path, llama: Path, critic: str) -> None:
    settings = {"learning_rate": 0.02, "global_batch": 8, "steps": 2, "precision": "bfloat16"}
    algorithm = {"advantage": {"kind": "gae", "value": {"trunk": critic}}}
    run_stage(prompts_at(tmp_path), stage(str(llama), optimisation=settings, algorithm=algorithm))
    lines = figures(tmp_path)
    assert len(lines) == 2
    assert all(math.isfinite(line["loss"]) and line["value_loss"] > 0 for line in lines)
    assert all(line["sync_gap"] < 0.05 for line in lines)


def test_an_actor_that_cannot_start_is_told_with_its_reason(ray_session: Any, tmp_path: Path) -> None:
    nowhere = {"reward": Reward.model_validate({"kind": "reward_model", "model": str(tmp_path)})}
    with pytest.raises(StageError, match=r"a scoring actor could not start: .*"):
        opened(Scoring(placement="disaggregate", cpus=0.25), nowhere, Inputs(), None, 1)


def test_no_number_stops_the_run_before_it_is_learnt_from(tmp_path: Path, llama: Path) -> None:
    nothing = {"kind": "sum", "parts": {"x": {"kind": "function", "function": "feedback:nothing"}}}
    with pytest.raises(StageError, match="gave the reward nan"):
        run_stage(prompts_at(tmp_path), stage(str(llama), reward=nothing, validation=None, gold={}))


def test_a_separate_critic_and_groups_without_one(tmp_path: Path, llama: Path) -> None:
    few = {"optimisation": {"steps": 2, "global_batch": 4, "learning_rate": 0.01}}
    for number, advantage in enumerate(
        [{"kind": "gae", "value": {"trunk": "separate"}}, {"kind": "grpo", "size": 2}, {"kind": "rloo", "size": 2}]
    ):
        algorithm = {"advantage": advantage, "kl": {"place": "loss", "estimator": "k3"}, "entropy": 0.01}
        root = prompts_at(tmp_path / str(number))
        made = run_stage(root, stage(str(llama), algorithm=algorithm, validation=None, gold={}, **few))
        lines = figures(root)
        assert all(math.isfinite(line["loss"]) for line in lines)
        assert (lines[1]["value_loss"] > 0) == (advantage["kind"] == "gae")
        assert made.metrics["samples"] == (8 if advantage["kind"] == "gae" else 16)


@pytest.mark.parametrize(
    "method",
    [
        {"freeze": {"blocks": [0, 1], "embeddings": True}},
        {"lora": {"rank": 4, "scaling": "rank_stabilized"}},
        {"lora": {"rank": 4, "variant": "dora"}},
        {"lora": {"rank": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}},
        {"ia3": {}},
    ],
    ids=["freeze", "rsLoRA", "DoRA", "patterns", "ia3"],
)
def test_other_methods_learn_from_feedback_too(tmp_path: Path, llama: Path, method: dict[str, Any]) -> None:
    """What is generated and what is learnt from agree after every update, and the weights that are trained change."""
    few = {"optimisation": {"steps": 3, "global_batch": 8, "learning_rate": 0.02, "scheduler": "constant"}}
    root = prompts_at(tmp_path)
    run_stage(root, stage({"name": str(llama), **method}, validation=None, gold={}, **few))
    lines = figures(root)
    assert len(lines) == 3
    assert all(line["sync_gap"] < 1e-4 for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(lines[2]["kl"]) > 1e-6  # an estimate, which may be below 0


def test_what_ppo_cannot_do_is_refused(tmp_path: Path) -> None:
    def problems(**fields: Any) -> list[str]:
        return [str(problem) for problem in stage(**{"model": "x", **fields}).check()]

    assert problems() == []
    assert "use init: zero" in problems(model={"name": "x", "lora": {"init": "pissa"}})[0]
    assert "take lora, ia3 or bottleneck" in problems(model={"name": "x", "prompt_tuning": {}})[0]
    assert "use bias: none" in problems(model={"name": "x", "lora": {"bias": "all"}})[0]
    steered = {"kl": {"coefficient": 0.05, "target": 4, "horizon": 7}}
    assert "7 is shorter than the 8 samples of a step" in problems(algorithm=steered)[0]
    assert "of which it could say nothing" in problems(gold={"reward": stage("x").reward.model_dump()})[0]
    heedless = {"scale": {"deepspeed": {"stage": 2}}, "watchers": {"non_finite": "log"}}
    assert "let it stop" in problems(**heedless, algorithm={"stop_at_kl": None})[0]
    assert "set it to 0" in problems(model={"name": "x", "lora": {"dropout": 0.1}})[0]
    assert "leaves no room for a prompt" in problems(rollouts={"kind": "hf", "max_tokens": 40})[0]
    assert "8 samples of a step are not divisible by 3" in problems(algorithm={"minibatches": 3})[0]
    assert "name another split" in problems(validation="train")[0]
    assert "there are none" in problems(validation=None)[0]
    assert "actors need Ray" in problems(rollouts={"kind": "hf", "max_tokens": 6, "placement": "disaggregate"})[0]
    by_vllm = {"kind": "vllm", "max_tokens": 6}
    assert problems(model={"name": "x", "lora": {}}, rollouts=by_vllm) == []
    for beyond in ({"variant": "dora"}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}):
        assert "use kind: hf" in problems(model={"name": "x", "lora": beyond}, rollouts=by_vllm)[0]
    assert "divides nothing" in problems(scale={"deepspeed": {"stage": 0}})[0]
    assert "actors need Ray" in problems(scoring={"placement": "disaggregate"})[0]
    resting = {"kind": "vllm", "max_tokens": 6, "sleep": True}
    assert "scale.gpus is 0" in problems(rollouts=resting)[0]
    for field, told in ({"placement": "disaggregate"}, "GPUs to themselves"), ({"staleness": 1}, "never rests"):
        [problem] = Rollouts.model_validate({**resting, **field}).check()
        assert told in problem.what
    back = {"watchers": {"kl": {"limit": 9, "action": "roll_back"}}, "algorithm": {"stop_at_kl": None}}
    assert "a rank alone cannot go back" in problems(scale={"deepspeed": {"stage": 2}}, **back)[0]
    assert stage("x", validation={"split": "validation", "every_steps": 1}).tells == ()
    dataset(tmp_path, [*asked(3), *asked(2, "validation")], "completion")
    folder = model_folder(tmp_path / "m", "t5")
    with pytest.raises(StageError, match="needs a causal language model"):
        run_stage(tmp_path, stage(str(folder)))


def test_one_held_out_prompt_is_too_few(tmp_path: Path, llama: Path) -> None:
    dataset(tmp_path, [*asked(8), *asked(1, "validation")], "completion")
    with pytest.raises(StageError, match=r"one prompt alone of split 'validation' fits.*hold out more"):
        run_stage(tmp_path, stage(str(llama)))


def test_what_a_cluster_must_hold_are_learners_and_the_actors_that_draw() -> None:
    actors = {"kind": "hf", "max_tokens": 6, "placement": "disaggregate", "actors": 5, "cpus": 2, "gpus": 0.5}

    def total(**fields: Any) -> dict[str, float]:
        kinds = stage("x", scale={"workers": 2, "cpus": 3}, **fields).at_work
        return {name: sum(kind.total.get(name, 0.0) for kind in kinds) for name in ("CPU", "GPU")}

    assert total(rollouts=actors) == {"CPU": 6 + 4 * 2, "GPU": 2.0}
    assert total(rollouts={**actors, "placement": "colocate"})["CPU"] == 6
    scoring = {"placement": "disaggregate", "actors": 2, "gpus": 1}
    assert total(rollouts=actors, scoring=scoring) == {"CPU": 6 + 4 * 2 + 2, "GPU": 2.0 + 2}


class Unlearnt:
    """In place of a learner: nothing but weights that can be saved."""

    def __init__(self) -> None:
        self.policy, self.model, self.tokenizer = self, self, self

    def save_pretrained(self, folder: Path) -> None:
        (folder / "weights").write_bytes(b"w")

    def save(self, folder: Path, writes: bool) -> None:
        """A checkpoint of nothing."""

    load = print


def test_the_best_weights_stay_until_no_checkpoint_that_may_be_taken_up_needs_them(tmp_path: Path) -> None:
    """Golds by look, some followed by a checkpoint, which only its successor's start makes certain."""
    golds = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 7: 0.7, 8: 0.8, 9: 0.0, 10: 0.9}
    held = SimpleNamespace(look=lambda _, step, first: {"step": step, "gold": golds[step], "kl": 0.0})
    store = Store.at(tmp_path)

    def begun() -> Loop:
        plan = Plan(11, 1, 0, validation=Validation(split="validation", every_steps=1))
        return Loop(Unlearnt(), [], held, plan, store, StoreLink(store), tmp_path / "good")  # type: ignore[arg-type]

    def left(loop: Loop, step: int, commits: bool) -> list[int]:
        loop.step = step
        loop._look()
        if commits:
            loop._commit()
        return [int(name.removeprefix("step-")) for name in store.list("best")]

    loop = begun()
    assert [left(loop, step, False) for step in (1, 2)] == [[1], [2]], "no checkpoint asks for any"
    assert [left(loop, step, step in (3, 6)) for step in (3, 4, 5, 6, 7)] == [[3], [3, 4], [3, 5], [3, 6], [3, 6, 7]]
    assert [left(loop, step, True) for step in (8, 9)] == [[6, 8], [8]]
    again = begun()
    again.resume()
    assert (again.step, left(again, 10, False)) == (9, [8, 10])


class Restarted:
    """In place of vLLM: an engine that dies in the first call and comes back with the weights from before training."""

    def __init__(self) -> None:
        self.life, self.loop, self.calls = SimpleNamespace(engine="first"), self, 0

    def run(self, work: Any) -> Any:
        return asyncio.run(work)


def serving(folder: Path, *, sleep: bool = False) -> Served:
    """Rollouts by vLLM, of which a test gives the engine and the policy."""
    served = object.__new__(Served)
    served.config, served.sleeps, served.asleep = VllmRollouts(staleness=1), sleep, None
    served.folder, served.version, served.given, served.adapter = folder, -1, {}, None
    return served


def test_an_engine_that_was_started_anew_gets_the_weights_before_it_is_heard(tmp_path: Path) -> None:
    served, told = serving(tmp_path), []
    served.engine, served.policy, served.given = Restarted(), SimpleNamespace(), {"weight": torch.ones(1)}  # type: ignore[assignment]

    async def every(asks: Any) -> list[Any]:
        told.append(f"asked {served.engine.life.engine}")
        if len(told) == 1:
            served.engine.life.engine = "second"
        return [served.engine.life.engine]

    async def send() -> None:
        told.append("sent")

    served._all, served._send = every, send  # type: ignore[method-assign]
    assert served.generate([]) == ["second"]
    assert told == ["asked first", "sent", "asked second"]


def dead() -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError()


class Mortal:
    """In place of vLLM's engine: one that has died, that dies while it takes weights, or that lives."""

    def __init__(self, name: str, told: list[str], dies: str | None) -> None:
        self.name, self.told, self.dies, self.errored = name, told, dies, dies == "before"
        self.held: dict[str, torch.Tensor] = {}

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        if self.errored:
            raise dead()
        self.told.append(f"{self.name}: {method}")
        if method == "take_weights":
            path, size, bucket = args
            memory = buckets.mapped(path, size)
            self.held |= {name: memory[at:to].clone().view(torch.float32) for name, _, _, at, to in bucket}
        if self.dies:
            self.errored = True
            await asyncio.Event().wait()

    async def sleep(self, level: int) -> None:
        self.told.append(f"{self.name} sleeps at level {level}")

    async def wake_up(self) -> None:
        if self.errored:
            raise dead()
        self.told.append(f"{self.name} wakes")

    async def reset_prefix_cache(self) -> None:
        self.told.append(f"{self.name} forgets")

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        if self.errored:
            raise dead()
        yield self.name

    def shutdown(self, timeout: float) -> None:
        self.told.append(f"{self.name} ends")


@pytest.mark.parametrize(("dies", "begun"), [("before", []), ("while", ["first: begin_weights"])])
def test_an_engine_may_die_while_the_policy_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, begun: list[str]
) -> None:
    told: list[str] = []
    engines = [Mortal("first", told, dies), Mortal("second", told, None)]
    monkeypatch.setattr(Life, "start", lambda life, arguments: setattr(life, "engine", engines.pop(0)))
    served = mortal(tmp_path)
    before = {name: weight.clone() for name, weight in served.policy.model.state_dict().items()}
    assert served.sync() == sum(weight.nbytes for weight in before.values())
    with torch.no_grad():
        for weight in served.policy.model.parameters():
            weight.add_(1)  # what was asked before is answered by the weights of then
    assert served.generate([]) == ["second"]
    assert told == [*begun, "first ends", *all_given("second")]
    held = served.engine.life.engine.held
    assert held.keys() == before.keys()
    assert all(torch.equal(held[name], weight.flatten()) for name, weight in before.items())


def all_given(engine: str) -> list[str]:
    """What an engine is told that is given all weights."""
    return [*(f"{engine}: {method}_weights" for method in ("begin", "take", "end")), f"{engine} forgets"]


def mortal(folder: Path, **more: bool) -> Served:
    """On an engine of the test's own, with full weights."""
    served = serving(folder, **more)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=8, num_hidden_layers=1, vocab_size=8))
    served.engine, served.policy = Engine({}, restarts=1), SimpleNamespace(adapted=False, version=0, model=model)  # type: ignore[assignment]

    async def every(asks: Any) -> list[Any]:
        return [await served.engine.ask([1], None, None)]

    served._all = every  # type: ignore[method-assign]
    return served


def test_vllm_sleeps_while_the_policy_learns_and_is_awake_to_take_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    engines = [Mortal("first", told, None), Mortal("second", told, None)]
    monkeypatch.setattr(Life, "start", lambda life, arguments: setattr(life, "engine", engines.pop(0)))
    served = mortal(tmp_path, sleep=True)
    assert served.generate([]) == ["first"]
    assert told == ["first sleeps at level 1"]
    served.sync()
    assert served.generate([]) == served.generate([]) == ["first"]
    naps = ["first wakes", "first sleeps at level 1"]
    assert told[1:] == ["first wakes", *all_given("first"), "first sleeps at level 1", *naps]
    # one that died in its sleep is not woken, and the next one is awake
    served.engine.life.engine.errored = True
    told.clear()
    assert served.generate([]) == ["second"]
    assert told == ["first ends", *all_given("second"), "second sleeps at level 1"]


def test_memory_counts_the_reference_and_the_critic() -> None:
    sized = {"x": Weights(parameters=1000, stored=4000, shapes={"a.weight": (20, 50)})}.get
    held = 4000 + 4000 + 2 * 4000  # weights, gradients, moments
    separate = {"advantage": {"kind": "gae", "value": {"trunk": "separate"}}}
    assert stage("x", algorithm={}).memory(sized) == held + 4000
    assert stage("x", algorithm=separate).memory(sized) == 2 * held + 4000
    adapted = stage({"name": "x", "lora": {"rank": 1}}, algorithm={}).memory(sized)
    assert adapted == 4 * 1070 + 3 * 4 * 70


# what watches


def line(**changes: float) -> dict[str, float]:
    usual = {"loss": 0.1, "grad_norm": 1.0, "reward": 0.0, "kl": 1.0, "entropy": 2.0, "ratio_max": 1.5}
    return {**usual, "value_loss": 1.0, **changes}


@pytest.mark.parametrize(
    ("changes", "detector", "action"),
    [
        ({"grad_norm": math.nan}, "non_finite: grad_norm", "stop"),
        ({"reward": math.inf}, "non_finite: reward", "stop"),
        ({"kl": 51.0}, "kl", "raise_kl"),
        ({"entropy": 0.01}, "entropy", "log"),
        ({"ratio_max": 21.0}, "ratio", "log"),
        ({"value_loss": 21.0}, "value_loss", "log"),
    ],
)
def test_detectors(changes: dict[str, float], detector: str, action: str) -> None:
    assert alarms(Watchers(), line(), [1.0] * 9) == []  # type: ignore[arg-type]
    [alarm] = alarms(Watchers(), line(**changes), [1.0] * 9)
    assert (alarm.detector, alarm.action) == (detector, action)


def test_alarms_are_acted_on(tmp_path: Path, llama: Path) -> None:
    made = {}

    def run(name: str, action: str, limit: float = -1.0, steps: int = 3) -> list[dict[str, Any]]:
        root = prompts_at(tmp_path / name)
        what = stage(
            str(llama), watchers={"kl": {"limit": limit, "action": action}}, validation=None, gold={},
            algorithm={"kl": {"coefficient": 0.1}},
            optimisation={"learning_rate": 0.02, "global_batch": 8, "steps": steps, "scheduler": "constant"},
        )  # fmt: skip
        made[name] = run_stage(root, what)
        return figures(root)

    quiet = run("quiet", "log", steps=12)
    assert all([alarm["detector"] for alarm in item["alarms"]] == ["kl"] for item in quiet)
    assert [item["kl_coefficient"] for item in run("dear", "raise_kl")] == [0.1, 0.2, 0.4]
    [told] = [table for table in sections({"train": made["dear"]})[0].tables if "detectors" in table.caption]
    [[*row, first, last]] = told.rows
    assert row == ["kl", -1.0, "raise_kl", 3, 1, 3]
    assert first == pytest.approx(0, abs=1e-4) != last
    with pytest.raises(StageError, match=r"at step 1 kl is .*limit -1; lower"):
        run("stopped", "stop")
    # the last step is the first beyond this limit: what is left is the policy of a checkpoint before the step before
    # it, for what a step sees is what the update before it has done
    kls = [item["kl"] for item in quiet]
    last = next(number for number in range(3, 12) if kls[number] > max(kls[:number]))
    back = run("back", "roll_back", (max(kls[:last]) + kls[last]) / 2, steps=last + 1)
    assert ["alarms" in item for item in back] == [False] * last + [True]
    run("good", "log", 99.0, steps=(last - 1) // 2 * 2)
    left, wanted = (load_trained(tmp_path / name / "train/model", device="cpu").model for name in ("back", "good"))
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in left.state_dict().items())


def look(step: int, golds: list[float], rewards: list[float], kl: float = 1.0) -> dict[str, Any]:
    means = {"gold": sum(golds) / len(golds), "reward": sum(rewards) / len(rewards)}
    return {"step": step, "golds": golds, "rewards": rewards, "kl": kl, **means}


def test_without_a_gold_reward_none_is_spoken_of(tmp_path: Path, llama: Path) -> None:
    made = run_stage(prompts_at(tmp_path), stage(str(llama), gold={"prompts": 4}))
    [section] = [part for part in sections({"train": made}) if part.anchor == "feedback-train"]
    assert section.words[0].startswith("The reward that is trained on changed by")
    assert "No gold reward was given" in section.words[0]
    assert "part" not in section.words[0]


def test_a_policy_that_went_much_further_than_its_target_is_not_kept(tmp_path: Path, llama: Path) -> None:
    kl = {"target": 1e-4, "horizon": 50}
    made = run_stage(prompts_at(tmp_path), stage(str(llama), algorithm={"kl": kl}))
    assert made.metrics["best_step"] == 0
    [section] = [part for part in sections({"train": made}) if part.anchor == "feedback-train"]
    assert "Nothing that was learnt is kept" in section.words[0]
    assert stage("x", algorithm={"kl": kl}).gold.bounded(Kl(target=3.0)).max_kl == 6.0
    assert stage("x", gold={"max_kl": 1}).gold.bounded(Kl(target=3.0)).max_kl == 1.0


def test_where_reward_and_gold_part_is_said() -> None:
    first = look(0, [0.0, 0.1, 0.0, 0.1], [0.0, 0.0, 0.1, 0.1], 0.0)
    better = look(10, [1.0, 1.2, 1.1, 1.0], [1.0, 1.1, 1.0, 1.1], 2.0)
    hacked = look(20, [0.1, 0.2, 0.0, 0.3], [3.0, 3.1, 3.0, 3.2], 30.0)
    assert looks.parting([first, better]) is None
    assert looks.parting([first, better, hacked]) == 10
    middling = look(30, [0.9, 1.1, 1.0, 1.0], [1.1, 1.2, 1.0, 1.1], 3.0)
    assert looks.parting([first, better, hacked, middling]) == 10, "that it came back later takes nothing away"
    assert looks.best([first, better, hacked], None) is better
    assert looks.best([first, better, hacked], 1.0) is first
    mean, low, high = looks.gain(first["golds"], better["golds"])
    assert (mean, low > 0.9, high < 1.2) == (pytest.approx(1.025), True, True)
    assert looks.waited([first, better, hacked], 1, 0.0)
    assert not looks.waited([first, better], 1, 0.0)


def test_a_gain_without_the_luck_of_the_choice() -> None:
    # two looks that are as good as the first but by luck, each on another half of the prompts
    noise = [0.3, -0.3, 0.2, -0.2, 0.4, -0.4]
    found = [look(0, [0.0] * 6, [0.0] * 6), look(5, noise, noise), look(10, [-n for n in noise], noise)]
    assert looks.crossed(found, None)[0] == pytest.approx(-0.3)
    assert looks.gain(found[0]["golds"], looks.best(found, None)["golds"])[0] == 0.0
    # where one look is the best whichever half is asked, there was no luck
    sure = [found[0], look(5, [1.0, 1.1, 0.9, 1.0, 1.2, 1.0], noise), found[2]]
    assert looks.crossed(sure, None) == pytest.approx(looks.gain(sure[0]["golds"], sure[1]["golds"]))


def test_probes_see_what_is_repeated_and_refused() -> None:
    found = probes(["I'm sorry, I can't help", "go on and go on and go on and go"])
    assert found["refusals"] == 0.5
    assert found["words"] == 7.5
    # nine trigrams of ten words... of three kinds
    assert found["repetition"] == pytest.approx((0 + 1 - 3 / 8) / 2)
