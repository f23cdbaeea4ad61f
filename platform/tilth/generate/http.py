"""Generation by any server that speaks OpenAI's API: a hosted model, vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, Component
from tilth.data.transform import Inputs
from tilth.generate.base import AHEAD, Generate, Generator


class Pace(Component):
    """How fast a worker asks, and how patiently. A stage with several workers asks several times as fast."""

    concurrency: int = Field(16, ge=1, description="Requests under way at a time.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most requests begun in a minute.")
    tokens_per_minute: float | None = Field(None, gt=0, description="Most tokens, of prompts and answers, in a minute.")
    timeout: float = Field(300.0, gt=0, description="Seconds after which a request without an answer has failed.")
    max_attempts: int = Field(6, ge=1, description="Requests until a prompt counts as failed.")


class Http(Generator):
    """A server with the API of OpenAI: chat turns to /chat/completions, plain texts to /completions.

    Busy servers, broken connections and broken answers are asked again, ever more slowly and not before a server
    says so; what a server refuses is not. A prompt that fails has a failure; that many in a row end the stage. A
    server that gives fewer samples than asked for is asked for the rest. The tokens of several samples come as one
    sum, which is divided by the length of their texts unless `logprobs` counts them.
    """

    version: ClassVar[int] = 2  # a choice may be written with a full stop, in quotes or in capitals

    base_url: str = Field(
        pattern="^https?://",
        description="Address up to and with /v1. Another one may be another model: stages are run again.",
    )
    model: str = Field(min_length=1, description="The model, as the server calls it.")
    api_key_env: str | None = Field(
        None,
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra=EXECUTION,
        description="Environment variable of the workers that holds the key, never the key; none: no key.",
    )
    guided: Literal["json_schema", "vllm", "none"] = Field(
        "json_schema",
        description="How the shape of an answer is asked for: OpenAI's response_format (choices are only checked), "
        "vLLM's structured_outputs, or not at all.",
    )
    logprobs: bool = Field(False, description="Ask for the log-probabilities of answers.")
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the most tokens; newer models of OpenAI the latter."
    )
    extra: Mapping[str, Any] = Field(default_factory=dict, description="Further fields of each request's body.")
    pace: Pace = Field(default_factory=Pace, json_schema_extra=EXECUTION, description="Speed and patience.")

    @property
    def in_flight(self) -> int:
        return AHEAD * self.pace.concurrency

    def load(self, inputs: Inputs) -> Generate:
        from tilth.generate.engines.openai import OpenAIEngine

        return OpenAIEngine(self)
