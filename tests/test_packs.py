"""Trials trained together: each as it would have been alone, whoever else is in the pack."""

from __future__ import annotations

import csv
import errno
import os
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tilth.data.loading import load_tokenizer
from tilth.data.schema import original
from tilth.errors import StageError, StorageError
from tilth.models import resolve
from tilth.recipe import Stage
from tilth.runs import Artifact
from tilth.search.one_by_one import limited
from tilth.search.rows import as_seen, tokens
from tilth.storage import Store
from tilth.train import trace as traces
from tilth.train.fitting import MICRO, ROOM
from tilth.train.memory import GIB
from tilth.train.packs import fit, turns
from tilth.train.packs.fit import Need
from tilth.train.sft import Sft
from tilth.trials import CrowdedError, Outcome, Report, TimeOverError, Trial
from tiny import model_folder
from together import Settings, of_different_kinds, packed, sft, trial
from training import dataset, stage_of

SEEN = ("step", "epoch", "rows", "tokens", "learning_rate")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset of completions of different lengths, and a small Llama."""
    root = tmp_path_factory.mktemp("packs")
    fields = [
        {"prompt": f"Thing {i} is" + " very" * (i % 5), "completion": f" green{'er' * (i % 4)}."} for i in range(14)
    ]
    rows = [original(f"c{i:02}", "train" if i < 12 else "test", row) for i, row in enumerate(fields)]
    dataset(root, rows, "completion")
    model_folder(root / "llama", "llama")
    return root


def alone(root: Path, name: str, stage: Stage) -> Artifact:
    one = trial(root, "alone", name, stage)
    return one.stage.run(one.out, one.inputs)


def trace(artifact: Artifact | Store) -> list[dict[str, Any]]:
    return traces.read(artifact.store if isinstance(artifact, Artifact) else artifact)


def assert_same(together: Outcome, by_itself: Artifact) -> None:
    """The same steps with the same losses, and the same files with the same weights."""
    assert together.artifact is not None, together.why
    ours, theirs = trace(together.artifact), trace(by_itself)
    assert [{key: line[key] for key in SEEN} for line in ours] == [{key: line[key] for key in SEEN} for line in theirs]
    for key in ("loss", "grad_norm", "validation_loss"):
        expected = [line[key] for line in theirs if key in line]
        assert [line[key] for line in ours if key in line] == pytest.approx(expected, rel=1e-4)
    folder, other = (artifact.store.local("model") for artifact in (together.artifact, by_itself))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in other.iterdir())
    weights, expected_weights = (load_file(place / "adapter_model.safetensors") for place in (folder, other))
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        assert value.sub(expected_weights[name]).abs().max() < 1e-4, name
    assert together.artifact.detail == by_itself.detail
    assert together.artifact.counts == by_itself.counts


@pytest.mark.long
def test_each_trial_is_as_it_would_have_been_alone(root: Path) -> None:
    stages = {
        "small": sft(root, {"kind": "lora", "rank": 2}),
        "large": sft(root, {"kind": "lora", "rank": 8, "alpha": 4, "scaling": "rank_stabilized"}, learning_rate=3e-3),
        "other order": sft(root, {"kind": "lora", "rank": 4}, seed=3, scheduler="cosine", warmup=0.2),
        "larger steps": sft(root, {"kind": "lora", "rank": 4}, global_batch=8, steps=3, weight_decay=0.1),
        "few targets": sft(root, {"kind": "lora", "targets": ("q_proj", "down_proj")}, max_grad_norm=0.05),
    }
    found = packed(root, "lora", stages)
    for name, stage in stages.items():
        assert_same(found[name], alone(root, name, stage))


def test_what_all_adapters_stand_on_is_computed_once(root: Path) -> None:
    """Trials that read the same rows and adapt the last block only."""
    top = {"kind": "lora", "targets": r".*layers\.2\..*_proj"}
    stages = {f"rank {rank}": sft(root, {**top, "rank": rank}, steps=3) for rank in (2, 3, 5)}
    computed: Counter[int] = Counter()

    def count(module: Any, given: Any, made: Any) -> None:
        if isinstance(module, LlamaDecoderLayer):
            computed[module.self_attn.layer_idx] += made.shape[0] * made.shape[1]

    hook = register_module_forward_hook(count)
    found = packed(root, "top", stages)
    hook.remove()
    assert computed[0] == computed[1] < 0.5 * computed[2]
    for name, stage in stages.items():
        assert_same(found[name], alone(root, f"top {name}", stage))


def _reports(found: list[Report], end: dict[str, int]) -> Any:
    def judge(report: Report) -> bool:
        found.append(report)
        return report.step < end.get(report.trial, 1000)

    return judge


@pytest.mark.long
def test_a_stopped_trial_leaves_its_place_to_the_next(root: Path) -> None:
    stages = {f"t{number}": sft(root, {"kind": "lora"}, seed=number) for number in range(4)}
    reports: list[Report] = []
    begun: list[int] = []

    def offered() -> Iterator[Trial]:
        for name, stage in stages.items():
            begun.append(len(reports))
            yield trial(root, "stopped", name, stage)

    found = {outcome.trial: outcome for outcome in Sft.pack(offered(), 2, _reports(reports, {"t0": 2}))}
    assert found["t0"].stopped
    assert found["t0"].artifact is None
    assert [line["step"] for line in trace(Store.at(root / "stopped/t0"))] == [1, 2]
    assert begun[:2] == [0, 0]
    assert [report.step for report in reports[: begun[2]] if report.trial == "t0"] == [1, 2]
    for name in ("t1", "t2", "t3"):
        assert_same(found[name], alone(root, f"place {name}", stages[name]))
        mine = [report for report in reports if report.trial == name]
        assert [(report.step, report.steps, report.loss) for report in mine] == [
            (line["step"], 5, line["loss"]) for line in trace(Store.at(root / "stopped" / name))
        ]


PROMPTS: dict[str, Settings] = {
    "short": {"kind": "prompt_tuning", "length": 2},
    "long": {"kind": "prompt_tuning", "length": 7},
    "made": {"kind": "p_tuning", "length": 3, "units": 8},
}
PREFIXES: dict[str, Settings] = {
    "short": {"kind": "prefix_tuning", "length": 2},
    "long": {"kind": "prefix_tuning", "length": 9},
    "made": {"kind": "prefix_tuning", "length": 3, "projection": 8},
}
VECTORS: dict[str, Settings] = {
    "as PEFT has it": {"kind": "ia3"},
    "inside": {"kind": "ia3", "targets": ("q_proj", "down_proj"), "feed_forward": ("q_proj",)},
}


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(PROMPTS, id="prompts"),
        pytest.param(PREFIXES, id="prefixes", marks=pytest.mark.slow),
        pytest.param(VECTORS, id="vectors", marks=pytest.mark.slow),
    ],
)
def test_other_adapters_are_packed_too(root: Path, methods: dict[str, Settings]) -> None:
    stages = {
        name: sft(root, peft, learning_rate=0.05, seed=number, steps=3)
        for number, (name, peft) in enumerate(methods.items())
    }
    found = packed(root, next(iter(methods.values()))["kind"], stages)
    for name, stage in stages.items():
        assert_same(found[name], alone(root, f"{name} {stage.model.peft.kind}", stage))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_validation_and_patience_are_each_trials_own(root: Path) -> None:
    """One trial ends early, and each keeps its own best weights."""
    eager = {"split": "test", "every_steps": 1, "patience": 2}
    stages = {
        "content": sft(root, {"kind": "lora"}, fields={"validation": eager}, steps=6),
        "demanding": sft(root, {"kind": "lora"}, fields={"validation": {**eager, "min_delta": 10.0}}, steps=6),
    }
    found = packed(root, "patience", stages)
    by_itself = {name: alone(root, f"patience {name}", stage) for name, stage in stages.items()}
    assert [by_itself[name].metrics["steps"] for name in stages] == [6, 3]
    assert [by_itself[name].metrics["best_step"] for name in stages] == [6, 1]
    for name in stages:
        assert_same(found[name], by_itself[name])
        for key in ("steps", "best_step"):
            assert found[name].artifact.metrics[key] == by_itself[name].metrics[key]  # type: ignore[union-attr]


def test_a_trial_that_patience_ends_is_trained_to_its_end(root: Path) -> None:
    """Who judges trials that are not, as a search does, has no say in it."""
    patient = {"validation": {"split": "test", "every_steps": 1, "patience": 2, "min_delta": 10.0}}
    one = trial(root, "patience ends", "one", sft(root, {"kind": "lora"}, fields=patient, steps=6))
    (found,) = Sft.pack([one], 2, lambda report: report.step >= report.steps or report.step < 3)
    assert found.artifact is not None, found.why
    assert found.artifact.metrics["steps"] == 3


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_heads_are_each_trials_own(tmp_path: Path, kind: str) -> None:
    rows = [original(f"l{i}", "train", {"text": "ab" * (1 + i % 5), "label": "xyz"[i % 3]}) for i in range(8)]
    dataset(tmp_path, rows)
    model_folder(tmp_path / "model", kind)
    if kind == "bert":  # with a pooler, which is no head of a trial's own
        AutoModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    stages = {
        "one": sft(tmp_path, {"kind": "lora", "rank": 2}, "model", steps=3),
        "another": sft(tmp_path, {"kind": "lora", "rank": 3}, "model", steps=3, seed=5),
    }
    found = packed(tmp_path, "heads", stages)
    for name, stage in stages.items():
        assert_same(found[name], alone(tmp_path, name, stage))


@pytest.mark.slow
def test_task_weights_are_each_trials_own(tmp_path: Path) -> None:
    rows = [
        {**original(f"r{i}", "train", {"text": f"{'no' * (i % 3)} row {i}"}), "task": ("talk", "sums")[i % 2]}
        for i in range(10)
    ]
    dataset(tmp_path, rows, "text")
    model_folder(tmp_path / "llama", "llama")
    stages = {
        f"{weight:g}": sft(
            tmp_path, {"kind": "lora"}, steps=3,
            fields={"tasks": {"weighting": {"kind": "fixed", "weights": {"talk": weight, "sums": 1.0}}}},
        )
        for weight in (0.5, 2.0)
    }  # fmt: skip
    found = packed(tmp_path, "tasks", stages)
    for name, stage in stages.items():
        by_itself = alone(tmp_path, name, stage)
        assert_same(found[name], by_itself)
        assert [line["tasks"] for line in trace(found[name].artifact)] == [  # type: ignore[arg-type]
            {task: pytest.approx(told) for task, told in line["tasks"].items()} for line in trace(by_itself)
        ]


def test_each_trial_may_learn_from_rows_of_its_own(root: Path, tmp_path: Path) -> None:
    """Others, fewer and longer than those of the trial beside it."""
    rows = [
        {"prompt": f"Of {i} we know" + " little" * (i % 3), "completion": f" that it is {i}, or more."}
        for i in range(7)
    ]
    dataset(tmp_path, [original(f"o{i}", "train", row) for i, row in enumerate(rows)], "completion")
    data = {"ours": root, "theirs": tmp_path}
    stages = {name: sft(root, {"kind": "lora", "rank": 2 + n}, steps=4) for n, name in enumerate(data)}

    def reading(place: str, name: str) -> Trial:
        read = Artifact("data", "data", "dataset", "0" * 64, Store.at(data[name] / "data"), {})
        return replace(trial(root, place, name, stages[name]), inputs={"@data": read})

    found = {
        outcome.trial: outcome for outcome in Sft.pack([reading("own", name) for name in data], 2, _reports([], {}))
    }
    for name in data:
        one = reading("own, alone", name)
        assert_same(found[name], one.stage.run(one.out, one.inputs))
    seen = [{row for line in trace(Store.at(root / "own" / name)) for row in line["rows"]} for name in data]
    assert [{row[0] for row in rows} for rows in seen] == [{"c"}, {"o"}]


def test_a_trial_that_fails_fails_alone(root: Path) -> None:
    stages = {
        "sound": sft(root, {"kind": "lora"}, steps=4),
        "diverging": sft(root, {"kind": "lora"}, learning_rate=1e30, max_grad_norm=0.0, steps=4),
        "unfit": sft(root, {"kind": "lora", "dropout": 0.5}),
        "mistaken": sft(root, {"kind": "lora", "targets": ("nowhere",)}),
    }
    found = packed(root, "failing", stages)
    assert "the loss is nan" in found["diverging"].why
    assert "dropout of 0.5" in found["unfit"].why
    assert "nowhere" in found["mistaken"].why
    assert all(found[name].artifact is None and not found[name].stopped for name in ("diverging", "unfit", "mistaken"))
    assert_same(found["sound"], alone(root, "sound", stages["sound"]))


@pytest.mark.long
def test_a_full_disk_is_no_fault_of_a_trial(root: Path) -> None:
    stages = {f"d{n}": sft(root, {"kind": "lora", "rank": 2 + n}, steps=3) for n in range(2)}

    def filling(report: Report) -> bool:
        if report.step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return True

    with pytest.raises(StorageError, match="No space left on device"):
        packed(root, "full", stages, judge=filling)
    found = packed(root, "full", stages)
    for name, stage in stages.items():
        assert_same(found[name], alone(root, f"full {name}", stage))


def test_memory_that_a_pack_fills_is_no_fault_of_a_trial(root: Path) -> None:
    """It runs out in a trial's own part: the pack ends, and no smaller micro-batch is noted for when it runs alone."""
    stages = {f"m{n}": sft(root, {"kind": "lora", "rank": 2 + n}, steps=3) for n in range(2)}

    def filling(report: Report) -> bool:
        if (report.trial, report.step) == ("m1", 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return True

    with pytest.raises(StageError, match="packs: trial m1 does not fit the device's memory beside the others; use few"):
        packed(root, "memory", stages, judge=filling)
    assert not Store.at(root / "memory/m1").exists(MICRO)


@pytest.mark.parametrize(("dropout", "why"), [(0.0, "the model is given"), (0.1, "drops 0.1 of its values")])
def test_a_trial_whose_model_shares_no_pass_is_set_apart(root: Path, dropout: float, why: str) -> None:
    model_folder(root / f"t5-{dropout}", "t5", dropout)
    stages = {f"t{n}": sft(root, {"kind": "lora", "rank": 2 + n}, f"t5-{dropout}") for n in range(2)}
    for outcome in packed(root, f"apart {dropout}", stages).values():
        assert (outcome.apart, outcome.artifact) == (True, None)
        assert why in outcome.why


@pytest.mark.parametrize(
    ("says", "kind", "told"),
    [
        ("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes", CrowdedError, "fit"),
        ("a size is odd", StageError, "the pass of 2 trials failed: RuntimeError: a size is odd"),
    ],
)
def test_what_the_shared_pass_raises_is_no_fault_of_a_trial(
    root: Path, says: str, kind: type[StageError], told: str
) -> None:
    def failing(module: Any, given: Any, made: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.training:
            raise RuntimeError(says)

    stages = {f"s{n}": sft(root, {"kind": "lora", "rank": 2 + n}, steps=1) for n in range(2)}
    hook = register_module_forward_hook(failing)
    try:
        with pytest.raises(kind, match=told):
            packed(root, "shared", stages)
    finally:
        hook.remove()


def test_a_trial_that_hangs_is_named_and_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "GRACE", 0.1)

    def hanging(report: Report) -> bool:
        if report.trial == "h1":
            time.sleep(3600)
        return True

    stages = {f"h{n}": sft(root, {"kind": "lora", "rank": 2 + n}, steps=3) for n in range(2)}
    with pytest.raises(TimeOverError) as ended, limited(15):
        packed(root, "hanging", stages, judge=hanging)
    assert ended.value.trial == "h1"


@pytest.mark.slow
def test_a_broken_off_pack_goes_on_from_its_checkpoints(root: Path) -> None:
    fields = {"checkpointing": {"every_steps": 2}}
    stages = {f"r{n}": sft(root, {"kind": "lora", "rank": 2 + n}, fields=fields, steps=5, seed=n) for n in range(2)}
    reports: list[Report] = []

    def breaking(report: Report) -> bool:
        if report.step == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        packed(root, "resumed", stages, judge=breaking)
    found = packed(root, "resumed", stages, judge=_reports(reports, {}))
    assert min(report.step for report in reports) == 3
    for name, stage in stages.items():
        assert_same(found[name], alone(root, f"resumed {name}", stage))


@pytest.mark.slow
def test_the_workers_of_a_pack_average_the_gradients_of_its_adapters(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("together.py")
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, script, root], env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    for name, stage in of_different_kinds(root).items():
        together = trace(Store.at(root / "ranks" / name))
        by_itself = trace(alone(root, f"ranks {name}", stage))
        assert [sorted(line["rows"]) for line in together] == [sorted(line["rows"]) for line in by_itself]
        for key in ("loss", "grad_norm"):
            assert [line[key] for line in together] == pytest.approx([line[key] for line in by_itself], rel=1e-4)


def test_trials_are_packed_by_kind_and_memory_and_others_are_told_why(root: Path) -> None:
    lora = {f"rank {rank}": sft(root, {"kind": "lora", "rank": rank}) for rank in (2, 4, 8)}
    prompts = {
        f"{kind} {n}": sft(root, {"kind": kind, "length": n}) for kind, n in (("prompt_tuning", 3), ("p_tuning", 4))
    }
    lonely: dict[str, tuple[Stage, str]] = {
        "prefix": (sft(root, {"kind": "prefix_tuning", "length": 3}), "no other trial has its model"),
        "bottleneck": (sft(root, {"kind": "bottleneck"}), "bottleneck is not packed"),
        "dora": (sft(root, {"kind": "lora", "variant": "dora"}), "set model.peft.variant: plain"),
        "pissa": (sft(root, {"kind": "lora", "init": "pissa"}), "set model.peft.init: zero"),
        "noisy": (sft(root, {"kind": "lora"}, neftune=5.0), "set optimisation.neftune: null"),
        "whole": (stage_of("sft", str(root / "llama"), {}), "no frozen model to share"),
        "wide": (sft(root, {"kind": "lora"}, fields={"scale": {"workers": 2}}), "no other trial has its model"),
    }
    stages = {**lora, **prompts, **{name: stage for name, (stage, _) in lonely.items()}}
    found = Sft.packs(stages, places=8)
    assert sorted(map(sorted, found.together)) == sorted([sorted(lora), sorted(prompts)])
    assert found.apart.keys() == lonely.keys()
    for name, (_, why) in lonely.items():
        assert why in found.apart[name]
    pair = Sft.packs(lora, places=2)
    assert (len(pair.together), list(pair.apart.values())) == (1, ["the other trials of its kind fill packs of 2"])
    assert list(Sft.packs(lora, 8, room=1e12).together) == [tuple(lora)]
    assert all("two trials need" in why for why in Sft.packs(lora, 8, room=1e5).apart.values())
    room = Need.of([stage for stage in lora.values() if isinstance(stage, Sft)]).bytes(2) / ROOM  # type: ignore[union-attr]
    assert Sft.packs(lora, 8, room=1.01 * room).at_once == (2,)
    small = {name: sft(root, {"kind": "lora"}, fields={"scale": {"memory_gib": 1e-4}}) for name in lora}
    assert all("two trials need" in why for why in Sft.packs(small, 8).apart.values()), "of what the device has"


SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_packs_are_sized_by_the_rows_that_there_are(tmp_path: Path, shared: Path) -> None:
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as handle:
        rows = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(handle)]
    kept = dataset(tmp_path, [original(f"b{n}", "train", row) for n, row in enumerate(rows)])
    data = {"@data": Artifact("data", "data", "dataset", "0" * 64, kept.store, {})}
    settings = {"global_batch": 8, "steps": 5}
    fields = {"max_length": 512, "scale": {"micro_batch": 8, "workers": 0}}
    stages = {
        str(rank): stage_of("sft", {"name": str(resolve(SMOL)), "lora": {"rank": rank}}, settings, **fields)
        for rank in range(1, 9)
    }
    seen = {name: as_seen(stage, data) for name, stage in stages.items()}
    one: Any = seen["1"]
    tokenizer = load_tokenizer(resolve(SMOL))
    longest = max(len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"])
    assert (one.objective, one.max_length < 2 * longest) == ("classification", True)
    assert longest <= one.max_length
    assert Sft.packs(seen, 8, room=24 * GIB * 0.75).at_once == (8,)
    assert all(most < 8 for most in Sft.packs(stages, 8, room=24 * GIB * 0.75).at_once), "with rows of full length"


def test_rows_are_reckoned_no_shorter_than_they_are() -> None:
    tokenizer = load_tokenizer(resolve(SMOL))
    texts = (
        "a", "Where is my card?", "Überweisung nach Zürich, 12.345,67 €", "3.14159265358979", "моя карта не пришла",
        "我的卡在哪里?", "मेरा कार्ड कहाँ है", "https://example.org/a?b=c&d=%20", "\n\n\tx = y[0] ** 2  # fine",
    )  # fmt: skip
    for text in texts:
        assert len(tokenizer(text)["input_ids"]) <= tokens([text]), text
    turns_of = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts[1:3], strict=True)]
    assert len(tokenizer.apply_chat_template(turns_of)["input_ids"]) <= tokens([turns_of])


def test_what_tells_no_lengths_is_taken_as_it_is(root: Path) -> None:
    given = {"@data": trial(root, "rows", "lora", sft(root, {"kind": "lora"})).inputs["@data"]}
    for fields in ({"packing": {}}, {"max_length": 8}):
        stage: Any = sft(root, {"kind": "lora"}, fields=fields)
        assert as_seen(stage, given).model_dump() == {**stage.model_dump(), "objective": "language_model"}
    assert as_seen(stage, {}) is stage
    lost = Artifact("data", "data", "dataset", "0" * 64, Store.at(root / "nothing"), {})
    assert as_seen(stage, {"@data": lost}) is stage


def test_the_size_of_a_trial_on_an_adapter_is_that_of_the_model_below(root: Path) -> None:
    def of(folder: Path) -> dict[str, Stage]:
        return {name: sft(root, {"kind": "lora"}, model=folder.name, fields={"scale": {"workers": 0}}) for name in "ab"}

    for name, below in (("above", root / "llama"), ("astray", root / "gone")):
        (root / name).mkdir()
        LoraConfig(base_model_name_or_path=str(below)).save_pretrained(root / name)
        save_file({"a": torch.zeros(1)}, root / name / "adapter_model.safetensors")
    direct, above = (Need.of(list(of(root / name).values())) for name in ("llama", "above"))  # type: ignore[arg-type]
    assert direct is not None
    assert above is not None
    assert (above.weights, above.each) == (direct.weights + 4, pytest.approx(direct.each, rel=0.01))
    assert Sft.packs(of(root / "astray"), 8, room=1.0).at_once == (8,), "not known, so all places"


def test_memory_that_nothing_holds_any_more_is_swept_up_before_a_pack_is_small(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held:
        """A pack that refers to itself."""

        def __init__(self) -> None:
            self.own = self

    stages = {name: sft(root, {"kind": "lora"}) for name in "abc"}
    held = Held()
    alive = weakref.ref(held)
    del held
    monkeypatch.setattr(fit, "free", lambda scale, on_workers: 1e5 if alive() else 1e12)
    assert Sft.packs(stages, 3).at_once == (3,)
