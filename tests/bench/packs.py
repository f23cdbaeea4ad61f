"""Trials trained as a pack beside the same trials one after another: seconds, memory, tokens, losses.

One after another is once in one process, and once as Ray Tune does it: each trial is an actor that runs Ray Train. All
run the stage `sft` from its configuration to its artifact, with the same rows in the same order: loading the model,
preparing rows, training, saving. Each side has a process of its own, so that its peak of memory is its own; of Tune it
is the driver's alone. Losses that are not equal fail the measurement. `--full` takes SmolLM2-135M, else a small Llama.
"""

from __future__ import annotations

import atexit
import csv
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.paired import ROOT, Facts, Worker, paired, serve_one
from tests.bench.result import Options, Result

SUMMARY = "rows/s of eight trials of LoRA as a pack over one after another, from configuration to artifact"
#: what the pack is measured beside, and what is aimed at
OTHERS = {"sequential": ("one after another in one process", 1.2), "tuned": ("one by one on Ray Tune and Train", 4.0)}
TRIALS, ROWS, MICRO, STEPS = 8, 64, 4, 8
PICTURE = ROOT / "tests/bench/packs.svg"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def missing(options: Options) -> str | None:
    return None


def measure(options: Options) -> Iterator[Result]:
    size = "full" if options.full else "small"
    for other, (what, aim) in OTHERS.items():
        sides = [Worker("tests.bench.packs", side, size, str(TRIALS), str(MICRO)) for side in ("packed", other)]
        with sides[0] as ours, sides[1] as theirs:
            found = paired(ours, theirs, options.rounds, warm=not options.full)
        for a, b in zip(found.a, found.b, strict=True):
            _demand_equal(a["losses"], b["losses"])
        tokens, memory = found.medians("token_rate"), found.medians("peak_mib")
        note = (
            f"micro-batch {MICRO}, {size} model, {tokens[0]:.0f} and {tokens[1]:.0f} useful tokens/s, peak "
            f"{memory[0]:.0f} and {memory[1]:.0f} MiB, {found.medians('seconds')[0]:.1f} and "
            f"{found.medians('seconds')[1]:.1f} s, losses equal within 1e-4"
        )
        # of Tune, the CPU time is in other processes
        cpu = found.ratio("cpu_rate") if other == "sequential" else None
        yield Result(f"packs: {TRIALS} trials / {what}", found.ratio(), len(found.a), aim, cpu, note=note)
    yield from _cost(size, options.rounds)


def _cost(size: str, rounds: int) -> Iterator[Result]:
    """What each further adapter adds to the time of a step, as a share of what one alone takes."""
    seconds = {}
    for trials in (1, 2, 4, 8):
        with Worker("tests.bench.packs", "packed", size, str(trials), str(MICRO)) as worker:
            seconds[trials] = median(worker()["step_seconds"] for _ in range(rounds))
    _draw({trials: 1000 * found for trials, found in seconds.items()}, size)
    for trials in (2, 4, 8):
        extra = (seconds[trials] - seconds[1]) / (trials - 1) / seconds[1]
        note = f"{1000 * seconds[trials]:.0f} ms a step of {trials} trials, {1000 * seconds[1]:.0f} ms of one"
        yield Result(f"cost of each further adapter, {trials} in all", extra, rounds, at_most=True, note=note)


def _draw(milliseconds: dict[int, float], size: str) -> None:
    """A step of a pack by the adapters in it, beside as many steps of one alone."""
    from tilth.report.svg import SERIES, drawing

    counts = list(milliseconds)
    with drawing(5.2, 3.0) as (figure, (axes,)):
        axes.plot(counts, list(milliseconds.values()), "o-", color=SERIES[0], label="in one pass")
        axes.plot(counts, [count * milliseconds[1] for count in counts], "--", color=SERIES[1], label="one by one")
        axes.set(xlabel=f"adapters ({size} model, micro-batch {MICRO})", title="milliseconds of a step", xticks=counts)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def _demand_equal(a: dict[str, list[float]], b: dict[str, list[float]]) -> None:
    for name, losses in a.items():
        worst = max(abs(x - y) / abs(y) for x, y in zip(losses, b[name], strict=True))
        if worst > 1e-4:
            raise AssertionError(f"{name}: a loss differs by {worst:.2g} between pack and sequential run")


def _rows(count: int) -> list[dict[str, Any]]:
    from tilth.data.schema import original

    with open(ROOT / "examples/data/banking77/train.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))[:: max(1, 100 // count)]
    return [
        original(f"r{i}", "train", {"prompt": f"{row['text']}\nIntent:", "completion": f" {row['category']}"})
        for i, row in enumerate((rows * count)[:count])
    ]


def _small(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tilth.data.loading import load_tokenizer
    from tilth.models import resolve

    tokenizer = load_tokenizer(resolve(MODEL))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _trials(root: Path, place: Path, model: str, trials: int, micro: int) -> list[Any]:
    """Trials of different ranks, scales, rates and seeds, on the rows in `root/data`."""
    from tilth.config import digest, identity
    from tilth.recipe import Stage
    from tilth.runs import Artifact, Out
    from tilth.storage import Store
    from tilth.trials import Trial

    data = Artifact("data", "data", "dataset", "0" * 64, Store.at(root / "data"), {})
    found = []
    for number in range(trials):
        peft = {"kind": "lora", "rank": (4, 8, 16, 32)[number % 4], "alpha": 16 + number}
        stage = Stage.model_validate({
            "kind": "sft", "data": "@data", "max_length": 128, "model": {"name": model, "peft": peft},
            "optimisation": {
                "steps": STEPS, "global_batch": micro, "learning_rate": 1e-4 * (1 + number), "seed": number
            },
            "scale": {"workers": 0, "micro_batch": micro}, "trackers": (),
        })  # fmt: skip
        parts = identity(stage, str)
        out = Out(f"t{number}", stage.kind, "model", digest(parts), parts, Store.at(place / f"t{number}"))
        found.append(Trial(f"t{number}", stage, out, {"@data": data}))
    return found


def _side(run: Callable[[list[Any]], list[Any]]) -> Callable[[Sequence[str]], Callable[[], Facts]]:
    def prepared(arguments: Sequence[str]) -> Callable[[], Facts]:
        import sys

        sys.path.insert(0, str(ROOT / "tests"))
        from helpers import write_dataset
        from tilth.storage import Store

        size, trials, micro = arguments[0], int(arguments[1]), int(arguments[2])
        root = Path(tempfile.mkdtemp(prefix="tilth-bench-packs-"))
        write_dataset(Store.at(root).sub("data"), _rows(ROWS), "completion")
        model = MODEL if size == "full" else str(_small(root / "model"))
        if run is _tuned:
            _started(root)
        return lambda: _facts(run, root, model, trials, micro)

    return prepared


def _started(root: Path) -> None:
    """Ray, as a search would have it for all of its time."""
    from tests.bench.units import quiet
    from tilth import cluster
    from tilth.storage import Store

    quiet()
    session = cluster.session(Store.at(root))
    session.__enter__()
    atexit.register(session.__exit__, None, None, None)
    cluster.ray_ready()


def _facts(run: Callable[[list[Any]], list[Any]], root: Path, model: str, trials: int, micro: int) -> Facts:
    from tilth.train import trace

    with tempfile.TemporaryDirectory(dir=root) as place:
        offered = _trials(root, Path(place), model, trials, micro)
        wall, cpu = time.perf_counter(), time.process_time()
        made = run(offered)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        traces = {artifact.stage: trace.read(artifact.store) for artifact in made}
    rows, tokens = trials * STEPS * micro, sum(line["tokens"] for lines in traces.values() for line in lines)
    return {
        "rate": rows / wall, "cpu_rate": rows / cpu, "token_rate": tokens / wall, "seconds": wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": {name: [line["loss"] for line in lines] for name, lines in traces.items()},
        "step_seconds": median(line["seconds"] for lines in traces.values() for line in lines[1:]),
    }  # fmt: skip


def _packed(trials: list[Any]) -> list[Any]:
    from tilth.train.sft import Sft

    return [outcome.artifact for outcome in Sft.pack(trials, len(trials), lambda report: True)]


def _sequential(trials: list[Any]) -> list[Any]:
    return [trial.stage.run(trial.out, trial.inputs) for trial in trials]


def _tuned(trials: list[Any]) -> list[Any]:
    """As a user of Ray does it: a trial of Tune is a run of Train with one worker, one trial at a time."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        one = config["trials"][config["number"]]
        one.stage.run(one.out, one.inputs)

    each = [replace(one, stage=_on_train(one.stage)) for one in trials]
    space = {"trials": each, "number": tune.grid_search(list(range(len(each))))}
    with tempfile.TemporaryDirectory() as place:
        found = tune.Tuner(
            tune.with_resources(trial, {"cpu": 0, "memory": 1}), param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=place, verbose=0),
        ).fit()  # fmt: skip
    if found.errors:
        raise found.errors[0]
    return [one.out.artifact() for one in each]


def _on_train(stage: Any) -> Any:
    scale = stage.scale.model_copy(update={"workers": 1, "cpus": float(os.cpu_count() or 1)})
    return stage.model_copy(update={"scale": scale})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve_one({"packed": _side(_packed), "sequential": _side(_sequential), "tuned": _side(_tuned)})
