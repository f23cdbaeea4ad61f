"""Generated tokens a second: the stage's work with generator `vllm` beside bare vLLM and beside ray.data.llm.

All sides continue the same plain texts with the same seeds, sampling and engine arguments, and are warm. Ours reads
its rows from Parquet in the units that a stage would cut, asks by as many threads as a worker has units in flight, and
commits every unit to a ledger. Bare `LLM.generate` gets all prompts at once, bare `AsyncLLM` all at once as tasks, with
final outputs only. ray.data.llm starts an engine anew for each dataset: its clock runs from the first prompt that
reached the engine to the last row that came out.

distilabel is not measured: beside it resolves only another vLLM than the one measured here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from tests.bench.ledger import Loaded
from tests.bench.paired import Facts, Paired, Worker, paired, serve_one
from tests.bench.result import Options, Result, banking_texts
from tests.bench.units import dataset_at, quiet
from tilth.data.chain import cut
from tilth.data.engine import run_units
from tilth.data.ledger import Ledger
from tilth.data.schema import Row, RowType
from tilth.data.transform import Inputs, Resources
from tilth.generate.base import Generator, Prompt, SamplingParams
from tilth.generate.method import Made, MakeFunction, RowMethod, Yield, opened
from tilth.generate.vllm import Vllm, VllmEngine
from tilth.generate.work import Generating
from tilth.storage import Store

SUMMARY = "generated tokens/s of the vllm generator, over bare vLLM and over ray.data.llm"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: rows that ray.data.llm hands to its engine together
BATCH = 16
TOKENS = 64
AIMS = {"LLM.generate": 0.97, "AsyncLLM": 0.97, "ray.data.llm": 1.0}
# the same for all, since vLLM binds threads and Ray counts cores each in its own way; standard output is for the facts
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
Work = Callable[[list[str]], tuple[int, float]]


class Continued(RowMethod):
    """Continues each text as it stands."""

    takes: ClassVar[tuple[RowType, ...]] = ("text",)

    def load(self, generator: Generator | None, inputs: Inputs) -> MakeFunction:
        ask = opened(generator, inputs)

        def make(asks: list[Row]) -> list[Yield]:
            answers = ask([Prompt(asked(row["text"]), seed=int(row["id"][1:])) for row in asks])
            made = [
                Made({"prompt": row["text"], "completion": a.first.text}) for row, a in zip(asks, answers, strict=True)
            ]
            return [Yield([item], [answer]) for item, answer in zip(made, answers, strict=True)]

        return make


def asked(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def config() -> Vllm:
    sampling = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=TOKENS)
    return Vllm(model=MODEL, max_model_len=512, sampling=sampling, engine=VllmEngine(kv_cache_gib=1.0))


def bare_arguments() -> dict[str, Any]:
    from tilth import models
    from tilth.generate.engines.vllm import arguments

    return arguments(config(), models.resolve(MODEL), 512, 0)


def bare_params(seed: int, **fields: Any) -> dict[str, Any]:
    return {"temperature": 0.8, "top_p": 0.95, "max_tokens": TOKENS, "seed": seed, **fields}


def ours() -> Work:
    quiet()
    loaded: list[Loaded] = []
    place = tempfile.TemporaryDirectory()

    def work(texts: list[str]) -> tuple[int, float]:
        source = dataset_at(Path(place.name), len(texts))
        if not loaded:
            loaded.append(Loaded(Generating(source.store, Continued(), config())))
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Store.at(folder), "bench", cut(source))
            start = time.perf_counter()
            run_units(loaded[0], ledger, Resources(workers=0), "generation")
            return ledger.usage()["completion_tokens"], time.perf_counter() - start

    return work


def bare_llm() -> Work:
    from vllm import LLM, SamplingParams

    llm = LLM(**bare_arguments())

    def work(texts: list[str]) -> tuple[int, float]:
        params = [SamplingParams(**bare_params(seed)) for seed in range(len(texts))]
        start = time.perf_counter()
        outputs = llm.generate(texts, params, use_tqdm=False)
        return sum(len(item.token_ids) for out in outputs for item in out.outputs), time.perf_counter() - start

    return work


def bare_async() -> Work:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    runner = asyncio.Runner()

    async def started() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**bare_arguments()))

    engine = runner.run(started())
    numbers = itertools.count()

    async def one(text: str, seed: int) -> int:
        params = SamplingParams(**bare_params(seed, output_kind=RequestOutputKind.FINAL_ONLY))
        final: Any = None
        async for output in engine.generate(text, params, str(next(numbers))):
            final = output
        return sum(len(item.token_ids) for item in final.outputs)

    async def every(texts: list[str]) -> int:
        return sum(await asyncio.gather(*(one(text, seed) for seed, text in enumerate(texts))))

    def work(texts: list[str]) -> tuple[int, float]:
        start = time.perf_counter()
        return runner.run(every(texts)), time.perf_counter() - start

    return work


def ray_llm() -> Work:
    def work(texts: list[str]) -> tuple[int, float]:
        rows = ray_rows(texts)
        begun = min(row["at"] - row["time_taken_llm"] for row in rows)
        return sum(row["num_generated_tokens"] for row in rows), max(row["at"] for row in rows) - begun

    return work


def ray_rows(texts: list[str], **fields: Any) -> list[dict[str, Any]]:
    """What ray.data.llm's processor makes of the texts, each row stamped as it comes out."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from tilth import cluster

    # five helper actors beside the engine: logical cores, of which the machine need not have as many
    cluster.ray_ready(num_cpus=10)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    how = vLLMEngineProcessorConfig(
        model_source=bare_arguments().pop("model"),
        engine_kwargs={key: value for key, value in bare_arguments().items() if key != "model"},
        batch_size=BATCH,
        concurrency=1,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": ENVIRONMENT},
    )
    processor = build_processor(
        how,
        preprocess=lambda row: {"prompt": row["text"], "sampling_params": bare_params(row["seed"], **fields)},
        postprocess=lambda row: {**row, "at": time.time()},
    )
    source = ray.data.from_items([{"text": text, "seed": seed} for seed, text in enumerate(texts)])
    return list(processor(source.repartition(max(1, len(texts) // BATCH))).take_all())


SIDES: dict[str, Callable[[], Work]] = {
    "ours": ours,
    "LLM.generate": bare_llm,
    "AsyncLLM": bare_async,
    "ray.data.llm": ray_llm,
}


def side(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    """One measurement; "rate" is in tokens. The engine is started by the first, which is not counted."""
    texts = [asked(text) for text in banking_texts(int(arguments[0]))]
    loaded: list[Work] = []

    def once() -> Facts:
        if not loaded:
            loaded.append(SIDES[name]())
        cpu = cpu_seconds()
        tokens, seconds = loaded[0](texts)
        return {"rate": tokens / seconds, "cpu_rate": tokens / (cpu_seconds() - cpu), "tokens": tokens, "s": seconds}

    return once


def samples(name: str, arguments: Sequence[str]) -> Callable[[], Facts]:
    """How many different texts come back for a prompt of which four are asked for."""

    def once() -> Facts:
        if name == "ours":
            (answer,) = config().open(Inputs())([Prompt("Once upon a time", n=4)])
            return {"kept": len({item.text for item in answer.completions})}
        (row,) = ray_rows(["Once upon a time"], n=4)
        found = row["generated_text"]
        return {"kept": len({found} if isinstance(found, str) else set(found))}

    return once


def cpu_seconds() -> float:
    """CPU time of this process and all below it that live."""
    ticks: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in between
            continue
        ticks[int(stat.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _) in ticks.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks[pid][1] for pid in ours) / os.sysconf("SC_CLK_TCK")


def missing(options: Options) -> str | None:
    import importlib.util

    return None if importlib.util.find_spec("vllm") else "vLLM is not installed"


def measure(options: Options) -> Iterator[Result]:
    os.environ.update(ENVIRONMENT)
    prompts = str(options.size(96, 256))
    with Worker(__spec__.name, "ours", prompts) as a:
        for peer, aim in AIMS.items():
            with Worker(__spec__.name, peer, prompts) as b:
                # ray.data.llm is cold in each round, and says itself when its engine began
                found = paired(a, b, options.rounds)
            yield _compared(peer, found, aim, prompts)
    with ExitStack() as stack:
        a, b = (stack.enter_context(Worker(__spec__.name, f"samples of {name}")) for name in ("ours", "ray.data.llm"))
        kept = a()["kept"], b()["kept"]
    yield Result("samples kept at n=4 / ray.data.llm", kept[0] / kept[1], 1, note=f"{kept[0]} of 4 and {kept[1]} of 4")


def _compared(peer: str, found: Paired, aim: float, prompts: str) -> Result:
    a, b = found.medians()
    shortest = min(facts["s"] for facts in (*found.a, *found.b))
    tokens = f"{found.a[0]['tokens']} and {found.b[0]['tokens']} tokens from {prompts} prompts"
    note = f"{a:.4g} and {b:.4g} tokens/s; {tokens}, {shortest:.0f} s or more a turn"
    ratio, cpu = found.ratio(), found.ratio("cpu_rate")
    # the other side's engine and helpers of Ray are no descendants of the process that asks
    return Result(f"vllm generator / {peer}", ratio, len(found.a), aim, None if "ray" in peer else cpu, note=note)


if __name__ == "__main__":
    rates = {name: lambda arguments, name=name: side(name, arguments) for name in SIDES}  # type: ignore[misc]
    kept = {f"samples of {name}": lambda arguments, name=name: samples(name, arguments) for name in SIDES}  # type: ignore[misc]
    serve_one({**rates, **kept})
