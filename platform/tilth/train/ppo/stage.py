"""The stage ppo: a language model learns from what a reward says of its own completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tilth.config import EXECUTION
from tilth.errors import Problem, StageError
from tilth.nodes import Workers
from tilth.train.base import Training
from tilth.train.memory import FLOAT32
from tilth.train.ppo.placement import Placed, Scoring
from tilth.train.ppo.rollouts import HuggingFaceRollouts, Rollouts, VllmRollouts
from tilth.train.ppo.settings import Algorithm, Gold, Watchers
from tilth.train.rewards import Reward

if TYPE_CHECKING:
    from tilth.train.checkpoint import Link
    from tilth.train.job import Job
    from tilth.weights import Sized

#: figures of the last step that become metrics
TOLD = ("reward", "kl", "entropy", "length", "ended", "sync_ratio", "sync_gap")


class Ppo(Training):
    """Reinforcement learning from rewards on the prompts of a dataset.

    A step asks `optimisation.global_batch` prompts, scores the completions, and learns from them in
    `algorithm.epochs` passes of `algorithm.minibatches` optimizer steps. `optimisation.epochs` counts passes over the
    prompts. With `validation`, held-out prompts are answered every `every_steps` steps and scored by `gold`, and the
    best policy by it is kept. `max_length` bounds prompt and completion together; a longer prompt is not asked, and
    counted. The reference is the model as it begins: with an adapter the same weights and the adapter off.
    """

    # what went beyond twice its KL target is not taken for the best
    version: ClassVar[int] = 4

    reward: Reward = Field(description="What completions are worth.")
    scoring: Scoring = Field(Scoring(), json_schema_extra=EXECUTION, description="Where rewards are computed.")
    rollouts: Rollouts = Field(HuggingFaceRollouts(), description="What draws completions.")
    algorithm: Algorithm = Field(Algorithm(), description="How is learnt from them.")
    watchers: Watchers = Field(Watchers(), description="What goes wrong, and what is done then.")
    gold: Gold = Field(Gold(), description="How held-out prompts are looked at, and by which other reward.")

    def objective_of(self, row_type: str) -> str:
        if row_type not in ("completion", "preference", "text", "chat"):
            raise StageError(
                f"ppo needs rows with a prompt (completion, preference, text or chat), not {row_type} rows"
            )
        return "feedback"

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        """Tokens of one look at every sample, an upper bound; they are looked at a few times more."""
        found = super().estimate(rows)
        return {**found, "tokens": found["tokens"] * self.algorithm.advantage.samples}

    def memory(self, sized: Sized) -> float | None:
        """Also of the reference, where it is a copy, and of a separate critic; rewards and vLLM come on top."""
        held, weights = super().memory(sized), sized(self.model.name)
        if held is None or weights is None:
            return None
        width = 2 if self.model.dtype == "bfloat16" else FLOAT32
        own = self.model.peft is None and not self.scoring.apart
        copies = width * weights.parameters * max(1, self.scale.workers) if own else 0
        critic = self.algorithm.advantage.critic
        return held + copies + (held if critic and critic.trunk == "separate" else 0.0)

    @property
    def at_work(self) -> tuple[Workers, ...]:
        """The learners, and the actors that draw completions and score them."""
        learners = max(1, self.scale.workers)
        actors = [part.workers_of(learners) for part in self._placed().values() if part.apart]
        return *super().at_work, *actors

    @property
    def half(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return self.optimisation.precision == "bfloat16"

    @property
    def tolerance(self) -> float:
        """How far learner and generator may be apart, in nats a token."""
        if self.watchers.sync is not None:
            return self.watchers.sync
        peft = self.model.peft
        coarse = self.half or self.model.dtype != "float32" or (peft is not None and peft.quantized)
        return 0.05 if coarse else 0.005

    def _placed(self) -> dict[str, Placed]:
        """The parts that may have actors of their own, by field."""
        return {"rollouts": self.rollouts, "scoring": self.scoring}

    @property
    def tells(self) -> tuple[str, ...]:
        """Nothing while it runs: it looks at answers, and has no loss on held-out rows."""
        return ()

    def trainer(self) -> Callable[[Job, Link], None]:
        from tilth.train.ppo.worker import train

        return train

    def figures(self, result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        gained = (
            "gold",
            "gold_gain",
            "gold_gain_low",
            "gold_gain_high",
            "gold_gain_crossed",
            "gold_gain_crossed_low",
            "gold_gain_crossed_high",
            "reward_gain",
            "win_rate",
            "held_out_kl",
            "parting",
        )
        samples = sum(line["samples"] for line in lines)
        seconds = sum(line["seconds"] for line in lines)
        return {
            **{name: lines[-1][name] for name in TOLD},
            **{name: result[name] for name in gained if name in result},
            "samples": samples,
            "samples_per_second": round(samples / seconds, 3) if seconds else 0.0,
            "prompts_too_long": result["prompts_too_long"],
            "packed": result["packed"],
            "alarms": sum(len(line.get("alarms", ())) for line in lines),
        }

    def check(self) -> list[Problem]:
        return [*super().check(), *self._shape(), *self._unfit(), *self._batches()]

    def _shape(self) -> Iterator[Problem]:
        if self.rollouts.max_tokens >= self.max_length:
            what = f"{self.rollouts.max_tokens} leaves no room for a prompt in max_length {self.max_length}"
            yield Problem("rollouts.max_tokens", what, f"use at most {self.max_length // 2}, or a larger max_length")
        if self.gold.reward is not None and self.validation is None:
            yield Problem("gold.reward", "scores held-out prompts, and there are none", "set validation to their split")
        if self.gold.reward is not None and self.gold.reward == self.reward:
            what = "is the reward that is trained on, of which it could say nothing"
            yield Problem("gold.reward", what, "name another measure of the same, or leave it out")
        if self.gold.judge is not None and self.validation is None:
            yield Problem("gold.judge", "compares answers to held-out prompts, and there are none", "set validation")
        if self.validation and self.validation.split == self.split:
            yield Problem("validation.split", f"{self.split} is trained on", "name another split")
        if self.validation and self.validation.answers:
            yield Problem("validation.answers", "held-out prompts are answered in any case", "leave it out; see gold")
        if isinstance(self.rollouts, VllmRollouts) and self.rollouts.sleep and not self.scale.gpus:
            yield Problem("rollouts.sleep", "gives a GPU's memory back, and scale.gpus is 0", "leave it out")
        for name, part in self._placed().items():
            if part.apart and not self.scale.workers:
                what = "actors need Ray, and scale.workers is 0"
                yield Problem(f"{name}.placement", what, "use colocate, or 1 worker")

    def _unfit(self) -> Iterator[Problem]:
        from tilth.train.prompts import Prompts

        peft = self.model.peft
        if isinstance(peft, Prompts):
            what = f"{peft.kind} is no change of weights that rollouts could serve"
            yield Problem("model.peft", what, "take lora, ia3 or bottleneck")
        yield from self.model.without_reference()
        yield from self.rollouts.unfit(peft)
        if getattr(peft, "dropout", 0):
            what = "dropout makes the ratio of unchanged weights differ from 1"
            yield Problem("model.peft.dropout", what, "set it to 0")
        if self.tasks:
            yield Problem("tasks", "feedback is learnt from as one task", "leave tasks out")
        if self.optimisation.neftune:
            yield Problem(
                "optimisation.neftune", "noise makes the ratio of unchanged weights differ from 1", "leave it out"
            )
        if self.optimisation.learning_rate == "auto" or self.optimisation.averaging:
            what = "rollouts are of the very weights that learn, at a rate that is given"
            yield Problem("optimisation", what, "give learning_rate a number and leave out averaging")
        if self.model.freeze and self.model.freeze.thaw_steps:
            yield Problem("model.freeze.thaw_steps", "ppo freezes for good", "leave it out")
        if others := [name for name in self.trackers if name != "tensorboard"]:
            yield Problem("trackers", f"ppo tells its figures to tensorboard, not to {others[0]}", "leave it out")
        if self.scale.micro_batch or self.scale.activation_offload:
            what = "ppo counts its micro-batches in tokens, and keeps activations where they are"
            yield Problem("scale", what, "leave out micro_batch and activation_offload; set algorithm.tokens_at_once")
        yield from self._deepspeed()

    def _deepspeed(self) -> Iterator[Problem]:
        zero = self.scale.zero
        if self.scale.deepspeed == "auto" or (zero and zero.stage == 3):
            what = "rollouts and the reference need whole weights, which ZeRO stage 3 divides"
            yield Problem("scale.deepspeed", what, "use stage 1 or 2, or null")
        if zero and zero.stage == 0:
            yield Problem("scale.deepspeed.stage", "stage 0 divides nothing among the learners", "use 1 or 2, or null")
        if zero and self.watchers.rolls_back:
            what = "a rank alone cannot go back to what DeepSpeed has divided among all"
            yield Problem("watchers", f"roll_back: {what}", "let them stop or raise_kl, or set scale.deepspeed to null")
        if zero and self.watchers.non_finite != "stop":
            what = f"{self.watchers.non_finite}: DeepSpeed has applied what is not finite before it is seen"
            yield Problem("watchers.non_finite", what, "let it stop, or set scale.deepspeed to null")
        if zero and self.algorithm.stop_at_kl is not None:
            what = "DeepSpeed has divided a gradient before it is known to go too far"
            yield Problem("algorithm.stop_at_kl", what, "set it to null, or scale.deepspeed to null")

    def _batches(self) -> Iterator[Problem]:
        samples = self.optimisation.global_batch * self.algorithm.advantage.samples
        if self.algorithm.kl.target is not None and samples > self.algorithm.kl.horizon:
            what = f"{self.algorithm.kl.horizon} is shorter than the {samples} samples of a step: the price would jump"
            yield Problem("algorithm.kl.horizon", what, f"use {10 * samples} or so, {samples} at least")
        parts = self.algorithm.minibatches * max(1, self.scale.workers)
        if samples % parts:
            each = f"{self.algorithm.minibatches} minibatches x {max(1, self.scale.workers)} workers"
            mend = f"use a global_batch that makes it a multiple of {parts}"
            yield Problem("algorithm.minibatches", f"{samples} samples of a step are not divisible by {each}", mend)
