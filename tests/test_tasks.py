"""Several tasks at once: what is seen, what counts, and that neither division of the batch nor a restart matters."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from tilth.data.loading import load_tokenizer
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.models import resolve
from tilth.train.multitask import TASKS, MultiTask, TaskMemory
from tilth.train.sampling import Annealed, Capped, Equal, Explicit, Proportional, Sampling, Temperature
from tilth.train.schedule import Plan, TaskSampler
from tilth.train.watch import ROWS, TOKENS
from tiny import model_folder
from training import MINILM, dataset, die, run_stage, stage_of, trace

SIZES = {"big": 800, "small": 100}


# sampling


@pytest.mark.parametrize(
    ("sampling", "progress", "share"),
    [
        (Proportional(), 0.0, 8 / 9),
        (Equal(), 0.0, 1 / 2),
        (Temperature(temperature=2), 0.0, 800**0.5 / (800**0.5 + 10)),
        (Temperature(temperature=1, cap=300), 0.0, 3 / 4),
        (Capped(cap=200), 0.0, 2 / 3),
        (Explicit(values={"big": 1, "small": 4}), 0.0, 1 / 5),
        (Annealed(), 0.0, 8 / 9),
        (Annealed(), 1.0, 1 / 2),
        (Annealed(final=0.5), 1.0, 800**0.5 / (800**0.5 + 10)),
    ],
    ids=str,
)
def test_rates_follow_the_published_formulas(sampling: Sampling, progress: float, share: float) -> None:
    rates = sampling.rates(SIZES, progress)
    assert rates["big"] / sum(rates.values()) == pytest.approx(share)


def plan(sampling: Sampling, **other: Any) -> Plan:
    fields = {"sizes": SIZES, "batch": 16, "steps": 400, "pass_steps": 57, "seed": 3, **other}
    return Plan(sampling, **fields)


def test_each_step_holds_each_task_within_a_row_of_its_share() -> None:
    made = plan(Temperature(temperature=2))
    counts = made.counts()
    assert (counts.sum(axis=1) == 16).all()
    assert np.abs(counts - made.shares() * 16).max() < 1
    assert counts.mean(axis=0) == pytest.approx(made.shares()[0] * 16, abs=0.1)


def test_annealing_moves_the_counts_from_proportional_to_equal() -> None:
    counts = plan(Annealed()).counts()
    assert counts[:40, 1].mean() == pytest.approx(16 / 9, abs=0.3)
    assert counts[-40:, 1].mean() == pytest.approx(8, abs=0.6)


def test_a_pass_that_is_taken_up_in_its_middle_by_several_workers_is_that_pass() -> None:
    index = {"a": list(range(8)), "b": list(range(8, 24))}
    planned = Plan(Proportional(), {"a": 8, "b": 16}, 6, 12, 4, 0)

    def batches(steps_before: int) -> list[list[int]]:
        """What one of two workers is given of the rest of the second pass, three rows at a time."""
        memory = TaskMemory()
        memory.sampler = TaskSampler(planned, index)
        loader = DataLoader(range(24), batch_size=3, sampler=memory.sampler)  # type: ignore[arg-type]
        shard = prepare_data_loader(loader, num_processes=2, process_index=0, put_on_device=False)
        memory.on_epoch_begin(None, SimpleNamespace(global_step=4 + steps_before), None)
        rest = skip_first_batches(shard, steps_before) if steps_before else shard
        rest.set_epoch(1)
        return [batch.tolist() for batch in rest]

    whole = batches(0)
    assert len(whole) == 4
    assert batches(2) == whole[2:]


@pytest.mark.parametrize("sampling", [Proportional(), Equal()], ids=str)
def test_no_row_is_seen_again_before_all_of_its_task_were(sampling: Sampling) -> None:
    made = plan(sampling)
    rows = [row for number in range(8) for row in made.rows(number, made.counts())]
    assert len(rows) == 400 * 16
    for first, last in ((0, 800), (800, 900)):
        seen = Counter(row for row in rows if first <= row < last)
        assert len(seen) == last - first
        assert max(seen.values()) - min(seen.values()) <= 1


# training


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The smallest encoder, where learning is not what is asked."""
    return str(model_folder(tmp_path_factory.mktemp("small"), "bert"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of random weights, without dropout, with the tokenizer of MiniLM."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    tokenizer = load_tokenizer(resolve(MINILM))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(sizes: dict[str, int], corrupted: str = "") -> list[dict[str, Any]]:
    """Questions whose first word decides their label; of a corrupted task the label is drawn by chance."""
    rng, found = random.Random(0), []
    for task, count in sizes.items():
        for i in range(count):
            subject = ("card", "transfer", "rate")[i % 3]
            label = rng.choice(("card", "transfer", "rate")) if task == corrupted else subject
            text = f"{subject} of {task} number {i} {'please ' * (i % 4)}"
            found.append({**original(f"{task}{i}", "train", {"text": text, "label": label}), "task": task})
    return found


def trained(root: Path, model: str, tasks: Any, data: list[dict[str, Any]], micro: int = 4, **fields: Any) -> Any:
    dataset(root, data)
    optimisation = {"learning_rate": 1e-3, "epochs": 2, **fields.pop("optimisation", {})}
    scale = {"workers": 0, "micro_batch": micro, **fields.pop("scale", {})}
    run_stage(root, stage_of("sft", model, optimisation, tasks=tasks, scale=scale, **fields))
    return trace(root)


THREE = {"a": 40, "b": 20, "c": 12}


def test_separate_gradients_without_a_remedy_are_plain_training(tmp_path: Path, small: str) -> None:
    sampling = {"kind": "equal"}
    plain = trained(tmp_path / "plain", small, {"sampling": sampling}, rows(THREE))
    apart = trained(tmp_path / "apart", small, {"sampling": sampling, "conflict": {"kind": "none"}}, rows(THREE))
    assert [line["loss"] for line in apart] == pytest.approx([line["loss"] for line in plain], abs=1e-5)
    assert [line["grad_norm"] for line in apart] == pytest.approx([line["grad_norm"] for line in plain], rel=1e-4)
    assert all("conflict" in line for line in apart)
    assert not any("conflict" in line for line in plain)


@pytest.mark.parametrize("tasks", [{"weighting": {"kind": "gradnorm"}, "conflict": {"kind": "gradvac"}}], ids=["all"])
def test_the_division_of_the_batch_does_not_matter(tmp_path: Path, small: str, tasks: Any) -> None:
    losses = []
    for micro in (1, 2, 8):
        lines = trained(tmp_path / str(micro), small, tasks, rows(THREE), micro)
        losses.append([(line["loss"], line["tasks"]["a"]["loss"], line["tasks"]["a"]["weight"]) for line in lines])
    assert np.array(losses[0]) == pytest.approx(np.array(losses[2]), abs=1e-4)
    assert np.array(losses[1]) == pytest.approx(np.array(losses[2]), abs=1e-4)


def test_the_trace_tells_the_tasks_of_each_step(tmp_path: Path, small: str) -> None:
    lines = trained(tmp_path, small, {"sampling": {"kind": "equal"}}, rows(THREE))
    assert len(lines) == 18
    for line in lines:
        assert Counter(row[0] for row in line["rows"]) == {t: item["rows"] for t, item in line["tasks"].items()}
        mean = sum(item["loss"] * item["items"] for item in line["tasks"].values()) / 8
        assert line["loss"] == pytest.approx(mean, abs=1e-5)


DYNAMIC = [
    {"kind": "uncertainty", "learning_rate": 0.1},
    {"kind": "gradnorm", "alpha": 0, "learning_rate": 0.05},
    # references: what plain training of this length reaches
    {"kind": "excess_loss", "reference": {"a": 0.2, "b": 0.2, "c": 1.7}},
    {"kind": "loss_ratio", "exponent": -1},
    {"kind": "dwa", "every": 6},
]


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> dict[str, list[dict[str, Any]]]:
    """The trace under each dynamic weighting of two tasks that can be learnt and of c, whose labels are noise."""
    found = {}
    for weighting in DYNAMIC:
        root = tmp_path_factory.mktemp(str(weighting["kind"]))
        tasks = {"weighting": weighting, "sampling": {"kind": "equal"}}
        data = rows({"a": 40, "b": 40, "c": 40}, corrupted="c")
        found[str(weighting["kind"])] = trained(root, tiny, tasks, data, micro=8, optimisation=LEARNING)
    return found


LEARNING = {"learning_rate": 5e-3, "epochs": 4, "global_batch": 24}


def late(lines: list[dict[str, Any]], key: str) -> dict[str, float]:
    """A figure of each task, the mean of the last five steps."""
    return {task: float(np.mean([line["tasks"][task][key] for line in lines[-5:]])) for task in "abc"}


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm", "excess_loss", "loss_ratio"])
def test_a_task_that_cannot_be_learnt_loses_weight(corrupted: dict[str, list[dict[str, Any]]], kind: str) -> None:
    lines = corrupted[kind]
    losses, found = late(lines, "loss"), late(lines, "weight")
    assert losses["c"] > 2 * max(losses["a"], losses["b"])
    assert found["c"] < 0.8 * min(found["a"], found["b"])
    assert lines[0]["tasks"]["c"]["weight"] == 1


def test_dynamic_weight_average_favours_what_does_not_fall(corrupted: dict[str, list[dict[str, Any]]]) -> None:
    found = late(corrupted["dwa"], "weight")
    assert found["c"] > max(found["a"], found["b"])


def test_weights_of_the_loss_are_weights_of_the_gradient(tmp_path: Path, small: str) -> None:
    """At weights of 2 a step of plain gradient descent would be twice as long: the gradient's norm is."""
    optimisation = {"epochs": 1, "steps": 1, "max_grad_norm": 0}
    norms = []
    for weight in (1.0, 2.0):
        weighting = {"kind": "fixed", "weights": dict.fromkeys("abc", weight)}
        lines = trained(tmp_path / str(weight), small, {"weighting": weighting}, rows(THREE), optimisation=optimisation)
        norms.append(lines[0]["grad_norm"])
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_rows_weights_and_cosines(tmp_path: Path, small: str) -> None:
    tasks = {
        "sampling": {"kind": "annealed"}, "conflict": {"kind": "gradvac", "beta": 0.2},
        "weighting": {"kind": "gradnorm"},
    }  # fmt: skip
    whole = trained(tmp_path / "whole", small, tasks, rows(THREE), checkpointing={"every_steps": 4})
    dataset(tmp_path / "killed", rows(THREE))
    settings = {"learning_rate": 1e-3, "epochs": 2}
    stage = stage_of("sft", small, settings, tasks=tasks, checkpointing={"every_steps": 4})
    die(tmp_path / "killed", stage, step=10)
    assert (tmp_path / "killed" / "train" / "checkpoints").is_dir()
    run_stage(tmp_path / "killed", stage)
    assert trace(tmp_path / "killed") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "scale"),
    [
        ({"weighting": {"kind": "gradnorm"}, "conflict": {"kind": "pcgrad"}}, {}),
        ({"weighting": {"kind": "uncertainty"}, "sampling": {"kind": "equal"}}, {}),
        ({"weighting": {"kind": "uncertainty"}, "sampling": {"kind": "equal"}}, {"deepspeed": {"stage": 2}}),
    ],
    ids=["separate", "weighted", "zero2"],
)
def test_two_workers_train_as_one(tmp_path: Path, small: str, tasks: Any, scale: Any, ray_session: Any) -> None:
    alone = trained(tmp_path / "0", small, tasks, rows(THREE))
    together = trained(tmp_path / "2", small, tasks, rows(THREE), scale={"workers": 2, "cpus": 0.5, **scale})
    assert [sorted(line["rows"]) for line in together] == [sorted(line["rows"]) for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], abs=2e-3)
    for one, two in zip(alone, together, strict=True):
        for task, item in one["tasks"].items():
            assert two["tasks"][task] == pytest.approx(item, abs=2e-3)
        if "conflict" in one:
            ours, theirs = (np.array(line["conflict"]["cosines"], dtype=float) for line in (one, two))
            assert theirs == pytest.approx(ours, abs=1e-2, nan_ok=True)


def test_a_worker_that_sees_fewer_tasks_fills_up_with_rows_that_count_for_nothing() -> None:
    trainer = MultiTask()
    trainer.accelerator = SimpleNamespace(
        num_processes=2, device="cpu", gather=lambda most: torch.cat([most, torch.tensor([3])])
    )
    run: Any = SimpleNamespace(names=("a", "b", "c"))
    inputs = {"input_ids": torch.ones(2, 3), ROWS: ["r1", "r2"], TOKENS: [3, 2], TASKS: ["b", "b"]}
    blank, again, part = trainer._parts(run, inputs, by_row=False)
    assert [each.scale for each in (blank, again, part)] == [0, 0, 1]
    assert [each.inputs.pop(ROWS) for each in (blank, again, part)] == [[""], [""], ["r1", "r2"]]


@pytest.mark.slow
def test_tasks_of_a_language_model_on_two_workers(tmp_path: Path, ray_session: Any) -> None:
    """TRL gathers in every loss: workers whose micro-batches hold different tasks must not wait for ever."""
    data = [
        {**original(f"{task}{i}", "train", {"prompt": f"{task} {i}:", "completion": f" {i} {task}"}), "task": task}
        for task, count in {"a": 12, "b": 5}.items()
        for i in range(count)
    ]
    dataset(tmp_path, data, "completion")
    scale = {"workers": 2, "cpus": 0.5, "micro_batch": 2}
    model = {"name": str(model_folder(tmp_path / "llama", "llama")), "lora": {"rank": 4}}
    tasks = {"conflict": {"kind": "cagrad"}, "sampling": {"kind": "equal"}}
    run_stage(tmp_path, stage_of("sft", model, {"steps": 2}, tasks=tasks, scale=scale))
    lines = trace(tmp_path)
    assert [sum(item["rows"] for item in line["tasks"].values()) for line in lines] == [8, 8]
    assert lines[1]["loss"] < lines[0]["loss"]


# what cannot work


@pytest.mark.parametrize(
    ("data", "tasks", "says"),
    [
        (rows({"a": 8}), {}, "two tasks or more, the rows are all of a"),
        ([{**row, "task": None} for row in rows({"a": 8})], {}, "8 training rows name no task; .* mix"),
        (rows(THREE), {"sampling": {"kind": "explicit", "values": {"a": 1, "b": 1, "d": 1}}}, "a, b, c; look at c, d"),
        (rows(THREE), {"weighting": {"kind": "fixed", "weights": {"d": 2}}}, "look at d"),
        (rows(THREE), {"weighting": {"kind": "excess_loss", "reference": {"a": 1.0}}}, "look at b, c"),
    ],
    ids=["one", "none", "rates", "weights", "references"],
)
def test_tasks_that_are_not_those_of_the_data_are_refused(
    tmp_path: Path, small: str, data: list[dict[str, Any]], tasks: Any, says: str
) -> None:
    with pytest.raises(StageError, match=says):
        trained(tmp_path, small, tasks, data)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (
            {"conflict": {"kind": "pcgrad"}},
            "scale.deepspeed: .* before conflict pcgrad .*; leave deepspeed",
        ),
        ({"weighting": {"kind": "gradnorm"}}, "before weighting gradnorm can compare"),
    ],
)
def test_gradients_of_single_tasks_are_refused_under_deepspeed(tasks: Any, says: str) -> None:
    stage = stage_of("sft", MINILM, {}, tasks=tasks, scale={"workers": 1, "deepspeed": {"stage": 0}})
    [problem] = stage.check()
    assert re.search(says, str(problem))
    assert not stage_of("sft", MINILM, {}, tasks={}, scale={"workers": 1, "deepspeed": {"stage": 3}}).check()


def test_a_rate_of_nothing_is_refused() -> None:
    stage = stage_of("sft", MINILM, {}, tasks={"sampling": {"kind": "explicit", "values": {"a": 0}}})
    problems = [str(problem) for _, child in stage.children() for problem in child.check()]
    assert problems == ["values.a: must be above 0, not 0; leave a task without rate out of the data"]


def test_gradients_are_taken_apart_while_blocks_are_thawed(tmp_path: Path, small: str) -> None:
    """What is trained grows on the way, and with it what a task's gradient is of."""
    model = {"name": small, "freeze": {"blocks": [0, 2], "embeddings": True, "thaw_steps": 2}}
    losses = []
    for kind in ("none", "pcgrad"):
        dataset(tmp_path / kind, rows(SIZES))
        fields = {"tasks": {"conflict": {"kind": kind}}}
        run_stage(tmp_path / kind, stage_of("sft", model, {"steps": 5, "learning_rate": 1e-9}, **fields))
        losses.append([line["loss"] for line in trace(tmp_path / kind)])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
