"""General ability: what training takes from it is reported, replay and the pull to the beginning do what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tilth.data.loading import load_pretrained, load_trained
from tilth.data.schema import original
from tilth.recipe import Stage
from tilth.report.training import forgotten
from tilth.storage import Store
from tilth.train.forgetting import Forgetting, Replay
from training import dataset, run_stage, stage_of, tiny_llama, trace


def texts(count: int, split: str, word: str) -> list[dict[str, Any]]:
    return [original(f"{split[0]}{i}", split, {"text": f"{word} {i} and {word} {i}"}) for i in range(count)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("model")))


def stage(model: str, forgetting: dict[str, Any], **optimisation: Any) -> Stage:
    settings = {"epochs": 1, "global_batch": 4, "scheduler": "constant", **optimisation}
    return stage_of("sft", model, settings, forgetting=forgetting)


def weights(root: Path) -> dict[str, torch.Tensor]:
    loaded = load_trained(Store.at(root).sub("train").fetch("model"), device="cpu")
    return {name: value.detach() for name, value in loaded.model.named_parameters()}


def test_probes_are_scored_on_the_model_before_and_on_the_one_that_is_left(tmp_path: Path, llama: str) -> None:
    general = texts(5, "test", "harvest")
    dataset(tmp_path, [*texts(8, "train", "seed"), *general], "text")
    probes = [{"data": "@data", "split": "test", "rows": 3}]
    made = run_stage(tmp_path, stage(llama, {"probes": probes}, learning_rate=0.01))
    for when, folder in (("before", Path(llama)), ("after", tmp_path / "train" / "model")):
        loaded = load_trained(folder, device="cpu")
        losses, tokens = 0.0, 0
        for row in general[:3]:
            ids = loaded.tokenizer(row["text"], return_tensors="pt")["input_ids"]
            with torch.no_grad():
                losses += loaded.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        found = made.detail["probes"][when]["data_test perplexity"]
        assert found == pytest.approx(math.exp(losses / tokens), rel=1e-4)
    table = {name: change for name, _, _, change in forgotten(made.detail)}
    assert made.metrics["data_test perplexity change"] == table["data_test perplexity"] != 0
    assert set(table) == {"data_test perplexity", "data_test token accuracy"}


def test_a_zero_shot_task_is_scored_by_the_likeliest_choice(tmp_path: Path, llama: str) -> None:
    labels = ("green", "blue as the sea", "red")
    fields = [{"text": f"thing {i}" * (1 + i % 3), "label": labels[i % 3]} for i in range(9)]
    tasks = tmp_path / "tasks"
    dataset(tasks, [original(f"t{i}", "test", row) for i, row in enumerate(fields)])
    dataset(tmp_path, texts(8, "train", "seed"), "text")
    zero_shot = {"prompt": "{{ text }} is", "length": "tokens"}
    probes = [{"data": "@tasks", "zero_shot": zero_shot, "rows": 7}, {"data": "@data", "split": "test"}]
    what = stage(llama, {"probes": probes[:1]}, learning_rate=0.01)
    made = run_stage(tmp_path, what, tasks=tasks)
    for when, folder in (("before", Path(llama)), ("after", tmp_path / "train" / "model")):
        loaded = load_trained(folder, device="cpu")
        right = 0
        for row in fields[:7]:
            losses = {}
            for label in ("blue as the sea", "green", "red"):
                before, whole = (loaded.tokenizer(f"{row['text']} is{end}")["input_ids"] for end in ("", f" {label}"))
                ids = torch.tensor([whole])
                with torch.no_grad():
                    logits = loaded.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
                losses[label] = -logits[len(before) - 1 :].mean().item()
            right += min(losses, key=losses.__getitem__) == row["label"]
        assert made.detail["probes"][when] == {"tasks_test zero-shot accuracy": pytest.approx(right / 7)}


def test_replayed_rows_are_a_share_of_those_trained_on_and_are_named(tmp_path: Path, llama: str) -> None:
    dataset(tmp_path, [*texts(9, "train", "seed"), *texts(20, "general", "harvest")], "text")
    replay = {"data": "@data", "split": "general", "share": 0.25}
    made = run_stage(tmp_path, stage(llama, {"replay": replay}, learning_rate=1e-3))
    rows = [row for line in trace(tmp_path) for row in line["rows"]]
    assert made.counts == {"rows": 9, "rows_seen": 9, "replayed": 3}
    assert len(rows) == len(set(rows)) == 12
    assert sum(row.startswith("@data/g") for row in rows) == 3


def test_a_replayed_share_is_never_more_than_there_is() -> None:
    assert Replay(data="@x", share=0.5).rows(100, 1000) == 100
    assert Replay(data="@x", share=0.5).rows(100, 7) == 7
    assert Replay(data="@x", share=0.01).rows(10, 1000) == 1


@pytest.mark.long
def test_the_pull_takes_its_share_of_the_way_back_after_the_step(tmp_path: Path, llama: str) -> None:
    moved = []
    for strength in (0.0, 20.0):
        root = tmp_path / str(strength)
        dataset(root, texts(4, "train", "seed"), "text")
        run_stage(root, stage(llama, {"l2_to_init": strength}, learning_rate=0.01))
        moved.append(weights(root))
    start = dict(load_pretrained(Path(llama), "language_model").model.named_parameters())
    free, pulled = moved
    for name, value in free.items():
        torch.testing.assert_close(pulled[name], value + 0.01 * 20.0 * (start[name].detach() - value))
    assert any(not torch.equal(free[name], pulled[name]) for name in free)


def test_what_would_say_nothing_is_refused() -> None:
    same = {"data": "@data", "split": "general"}
    [problem] = Forgetting(probes=(same,), replay=same).check()  # type: ignore[arg-type]
    assert problem.mend == "probe another split"
    zero = {"workers": 2, "deepspeed": {"stage": 2}}
    [problem] = stage_of("sft", "x", {}, forgetting={"l2_to_init": 1.0}, scale=zero).check()
    assert problem.mend == "set l2_to_init: 0, or scale.deepspeed: null"
    [problem] = stage_of("sft", "x", {}, forgetting={"probes": [{"data": "@data", "split": "train"}]}).check()
    assert problem.what == "these rows are trained on"
