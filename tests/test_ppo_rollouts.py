"""Rollouts beside the learner: in Ray actors, of which any may die, and by vLLM, which takes weights anew."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import feedback
from processes import alive, descendants, until
from tilth.config import ModelName
from tilth.data.loading import Card, load_tokenizer
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.engines import buckets
from tilth.models import identity, resolve
from tilth.train.config import ModelConfig, Optimisation
from tilth.train.ppo.learner import Learner, Settings
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.prompts import prompts_of
from tilth.train.ppo.rollouts import Ask, Generating, Home, Rollouts
from tilth.train.ppo.scorers import Scorers
from tilth.train.ppo.settings import Algorithm
from tilth.train.ppo.source import Source
from tiny import model_folder
from training import SMOLLM

pytestmark = pytest.mark.slow
VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def opened(
    model: str, peft: dict[str, Any], rollouts: dict[str, Any], room: int = 64
) -> tuple[Policy, Any, Generating]:
    """A policy, its tokenizer, and a generator on it."""
    source = Source(Inputs(), ModelConfig.model_validate({"name": ModelName(model), **peft}))
    config = Rollouts.model_validate(rollouts)
    policy = Policy(source.model("cpu"), valued=True, temperature=config.temperature)
    tokenizer = source.tokenizer()
    return policy, tokenizer, config.start(Home(policy, tokenizer, source, room))


def test_a_dead_actors_prompts_are_drawn_again_to_the_same_samples(tmp_path: Path, ray_session: Any) -> None:
    model = str(model_folder(tmp_path / "llama", "llama"))
    wanted = [Ask(f"r{i}", tuple(range(5, 7 + i)), i) for i in range(7)]
    small = {"max_tokens": 8, "cpus": 0.5, "kind": "hf"}
    here, _, alone = opened(model, {"lora": {"rank": 4}}, small)
    there, _, pool = opened(model, {"lora": {"rank": 4}}, {**small, "placement": "disaggregate", "actors": 2})
    try:
        for policy in (here, there):
            torch.manual_seed(1)
            with torch.no_grad():
                for weight in policy.served().values():
                    weight.add_(torch.randn_like(weight) * 0.3)
            policy.version += 1
        before = alone.generate(wanted)
        assert pool.sync() == 2 * sum(weight.nbytes for weight in there.served().values())
        assert pool.sync() == 0
        first = pool.generate(wanted)
        os.kill(pool.actors.pids()[1], signal.SIGKILL)  # type: ignore[attr-defined]
        second = pool.generate(wanted)
    finally:
        pool.close()
    for found in (first, second):
        assert [sample.tokens for sample in found] == [sample.tokens for sample in before]
        assert [sample.ask for sample in found] == wanted


@VLLM
def test_a_pool_of_vllm_actors_serves_what_is_learnt_and_loses_none(ray_session: Any) -> None:
    """Also where one is killed; and with the pool goes all that its actors started."""
    wanted = [Ask(f"r{i}", tuple(range(500, 504 + i)), i) for i in range(7)]
    engine = {"kv_cache_gib": 0.1, "max_num_seqs": 8, "enforce_eager": True}
    served = {"kind": "vllm", "max_tokens": 8, "engine": engine, "placement": "disaggregate", "actors": 2, "cpus": 0.5}
    policy, _, pool = opened(SMOLLM, {"lora": {"rank": 4}}, served)
    try:
        pool.sync()
        first = pool.generate(wanted)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in policy.served().values():
                weight.add_(torch.randn_like(weight) * 0.02)
        policy.version += 1
        assert pool.sync() > 0
        second = pool.generate(wanted)
        [killed, other] = pool.actors.pids()  # type: ignore[attr-defined]
        engines = descendants(killed) | descendants(other)
        os.kill(killed, signal.SIGKILL)
        third = pool.generate(wanted)
        engines |= {child for actor in pool.actors.pids() for child in descendants(actor)}  # type: ignore[attr-defined]
    finally:
        pool.close()
    for found in (first, second, third):
        assert [sample.ask for sample in found] == wanted
    assert [sample.tokens for sample in second] != [sample.tokens for sample in first]
    for sample in (*second, *third):
        ids = torch.tensor([[*sample.ask.prompt, *sample.tokens]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(sample.ask.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(sample.logprobs), expected, atol=1e-3)
    assert len(engines) >= 3
    assert until(lambda: not alive(engines), 30)


def fine_tuned(folder: Path) -> str:
    """An adapter on SmolLM2, whose weights no number of 16 bits holds."""
    model = Source(Inputs(), ModelConfig.model_validate({"name": SMOLLM, "lora": {"rank": 4}})).model("cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.add_(0.01 * torch.randn_like(weight))
    model.save_pretrained(folder)
    base = str(resolve(SMOLLM))
    Card(base=base, peft="lora", base_identity=identity(base)).write(folder)
    load_tokenizer(base).save_pretrained(folder)
    return str(folder)


@VLLM
@pytest.mark.parametrize(
    ("peft", "below"),
    [
        ({"lora": {"rank": 8}}, None),
        ({}, None),
        ({"freeze": {"blocks": [0, 20], "embeddings": True}}, None),
        ({"lora": {"rank": 8, "scaling": "rank_stabilized"}}, None),
        ({"lora": {"rank": 8}}, fine_tuned),
        ({}, fine_tuned),
    ],
    ids=["lora", "full", "freeze", "rsLoRA", "lora on an adapter", "full on an adapter"],
)
def test_vllm_holds_the_learners_weights_after_every_update(
    peft: dict[str, Any], below: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities of the same sequences are equal; where an update is held back, that is found out."""
    monkeypatch.setattr(buckets, "BUCKET", 2**25)  # so that there are many, and one weight is larger
    engine = {"kv_cache_gib": 0.5, "max_num_seqs": 16}
    model = below(tmp_path) if below else SMOLLM
    policy, tokenizer, served = opened(model, peft, {"kind": "vllm", "max_tokens": 8, "engine": engine})
    try:
        rows = [
            original(f"r{i}", "train", {"prompt": f"The capital of {name} is"})
            for i, name in enumerate(("France", "Peru", "Japan", "Kenya"))
        ]
        prompts, _ = prompts_of(rows, tokenizer, 32)
        rate = 1e-3 if peft else 2e-5
        settings = Settings(Algorithm(), served.config, Optimisation(learning_rate=rate, scheduler="constant"))  # type: ignore[attr-defined]
        learner = Learner(policy, tokenizer, served, Scorers(feedback.letters), settings)
        lines = [learner.step(step, 4, prompts) for step in range(3)]
        for line in lines:
            assert line["sync_gap"] < 1e-3
            assert line["sync_ratio"] == pytest.approx(1, abs=1e-3)
            assert line["moved_bytes"] > 0
        assert lines[1]["ratio_max"] > 1.001  # the weights did change
        served.sync()
        with torch.no_grad():
            for weight in policy.served().values():
                weight.mul_(1.5).add_(0.05 * torch.randn_like(weight))
        with pytest.raises(StageError, match="does not hold the learner's weights"):
            learner.step(3, 4, prompts)
    finally:
        served.close()
