"""Proximal policy optimisation: ours beside TRL 1.12's experimental PPOTrainer, its last release that has one.

The peer environment, given as `--peer PEER_VENV/bin/python`: Python 3.11 with trl 1.12.0 and the versions of torch,
transformers, peft, accelerate and datasets that are in our own requirements.

Both sides learn with the same model, prompts of 64 tokens, completions of up to 32, batch, passes and minibatches, and
score with a classifier of the same size, whose head is untrained: what is measured is speed. Of equal structure are
policy, reference, critic and reward each with all their weights. "LoRA" on our side is an adapter whose base is the
reference, and a critic on the policy's own layers; TRL with LoRA still needs a critic of full size.

Products are of bfloat16 on both sides, as TRL has it unless told otherwise, or of float32. With LoRA in bfloat16 our
base is held in it, too: nothing trains it.

Packed and padded experience are compared on prompts of 8 to 64 tokens, ours alone: no peer is needed for that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.paired import Facts, Worker, paired, serve_one, timed
from tests.bench.result import Options, Result, banking_texts, compared

SUMMARY = "samples a second of PPO, over TRL's experimental trainer"
PROMPT, ROOM, PASSES, MINIBATCHES = 64, 32, 4, 1
RATE = 1e-6


@dataclass(frozen=True)
class Shape:
    """What a side is made of."""

    #: LoRA and a shared trunk, instead of all weights and a second trunk
    adapter: bool
    #: products of bfloat16, instead of float32
    half: bool = True
    packed: bool = True
    #: whether prompts have from 8 tokens to PROMPT, instead of PROMPT all of them
    varied: bool = False


Side = Callable[[Path, int, Shape], Callable[[], None]]


def prompts(tokenizer: Any, count: int, *, varied: bool = False) -> list[list[int]]:
    """Token ids of so many prompts."""
    ids = tokenizer(" ".join(banking_texts(count * 6)))["input_ids"]
    lengths = [8 + at * 7919 % (PROMPT - 7) if varied else PROMPT for at in range(count)]
    return [ids[at * PROMPT : at * PROMPT + length] for at, length in enumerate(lengths)]


def ours(folder: Path, batch: int, shape: Shape) -> Callable[[], None]:
    from tilth.config import ModelName
    from tilth.data.loading import load_tokenizer
    from tilth.data.schema import original
    from tilth.data.transform import Inputs
    from tilth.train.config import ModelConfig, Optimisation
    from tilth.train.ppo.advantages import Critic as CriticConfig
    from tilth.train.ppo.advantages import Gae
    from tilth.train.ppo.decoding import Decoder
    from tilth.train.ppo.learner import Learner, Settings
    from tilth.train.ppo.policy import Critic, Policy
    from tilth.train.ppo.prompts import Prompt
    from tilth.train.ppo.rollouts import Home, HuggingFaceRollouts
    from tilth.train.ppo.scorers import Scorers
    from tilth.train.ppo.settings import Algorithm
    from tilth.train.ppo.source import Source
    from tilth.train.rewards import RewardModel

    name = ModelName(str(folder / "policy"))
    adapter = {"lora": {"rank": 16}, "dtype": "bfloat16" if shape.half else "float32"} if shape.adapter else {}
    config = ModelConfig.model_validate({"name": name, **adapter})
    source = Source(Inputs(), config)
    critic = CriticConfig(trunk="shared" if shape.adapter else "separate")
    second = None if shape.adapter else Critic(source.model("cpu"))
    policy = Policy(source.model("cpu"), valued=shape.adapter, critic=second, half=shape.half)
    rollouts = HuggingFaceRollouts(max_tokens=ROOM)
    decoder = Decoder(rollouts, Home(policy, source.tokenizer(), source, PROMPT + ROOM))
    algorithm = Algorithm(advantage=Gae(value=critic), epochs=PASSES, minibatches=MINIBATCHES, packing=shape.packed)
    settings = Settings(algorithm, rollouts, Optimisation(learning_rate=RATE))
    score = RewardModel(model=ModelName(str(folder / "reward"))).load(Inputs())
    learner = Learner(policy, load_tokenizer(folder / "policy"), decoder, Scorers(score), settings)
    tokenizer = learner.tokenizer
    asked = [
        Prompt(original(str(number), "train", {}), tokenizer.decode(ids), tuple(ids))
        for number, ids in enumerate(prompts(tokenizer, batch, varied=shape.varied))
    ]
    step = iter(range(1000))
    return lambda: _noted(learner.step(next(step), 1000, asked))


def trl(folder: Path, batch: int, shape: Shape) -> Callable[[], None]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def classifier() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(folder / "reward")

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts(tokenizer, batch)])
    args = PPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, report_to="none", save_strategy="no", num_sample_generations=0,
        per_device_train_batch_size=min(8, batch), gradient_accumulation_steps=batch // min(8, batch),
        num_ppo_epochs=PASSES, num_mini_batches=MINIBATCHES, total_episodes=batch, response_length=ROOM,
        local_rollout_forward_batch_size=min(8, batch), learning_rate=RATE, temperature=1.0, disable_tqdm=True,
        bf16=shape.half, gradient_checkpointing=False,
    )  # fmt: skip
    reference = None if shape.adapter else AutoModelForCausalLM.from_pretrained(folder / "policy")
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        ref_model=reference, reward_model=classifier(), value_model=classifier(), train_dataset=rows,
        eval_dataset=rows, peft_config=LoraConfig(r=16, target_modules="all-linear") if shape.adapter else None,
    )  # fmt: skip
    return trainer.train  # type: ignore[no-any-return]


#: where the last step of ours spent its time
_spent: dict[str, float] = {}


def _noted(line: dict[str, Any]) -> None:
    _spent.clear()
    _spent.update(line["times"])


SIDES: dict[str, tuple[Side, Shape]] = {
    "ours, LoRA": (ours, Shape(adapter=True)),
    "ours, equal structure": (ours, Shape(adapter=False)),
    "ours, LoRA, float32": (ours, Shape(adapter=True, half=False)),
    "ours, equal structure, float32": (ours, Shape(adapter=False, half=False)),
    "ours, LoRA, packed": (ours, Shape(adapter=True, varied=True)),
    "ours, LoRA, padded": (ours, Shape(adapter=True, varied=True, packed=False)),
    "TRL": (trl, Shape(adapter=False)),
    "TRL, float32": (trl, Shape(adapter=False, half=False)),
    "TRL, LoRA": (trl, Shape(adapter=True)),
}
#: ours, the other, what is aimed at
PAIRS = (
    ("ours, LoRA, packed", "ours, LoRA, padded", None),
    ("ours, LoRA", "TRL", 3.0),
    ("ours, equal structure", "TRL", 1.5),
    ("ours, LoRA, float32", "TRL, float32", 3.0),
    ("ours, equal structure, float32", "TRL, float32", 1.5),
    ("ours, LoRA", "TRL, LoRA", None),
)


def side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    """One measurement: samples a second of one step, and where ours spent it."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    folder, batch = Path(arguments[0]), int(arguments[1])
    build, shape = SIDES[name]
    step = build(folder, batch, shape)
    return lambda: {**timed(batch, step), **{f"seconds {key}": value for key, value in _spent.items()}}


def weights(folder: Path) -> None:
    """SmolLM2-135M as a policy, and as a classifier of one output."""
    from transformers import AutoModelForSequenceClassification

    from tilth import models
    from tilth.data.loading import load_pretrained, load_tokenizer

    source = models.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    tokenizer = load_tokenizer(source)
    load_pretrained(source, "language_model", dtype="float32").model.save_pretrained(folder / "policy")
    classifier = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype="float32")
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)


def missing(options: Options) -> str | None:
    return None


def peerless(options: Options) -> str | None:
    """Why there is no peer to measure beside."""
    if options.peer is None:
        return "needs --peer, the python of an environment with trl 1.12.0 (tests/bench/ppo.py says which)"
    asked = [options.peer, "-c", "import trl.experimental.ppo"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return None if done.returncode == 0 else f"{options.peer} cannot import it: {done.stderr.strip()[-200:]}"


def measure(options: Options) -> Iterator[Result]:
    batch = str(options.size(8, 32))
    with tempfile.TemporaryDirectory() as name:
        weights(Path(name))
        for us, peer, aim in PAIRS:
            python = sys.executable
            if not peer.startswith("ours"):
                if why := peerless(options):
                    print(f"ppo: {us} / {peer}: skipped: {why}", file=sys.stderr)
                    continue
                python = options.peer or ""
            with ExitStack() as stack:
                a = stack.enter_context(Worker(__spec__.name, us, name, batch))
                b = stack.enter_context(Worker(__spec__.name, peer, name, batch, python=python))
                found = paired(a, b, options.rounds)
            parts = [key for key in found.a[-1] if key.startswith("seconds ")]
            split = ", ".join(f"{key.removeprefix('seconds ')} {found.a[-1][key]:.3g}" for key in parts)
            note = f"samples, not rows; {batch} of them a step, whose seconds with us are {split}"
            yield compared(f"ppo: {us} / {peer}", found, aim, note)


if __name__ == "__main__":
    serve_one({name: lambda arguments, name=name: side(name, arguments) for name in SIDES})  # type: ignore[misc]
