"""A client of OpenAI's API that loses no sample: retries, limits, and an answer for every prompt."""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import openai

from tilth.data.schema import row_seed
from tilth.errors import StageError
from tilth.generate.base import Answer, Completion, Finish, Prompt
from tilth.generate.engines.loop import Loop
from tilth.generate.engines.pacing import Limiter, backoff, ordered_wait

if TYPE_CHECKING:
    from tilth.generate.http import Http

# so many prompts that fail one after the other are the server's fault, not theirs
HOPELESS = 20
_FINISH: dict[str, Finish] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "content_filter": "filtered",
}
_AGAIN = {408, 409, 425, 429}
# wrong key, wrong address: no prompt will fare better
_FATAL = {401, 404}


class _BrokenError(Exception):
    """An answer that cannot be read."""


class _RefusedError(Exception):
    """The server will not answer this prompt, however often it is asked; `its_fault` where it could not at all."""

    def __init__(self, why: str, *, its_fault: bool) -> None:
        super().__init__(why)
        self.its_fault = its_fault


@dataclass(frozen=True)
class Reply:
    """What one request gave."""

    completions: list[Completion]
    prompt_tokens: int
    completion_tokens: int


class OpenAIEngine:
    """Implements `tilth.generate.base.Generate`."""

    def __init__(self, config: Http) -> None:
        self.config = config
        self.key = _key(config)
        self.loop = Loop("tilth-http")
        self.client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=self.key or "none", max_retries=0, timeout=config.pace.timeout
        )
        self.slots = asyncio.Semaphore(config.pace.concurrency)
        self.requests, self.tokens = Limiter(config.pace.requests_per_minute), Limiter(config.pace.tokens_per_minute)
        #: prompts that failed since one succeeded, whether one ever did, and why nothing more is asked
        self.failed, self.succeeded, self.hopeless = 0, False, ""
        weakref.finalize(self, _close, self.loop, self.client)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return self.loop.run(self._all(prompts))

    async def _all(self, prompts: Sequence[Prompt]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._answer(prompt)) for prompt in prompts]
        except* StageError as errors:
            raise errors.exceptions[0] from None
        if self.hopeless:
            raise StageError(self.hopeless)
        return [task.result() for task in tasks]

    async def _answer(self, prompt: Prompt) -> Answer:
        """All n completions: a server that gives fewer is asked for the rest, with other seeds.

        The likeliest answer is asked for once, whatever n: it is the same each time, and some servers refuse.
        """
        own = self.config.sampling.temperature if prompt.temperature is None else prompt.temperature
        wanted = prompt.n if own else 1
        found = Answer()
        while len(found.completions) < wanted:
            have = len(found.completions)
            seed = prompt.seed if have == 0 else row_seed(prompt.seed, str(have), "more")
            body = request(self.config, prompt, seed, wanted - have)
            try:
                reply = await self._reply(prompt, body)
            except _RefusedError as error:
                self._count_failure(error)
                return Answer((), found.prompt_tokens, found.completion_tokens, f"server: {error}")
            self.failed, self.succeeded = 0, True
            found = Answer(
                (*found.completions, *reply.completions[: wanted - have]),
                found.prompt_tokens + reply.prompt_tokens,
                found.completion_tokens + reply.completion_tokens,
            )
        return replace(found, completions=found.completions * (prompt.n // wanted))

    def _count_failure(self, error: _RefusedError) -> None:
        """A server that answered before may well dislike many prompts in a row, say for their length."""
        self.failed += error.its_fault or not self.succeeded
        if self.failed >= HOPELESS and not self.hopeless:
            self.hopeless = f"{self.config.base_url}: {self.failed} prompts in a row failed, the last one with {error}"

    async def _reply(self, prompt: Prompt, body: Mapping[str, Any]) -> Reply:
        """The reply to a request, asked again where that may help; _RefusedError where it does not."""
        attempt = 1
        while True:
            try:
                return await self._attempt(prompt, body)
            except (openai.APIConnectionError, openai.APIStatusError, TimeoutError, _BrokenError) as error:
                why, wait = self._said(error), self._patience(error)
            if attempt == self.config.pace.max_attempts:
                raise _RefusedError(f"{why} ({attempt} attempts)", its_fault=True)
            await asyncio.sleep(backoff(attempt, wait))
            attempt += 1

    async def _attempt(self, prompt: Prompt, body: Mapping[str, Any]) -> Reply:
        expected = len(json.dumps(body)) / 4 + body["n"] * body[self.config.length_field]
        async with self.slots:
            await self.requests.wait()
            await self.tokens.wait(expected)
            if self.hopeless:
                raise _RefusedError("not asked, since the server answers nothing", its_fault=True)
            async with asyncio.timeout(self.config.pace.timeout):
                text = await self._post(prompt, body)
        reply = read(text, prompt)
        if spent := reply.prompt_tokens + reply.completion_tokens:
            self.tokens.spend(spent - expected)
        return reply

    async def _post(self, prompt: Prompt, body: Mapping[str, Any]) -> str:
        model = self.config.model
        if isinstance(prompt.messages, str):
            plain = self.client.completions.with_raw_response
            raw = await plain.create(model=model, prompt=prompt.messages, extra_body=body)
        else:
            chat = self.client.chat.completions.with_raw_response
            raw = await chat.create(model=model, messages=[dict(turn) for turn in prompt.messages], extra_body=body)
        found: str = raw.http_response.text
        return found

    def _said(self, error: Exception) -> str:
        """The error in words, without the key, should a server repeat it."""
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return f"no answer within {self.config.pace.timeout:g} s"
        words = f"{error}: {error.__cause__}" if isinstance(error, openai.APIConnectionError) else str(error)
        return words.replace(self.key, "***") if self.key else words

    def _patience(self, error: Exception) -> float:
        """Seconds that the server orders to wait; raises where asking again is no use."""
        if not isinstance(error, openai.APIStatusError):
            return 0.0
        if error.status_code in _FATAL:
            raise StageError(f"{self.config.base_url} refuses model {self.config.model!r}: {self._said(error)}")
        if error.status_code not in _AGAIN and error.status_code < 500:
            raise _RefusedError(self._said(error), its_fault=False)
        return ordered_wait(error.response.headers)


def _close(loop: Loop, client: openai.AsyncOpenAI) -> None:
    loop.close(client.close())


def _key(config: Http) -> str:
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise StageError(
            f"environment variable {config.api_key_env} is not set where the worker runs, but api_key_env names it; "
            "set it on every node before Ray starts (not in a recipe or runtime_env, which are stored)"
        )
    return key


def request(config: Http, prompt: Prompt, seed: int, count: int) -> dict[str, Any]:
    """The body of a request, but for the model and the question itself."""
    own = config.sampling
    body: dict[str, Any] = {
        "n": count,
        # JSON's numbers are exact to 53 bits, and some servers take 32
        "seed": seed & 0x7FFFFFFF,
        "temperature": own.temperature if prompt.temperature is None else prompt.temperature,
        "top_p": own.top_p,
        config.length_field: own.max_tokens if prompt.max_tokens is None else prompt.max_tokens,
    }
    if stops := (*own.stop, *prompt.stop):
        body["stop"] = list(stops)
    # not of OpenAI's API: told only to servers that are asked for it
    if own.top_k:
        body["top_k"] = own.top_k
    if own.repetition_penalty != 1.0:
        body["repetition_penalty"] = own.repetition_penalty
    if config.logprobs:
        body["logprobs"] = 0 if isinstance(prompt.messages, str) else True
    return {**body, **_shape(config, prompt), **config.extra}


def _shape(config: Http, prompt: Prompt) -> dict[str, Any]:
    """What makes the server keep to the shape."""
    if prompt.shape is None or config.guided == "none":
        return {}
    choices, schema = prompt.shape.choices, json.loads(prompt.shape.schema or "null")
    if config.guided == "vllm":
        return {"structured_outputs": {"choice": list(choices)} if choices else {"json": schema}}
    if choices:
        return {}
    named = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: every object closed, with all of its properties required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if "properties" in schema and not (
        schema.get("additionalProperties") is False and set(schema["properties"]) == set(schema.get("required", ()))
    ):
        return False
    return all(map(_is_strict, schema.values()))


def read(text: str, prompt: Prompt) -> Reply:
    """A server's answer; _BrokenError where it is not what the API says."""
    try:
        data = json.loads(text)
        completions = [_completion(choice) for choice in data["choices"]]
        usage = data.get("usage") or {}
        asked, given = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _BrokenError(
            f"an answer that cannot be read ({type(error).__name__}: {error}): {text[:200]!r}"
        ) from error
    if not completions:
        raise _BrokenError("an answer without a choice")
    return Reply(_with_tokens(completions, given), asked, given)


def _completion(choice: Mapping[str, Any]) -> Completion:
    """One sample. An end that the server does not name is taken for a cut: it may be one."""
    message = choice.get("message") or {}
    text = choice["text"] if "text" in choice else message.get("content")
    refused = bool(message.get("refusal"))
    logs = _logs(choice.get("logprobs") or {})
    finish = "filtered" if refused else _FINISH.get(choice.get("finish_reason") or "", "length")
    return Completion(text or message.get("refusal") or "", finish, len(logs or ()), sum(logs) if logs else None)


def _logs(said: Mapping[str, Any]) -> list[float] | None:
    if said.get("content"):
        return [item["logprob"] for item in said["content"]]
    return said.get("token_logprobs")


def _with_tokens(completions: list[Completion], given: int) -> list[Completion]:
    """Samples with their share of the tokens where the server did not count them one by one."""
    if any(item.tokens for item in completions):
        return completions
    size = sum(len(item.text) for item in completions) or 1
    counts = [round(given * len(item.text) / size) for item in completions]
    counts[0] += given - sum(counts)
    return [
        Completion(item.text, item.finish, count, item.logprob) for item, count in zip(completions, counts, strict=True)
    ]
