"""What is asked of a language model, what it answers, and the family of generators that do it.

| kind  | what answers                              | guided by a schema | seeds            | likelihoods |
|-------|-------------------------------------------|--------------------|------------------|-------------|
| vllm  | vLLM's engine in the worker, GPU or CPU   | yes                | per completion   | yes         |
| hf    | transformers' `generate` in the worker    | yes                | per completion   | yes         |
| http  | any OpenAI-compatible server              | where it can       | if the server can| no          |
| echo  | a rule: for dry runs and tests            | yes                | per completion   | no          |

A method or judge calls `generator.open(inputs)` once in a worker and gets a function from prompts to answers:
one answer for each prompt, in order, with all n completions, each with how it ended. One that holds the model itself
also tells how likely that finds a text: `load_likelihood(inputs)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from pydantic import Field

from tilth.config import Component, ModelRef
from tilth.data.transform import Inputs
from tilth.generate.shape import Shape

if TYPE_CHECKING:
    from tilth.data.passes import Window

Message = Mapping[str, str]
#: how the names of a judge's tokens begin, among those of a row
JUDGE = "judge_"
#: stop: the model ended; length: it was cut off; filtered: a server withheld it; malformed: not of the shape asked for
Finish = Literal["stop", "length", "filtered", "malformed"]


@dataclass(frozen=True)
class Prompt:
    """One question. `messages` are chat turns {role, content}; a str is continued as it stands, without a template.

    `seed` decides all randomness of its completions, whatever else is in the call. None: as the generator is set.
    """

    messages: tuple[Message, ...] | str
    seed: int = 0
    n: int = 1
    shape: Shape | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample. `tokens` counts its own; `logprob` sums their natural log-probabilities, None where not told;
    `value` is what a shaped text means: the parsed JSON, or the choice."""

    text: str
    finish: Finish = "stop"
    tokens: int = 0
    logprob: float | None = None
    value: Any = None

    @property
    def whole(self) -> bool:
        """Whether it ended of itself and has the shape asked for: only then may it pass for complete."""
        return self.finish == "stop"


@dataclass(frozen=True)
class Answer:
    """All n completions of a prompt, or why there are none (`name: detail`); tokens include those of retries."""

    completions: tuple[Completion, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: str | None = None

    @property
    def first(self) -> Completion:
        """The first completion; an empty malformed one where there is none."""
        return self.completions[0] if self.completions else Completion("", "malformed")

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}


#: an engine that takes so many prompts at a time has so many times as many in flight: those of a unit that ends are few
AHEAD = 2

#: Prompts → one answer each, in order. Thread-safe: units of several threads share one engine.
Generate = Callable[[Sequence[Prompt]], list[Answer]]


class Likelihood(Protocol):
    """How likely a causal language model finds what stands in windows of at most `max_length` tokens.

    `conditioned`: its texts were trained after their labels, and so they are to be scored.
    """

    tokenizer: Any
    max_length: int
    conditioned: bool

    def __call__(self, windows: Sequence[Window]) -> list[float]:
        """For each window, in order, the negative log-likelihood in nats that its targets sum to."""


class SamplingParams(Component):
    """How completions are drawn; names and meanings are vLLM's."""

    temperature: float = Field(0.7, ge=0, le=2, description="0: the likeliest token each time.")
    top_p: float = Field(0.95, gt=0, le=1, description="Only the best tokens that together hold this probability.")
    top_k: int = Field(0, ge=0, description="Only the k best tokens; 0: all.")
    repetition_penalty: float = Field(1.0, gt=0, le=5, description="Above 1 makes tokens already seen less likely.")
    max_tokens: int = Field(512, ge=1, description="Longest completion, in tokens; what is cut there says so.")
    stop: tuple[str, ...] = Field((), description="Texts or special tokens at which a completion ends; left out.")


class Generator(Component, family="generator"):
    """Answers prompts. A kind writes `load`; who asks calls `open`."""

    sampling: SamplingParams = Field(default_factory=SamplingParams, description="How completions are drawn.")
    system: str = Field("", description="System message put before chat turns that have none.")
    retries: int = Field(2, ge=0, le=10, description="Times that an answer without the shape asked for is asked again.")

    @property
    def in_flight(self) -> int:
        """Rows that one worker should have in flight, so that its engine never runs empty between two units."""
        return 1

    @property
    def title(self) -> str:
        """What lineage calls the model."""
        return str(getattr(self, "model", self.kind))

    def unclipped(self) -> Self:
        """The same generator, which draws from all tokens, by the model's own probabilities but for the temperature."""
        plain = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        return self.model_copy(update={"sampling": self.sampling.model_copy(update=plain)})

    def load(self, inputs: Inputs) -> Generate:
        """The engine; called once in each worker. Its answers need not be of the shape that was asked for."""
        raise TypeError(f"{type(self).__name__} must define load()")

    def open(self, inputs: Inputs) -> Generate:
        """The engine with the system message, and with answers checked against the shape asked for."""
        from tilth.generate.asking import Asking

        return Asking(self, self.load(inputs))


class LocalModel(Generator, family="generator"):
    """What generators that hold the model themselves share."""

    model: ModelRef = Field(description='Hub name, directory, or "@stage"; a model or an adapter on one.')
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as it is stored.")
    chat_template: str | None = Field(None, description="Jinja template instead of the tokenizer's own.")
    max_model_len: int | None = Field(
        None, ge=16, description="Tokens of prompt and completion together; none: as many as the model knows."
    )

    def load_likelihood(self, inputs: Inputs) -> Likelihood:
        """How likely the model finds texts; called once in each worker. It draws nothing, so `sampling` is not read.

        ModelError where it is no causal language model.
        """
        raise TypeError(f"{type(self).__name__} must define load_likelihood()")


def total_usage(answers: Sequence[Answer]) -> dict[str, int]:
    """The tokens of several answers together."""
    return {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }
