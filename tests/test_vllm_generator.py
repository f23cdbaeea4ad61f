"""Generator `vllm` with vLLM's real engine and a real small model, on the CPU."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processes import alive, descendants, kill, titled, until
from test_generators import CITY, SMOLLM, adapter_at, mixed, texts, turns
from tilth.config import digest, identity
from tilth.data.transform import Inputs
from tilth.errors import ModelError, StageError, TilthError
from tilth.generate.base import Answer, Generate, Prompt, SamplingParams
from tilth.generate.engines.prompts import Encoded
from tilth.generate.engines.vllm import parameters
from tilth.generate.engines.vllm_engine import Engine, Life
from tilth.generate.hf import HuggingFace
from tilth.generate.shape import Shape
from tilth.generate.vllm import Vllm

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
SMALL = {"kv_cache_gib": 0.5, "max_num_seqs": 64}


def config(engine: dict[str, Any] | None = None, **fields: Any) -> Vllm:
    # float32: what is compared shall not depend on the processor, where auto is bfloat16 on some
    given = {"model": SMOLLM, "max_model_len": 512, "dtype": "float32", "engine": {**SMALL, **(engine or {})}, **fields}
    return Vllm.model_validate(given)


def cores() -> list[int]:
    """vLLM's engine processes below this one."""
    return titled(descendants(os.getpid()), "::EngineCore")


@pytest.fixture(scope="module")
def vllm() -> Iterator[Generate]:
    """A generator; its engine ends with the module."""
    ask = config(logprobs=True, sampling=SamplingParams(max_tokens=8)).open(Inputs())
    yield ask
    del ask


@pytest.mark.long
def test_answers_are_whole_seeded_shaped_and_measured(vllm: Generate, capfd: pytest.CaptureFixture[str]) -> None:
    """All that needs no other engine, in one test, since the engine takes half a minute to start."""
    every_sample_whatever_the_batch(vllm)
    seeds_decide(vllm)
    ends_are_told(vllm)
    long_prompts_are_read_together(vllm)
    shapes_are_kept(vllm)
    room_is_measured(vllm)
    log_probabilities_agree_with_transformers(vllm)
    threads_share_the_engine(vllm)
    # a judge beside a generator: the same model and engine, asked otherwise
    judge = config(sampling=SamplingParams(temperature=0.0, max_tokens=4), system="Judge.").open(Inputs())
    assert judge([Prompt(turns("Is this good?"))])[0].first.tokens == 4
    assert len(cores()) == 1
    assert capfd.readouterr().out == ""


def every_sample_whatever_the_batch(ask: Generate) -> None:
    prompts = [Prompt(p.messages, p.seed, n=4, temperature=1.5) for p in mixed(8)]
    together = texts(ask(prompts))
    assert [len(set(found)) for found in together] == [4] * 8
    assert texts(ask(prompts[::-1])) == together[::-1]


def seeds_decide(ask: Generate) -> None:
    def first(seed: int, temperature: float | None) -> list[str]:
        return texts(ask([Prompt(turns("Tell me a story"), seed, n=2, temperature=temperature)]))[0]

    # the largest seed of a row, to which a sample's number is added
    largest = first(2**63 - 1, None)
    assert first(2**63 - 1, None) == largest
    assert not {*largest} & {*first(7, None)}
    assert len({*first(1, 0.0), *first(2, 0.0)}) == 1


def ends_are_told(ask: Generate) -> None:
    ended, cut, stopped = ask([
        Prompt(turns("What is 2 + 2? Answer with one number."), temperature=0.0, max_tokens=200),
        Prompt(turns("Tell me a very long story."), max_tokens=5),
        Prompt("The colours are red, green, blue, red, green, blue, red,", temperature=0.0, stop=("blue",)),
    ])  # fmt: skip
    assert ended.first.finish == "stop"
    assert (cut.first.finish, cut.first.tokens, cut.completion_tokens, cut.first.whole) == ("length", 5, 5, False)
    assert (stopped.first.finish, stopped.first.text) == ("stop", " green, ")


def long_prompts_are_read_together(ask: Generate) -> None:
    """More tokens than vLLM reads in one step: on a CPU a seeded prompt must not be cut between two of them."""
    answers = ask([Prompt(f"{number} " + "card " * 300, number, max_tokens=2) for number in range(12)])
    assert [answer.first.tokens for answer in answers] == [2] * 12
    assert sum(answer.prompt_tokens for answer in answers) > 3000


def shapes_are_kept(ask: Generate) -> None:
    city = Prompt(turns("Name a city with stars, as JSON"), n=2, shape=Shape.of(CITY), max_tokens=60)
    choice = Prompt(turns("Which is best?"), n=8, shape=Shape(choices=("red", "green", "blue")), temperature=1.5)
    # what no grammar expresses is asked for freely, and checked
    beyond = Shape.of({"type": "object", "propertyNames": {"pattern": "^x"}, "minProperties": 1, "not": {"const": {}}})
    cities, chosen, free = ask([city, choice, Prompt(turns("Say x"), shape=beyond, max_tokens=4)])
    assert all(item.whole and item.value["stars"] in range(1, 6) for item in cities.completions)
    assert {item.value for item in chosen.completions} <= {"red", "green", "blue"}
    assert free.first.finish in ("length", "malformed")


def room_is_measured(ask: Generate) -> None:
    long, nearly = ask([Prompt("card " * 600), Prompt("card " * 508, temperature=0.0)])
    assert long.failure == "prompt_too_long: 601 tokens, the model reads 511 and answers"
    assert (nearly.first.finish, nearly.first.tokens) == ("length", 3)


def log_probabilities_agree_with_transformers(ask: Generate) -> None:
    other = HuggingFace(model=SMOLLM).open(Inputs())
    prompts = [
        Prompt(text, temperature=0.0, max_tokens=16) for text in ("The capital of France is", "Once upon a time")
    ]
    for a, b in zip(ask(prompts), other(prompts), strict=True):
        assert a.first.text == b.first.text
        assert a.first.logprob == pytest.approx(b.first.logprob, abs=1e-3)


def threads_share_the_engine(ask: Generate) -> None:
    parts = [[Prompt(f"Thread {t} says {i}", seed=i) for i in range(4)] for t in range(3)]
    found: dict[int, list[Answer]] = {}

    def run(number: int) -> None:
        found[number] = ask(parts[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, part in enumerate(parts):
        same(found[number], ask(part))


def same(found: list[Answer], expected: list[Answer]) -> None:
    """The same answers, but for the last digits of log-probabilities: sums depend on who else is in the batch."""

    def said(answers: list[Answer]) -> list[Answer]:
        return [replace(a, completions=tuple(replace(c, logprob=None) for c in a.completions)) for a in answers]

    def sums(answers: list[Answer]) -> list[float | None]:
        return [item.logprob for answer in answers for item in answer.completions]

    assert said(found) == said(expected)
    assert sums(found) == pytest.approx(sums(expected), abs=1e-3)


def test_the_identity_is_what_is_said_not_how_it_runs() -> None:
    def mark(*args: Any, **fields: Any) -> str:
        return digest(identity(config(*args, **fields), str))

    same = [mark(), mark({"tensor_parallel": 2}), mark({"kv_cache_gib": 3.0, "max_num_seqs": 4}), mark({"restarts": 0})]
    assert len(set(same)) == 1
    assert len({mark(), mark({"quantization": "fp8"}), mark(dtype="bfloat16"), mark(max_model_len=256)}) == 4


def test_the_engine_is_told_the_tokens_that_end_a_completion() -> None:
    """It knows those of the base alone: an adapter may have a tokenizer with another end."""
    given = parameters(config(), Prompt("a", stop=("<turn>",)), Encoded((5,), 8, ends=(2, 300)))
    assert (given.stop, given.stop_token_ids) == (["<turn>"], [2, 300])


def test_no_room_for_a_prompt_is_found_before_anything_starts() -> None:
    (problem,) = config(max_model_len=64).check()
    assert problem.where == "sampling.max_tokens"


@pytest.mark.slow
def test_a_killed_engine_is_replaced_and_every_prompt_answered_once() -> None:
    ask = config({"restarts": 1}).open(Inputs())
    prompts = [Prompt(turns(f"Tell me about {i}"), seed=i, n=2, max_tokens=60) for i in range(12)]
    expected = ask(prompts)
    (core,) = cores()
    found: list[list[Answer]] = []
    thread = threading.Thread(target=lambda: found.append(ask(prompts)))
    thread.start()
    kill(core)
    thread.join()
    (again,) = found
    same(again, expected)
    (second,) = cores()
    assert second != core
    kill(second)
    with pytest.raises(StageError, match=r"vLLM's engine died and may not be started again \(engine.restarts\)"):
        ask(prompts)
    assert until(lambda: not cores(), 10)


@pytest.mark.parametrize(("restarts", "kind", "words"), [(0, StageError, "may not be"), (1, ModelError, "too small")])
def test_all_who_ask_an_engine_that_is_gone_for_good_are_told_why(
    restarts: int, kind: type[TilthError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    asks: list[int] = []

    class Dying:
        async def generate(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            asks.append(0)
            while len(asks) < 8:  # all are under way when it dies
                await asyncio.sleep(0.01)
            raise EngineDeadError
            yield

        def shutdown(self, timeout: float) -> None:
            pass

    def start(life: Life, arguments: dict[str, Any]) -> None:
        if arguments.pop("started", False):
            raise ModelError("the memory is too small")
        arguments["started"], life.engine = True, Dying()

    monkeypatch.setattr(Life, "start", start)
    engine = Engine({}, restarts)

    def told(number: int) -> str:
        with pytest.raises(kind) as found:
            engine.loop.run(engine.ask([number], None, None))
        return str(found.value)

    with ThreadPoolExecutor(8) as pool:
        (said,) = set(pool.map(told, range(8)))
    assert words in said
    assert told(8) == said


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_no_process_of_an_engine_outlives_its_killed_worker(moment: str) -> None:
    script = Path(__file__).with_name("ask_vllm.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        while moment not in worker.stdout.readline():
            assert worker.poll() is None
        # a starting engine has no title yet
        assert until(lambda: titled(descendants(worker.pid), "spawn_main") or moment == "ready", 60)
        below = descendants(worker.pid)
        assert moment == "starting" or len(titled(below, "tilth-engine")) >= 2
        kill(worker.pid)
        worker.wait()
        assert until(lambda: not alive(below), 15), alive(below)


@pytest.mark.slow
def test_an_engine_ends_with_those_who_use_it() -> None:
    script = Path(__file__).with_name("ask_vllm.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), "once"], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "starting\nready\n")
    ask = config().open(Inputs())
    below = set(cores())
    assert len(below) == 1
    del ask
    assert until(lambda: not alive(below), 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            {"kv_cache_gib": 0.01},
            # how much there is of so little, and so whether any length fits, differs between processors
            r"8192 tokens needs 0\.(7|35) GiB of KV cache, 0\.01? GiB are available; "
            r"set max_model_len (to|lower, or engine\.kv_cache_gib to at least 0\.35$)",
        ),
        (
            {"kv_cache_gib": 10_000.0},
            r"kv_cache_gib is 10000\.0 GiB, [\d.]+ of [\d.]+ GiB of memory are available; set it",
        ),
    ],
)
def test_too_little_memory_is_told_with_a_setting_that_fits(engine: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        config(engine, max_model_len=None).open(Inputs())
    assert cores() == []


@pytest.mark.slow
def test_an_adapter_answers_as_under_transformers(tmp_path: Path) -> None:
    adapter_at(tmp_path)
    prompts = [
        Prompt(text, temperature=0.0, max_tokens=16) for text in ("The capital of France is", "Once upon a time")
    ]
    found, expected = (
        ask(prompts)
        for ask in (
            config(model=str(tmp_path), logprobs=True).open(Inputs()),
            HuggingFace(model=str(tmp_path)).open(Inputs()),
        )
    )
    assert texts(found) == texts(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.first.logprob == pytest.approx(b.first.logprob, abs=2e-3)


@pytest.mark.slow
def test_a_ray_actor_answers_and_leaves_nothing_behind(ray_session: Any) -> None:
    class Worker:
        def __init__(self) -> None:
            self.ask = config().open(Inputs())

        def answer(self, texts: Sequence[str]) -> tuple[list[str], int]:
            return [answer.first.text for answer in self.ask([Prompt(text, seed=3) for text in texts])], os.getpid()

    actor = ray_session.remote(Worker).options(num_cpus=1).remote()
    found, pid = ray_session.get(actor.answer.remote(["Once upon a time", "The capital"]))
    below = descendants(pid)
    assert len(titled(below, "tilth-engine")) >= 2
    assert all(found)
    ray_session.kill(actor)
    assert until(lambda: not alive(below), 20), alive(below)
