"""Where completions come from while a policy learns: what is asked, what comes back, and the kinds of generators.

The seam is small so that others fit in: several turns, tools or a server would be another kind. A kind writes `open`;
what that returns generates, takes new weights, and is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from tilth.config import EXECUTION
from tilth.errors import Problem
from tilth.generate.vllm import VllmEngine
from tilth.train.peft import Lora, Peft
from tilth.train.ppo.placement import Placed

if TYPE_CHECKING:
    from tilth.train.ppo.policy import Policy
    from tilth.train.ppo.source import Source


@dataclass(frozen=True)
class Ask:
    """One completion to make: the row of its prompt, the prompt's tokens, and the seed of all its randomness."""

    row: str
    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Sample:
    """A completion: its tokens, the mark that ended it included, and log p of each under the policy that drew it."""

    ask: Ask
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    #: whether it ended of itself, and was not cut off
    ended: bool

    @staticmethod
    def of(plain: dict[str, Any]) -> Sample:
        """What `dataclasses.asdict` made of a sample, read from JSON."""
        ask = Ask(plain["ask"]["row"], tuple(plain["ask"]["prompt"]), plain["ask"]["seed"])
        return Sample(ask, tuple(plain["tokens"]), tuple(plain["logprobs"]), plain["ended"])

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.ask.prompt) + len(self.tokens)


class Generating(Protocol):
    """Rollouts at work."""

    #: whether it has weights of its own, so that it can draw while the policy learns
    concurrent: bool

    def generate(self, asks: Sequence[Ask]) -> list[Sample]:
        """One sample for each ask, in order; the same for the same ask and weights, whatever else is asked."""

    def sync(self) -> int:
        """Take the policy's present weights; returns the bytes that were moved."""

    def close(self) -> None:
        """Let go of all that was started."""


@dataclass(frozen=True)
class Home:
    """What a generator may need of the learner: the policy, its tokenizer, and where the policy came from."""

    policy: Policy
    tokenizer: Any
    source: Source
    #: tokens of prompt and completion together
    max_length: int
    #: how many learners there are, which share the actors
    learners: int = 1


class Rollouts(Placed, family="rollouts"):
    """How completions are drawn.

    There is no top-p and no top-k: what they cut off has no probability, and a ratio of probabilities is then wrong.
    """

    max_tokens: int = Field(64, ge=1, description="Longest completion, in tokens.")
    temperature: float = Field(1.0, gt=0, le=2, description="Divides logits, in generation and in learning alike.")
    staleness: Literal[0, 1] = Field(
        0, description="1: samples are drawn while the step before is learnt, and weighted for it."
    )
    max_weight: float = Field(2.0, ge=1, description="Such weights are truncated to this.")

    def start(self, home: Home) -> Generating:
        """The generator where `placement` says."""
        if not self.apart:
            return self.open(home)
        from tilth.train.ppo.pool import Pool

        return Pool(self, home, self.actors_of(home.learners) // home.learners)

    def unfit(self, peft: Peft | None) -> list[Problem]:
        """Which adapters it cannot serve."""
        return []

    def open(self, home: Home) -> Generating:
        """The generator in this process."""
        raise TypeError(f"{type(self).__name__} must define open()")


class HuggingFaceRollouts(Rollouts):
    """The policy's own weights in this process, decoded with a cache: nothing to install, nothing to move."""

    tokens_at_once: int = Field(
        8192, ge=64, json_schema_extra=EXECUTION, description="Tokens of prompts and longest completions in a batch."
    )

    def open(self, home: Home) -> Generating:
        from tilth.train.ppo.decoding import Decoder

        return Decoder(self, home)


class VllmRollouts(Rollouts):
    """vLLM (Kwon et al. 2023, arXiv:2309.06180): adapters are loaded anew, full weights sent in buckets."""

    engine: VllmEngine = Field(default_factory=VllmEngine, description="How vLLM runs.")
    sleep: bool = Field(
        False,
        json_schema_extra=EXECUTION,
        description="Give the learner's GPU back while it learns: vLLM's weights wait in main memory, its cache is "
        "dropped (sleep mode, level 1).",
    )

    def check(self) -> list[Problem]:
        if self.sleep and self.apart:
            return [Problem("sleep", "actors have GPUs to themselves", "leave it out, or use placement: colocate")]
        if self.sleep and self.staleness:
            what = "samples are drawn while the step before is learnt, so that vLLM never rests"
            return [Problem("sleep", what, "leave it out, or use staleness: 0")]
        return []

    def unfit(self, peft: Peft | None) -> list[Problem]:
        if peft is not None and peft.quantized:
            what = "vLLM would serve the base as it is, and the learner reads it in 4 bits"
            return [Problem("rollouts", what, "use kind: hf, or an adapter on the base as it is")]
        if peft is None or (isinstance(peft, Lora) and peft.plain):
            return []
        what = f"vLLM takes full weights and plain LoRA anew, not {peft.kind} as it is set"
        way_out = "use kind: hf, or lora with variant: plain, bias: none and no rank_pattern or alpha_pattern"
        return [Problem("rollouts", what, way_out)]

    def open(self, home: Home) -> Generating:
        from tilth.train.ppo.served import Served

        return Served(self, home)
