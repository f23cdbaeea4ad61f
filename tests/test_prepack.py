"""Stage `pack`: the tokens that a trainer would make, every row in one pack, learnt as the trainer's own packs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from trl import SFTConfig, SFTTrainer

import tilth
from tilth.data.dataset import Dataset
from tilth.data.loading import load_pretrained, load_tokenizer
from tilth.data.schema import original
from tilth.errors import StageError
from tilth.runs import Artifact
from tilth.storage import Store
from tilth.train import trace as traces
from tilth.train.chat import as_trl
from tilth.train.masking import IGNORED
from tilth.train.tokens import Encoder, best_fit, packed
from training import tiny_llama

TURNS = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Here."},
    {"role": "user", "content": "And the other one, which I lost last week?"},
    {"role": "assistant", "content": "There, under the table."},
]
FORMS = {
    "text": [{"text": "One line."}, {"text": "Another line, " * 20}],
    "labelled": [{"text": "Where is my card?", "label": "card_arrival"}],
    "completion": [
        {"prompt": "The colour is", "completion": " green"},
        {"prompt": "hel", "completion": "lo there<|im_end|>"},
        {"prompt": "long " * 60, "completion": " never seen"},
    ],
    "chat": [{"messages": TURNS}, {"messages": TURNS[:2]}],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("row_type", list(FORMS))
@pytest.mark.parametrize("learns", ["completion", "assistant", "all"])
def test_the_tokens_are_those_that_trl_makes(tmp_path: Path, llama: Path, row_type: str, learns: str) -> None:
    tokenizer = load_tokenizer(llama)
    form = as_trl(row_type, learns, tokenizer)
    rows = [original(f"r{i}", "train", fields) for i, fields in enumerate(FORMS[row_type])]
    args = SFTConfig(
        str(tmp_path), max_length=48, completion_only_loss=learns != "all", use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False,
    )  # fmt: skip
    given = datasets.Dataset.from_list([{"id": row["id"], **form(row)} for row in rows])
    trainer = SFTTrainer(load_pretrained(llama, "language_model").model, args, train_dataset=given,
                         processing_class=tokenizer)  # fmt: skip
    theirs = {row["id"]: (row["input_ids"], row["labels"]) for row in trainer.train_dataset}
    encode = Encoder(tokenizer, row_type, learns, 48)
    ours = packed(rows, encode, 48, ["train"])
    assert {row["id"]: (row["input_ids"], row["labels"]) for row in ours if row["reason"] is None} == theirs
    assert len(ours) == len(rows)


def test_best_fit_fills_the_fullest_pack_that_has_room() -> None:
    assert best_fit([5, 3, 4, 2], 7) == [[0, 3], [2, 1]]
    assert best_fit([], 7) == []
    sizes = [1 + (i * i) % 23 for i in range(500)]
    packs = best_fit(sizes, 24)
    assert sorted(place for pack in packs for place in pack) == list(range(500))
    assert max(sum(sizes[place] for place in pack) for pack in packs) <= 24
    assert sum(sizes) / (24 * len(packs)) > 0.97


def recipe(llama: Path, train: dict[str, Any], **pack: Any) -> dict[str, Any]:
    fields = [{"prompt": f"Thing {i} is", "completion": " very" * (i % 9) + " green."} for i in range(40)]
    rows = [{"id": f"c{i:02}", **row} for i, row in enumerate([*fields, {"prompt": "no " * 60, "completion": "end"}])]
    here, scale = {"workers": 0}, {"workers": 0, "micro_batch": 8}
    optimisation = {"global_batch": 16, "steps": 1, "learning_rate": 1e-3}
    data = {"kind": "data", "row": "completion", "source": {"kind": "inline", "rows": rows}, "resources": here,
            "split": {"validation": 0.2}}  # fmt: skip
    packing = {"kind": "pack", "data": "@data", "model": str(llama), "max_length": 48, "resources": here, **pack}
    sft = {"kind": "sft", "model": {"name": str(llama)}, "optimisation": optimisation, "scale": scale, **train}
    return {"name": "packed", "stages": {"data": data, "packed": packing, "tuned": {"data": "@packed", **sft}}}


def steps(artifact: Artifact) -> list[dict[str, Any]]:
    return traces.read(artifact.store)


@pytest.mark.long
def test_packs_are_learnt_as_those_of_the_trainer(tmp_path: Path, llama: Path) -> None:
    found = tilth.run(recipe(llama, {"validation": {"split": "validation"}}, unit_rows=13, length=64), tmp_path / "a")
    rows = {row["id"]: row for row in Dataset.open(found["data"]).rows()}
    made = Dataset.open(found["packed"])
    [dropped] = made.rejected_rows()
    assert dropped["reason"] == "no_loss: none of its first 48 tokens is learnt"
    assert {row["id"]: row["root"] for row in made.rows()} | {dropped["id"]: dropped["root"]} == {
        name: row["root"] for name, row in rows.items()
    }
    packs: dict[str, int] = {}
    order = [(row["pack"], len(row["input_ids"])) for row in made.split("train").rows()]
    for before, (name, size) in zip([None, *(name for name, _ in order)], order, strict=False):
        assert name == before or name not in packs, "the rows of a pack lie side by side"
        packs[name] = packs.get(name, 0) + size
    assert max(packs.values()) <= 64
    tokens = sum(packs.values())
    assert found["packed"].metrics == {
        "packs": len(packs),
        "tokens": tokens,
        "filled": round(tokens / len(packs) / 64, 4),
    }
    assert all(row["pack"] == row["id"] for row in made.split("validation").rows())

    settings = {"max_length": 48, "packing": {"length": 64}, "data": "@data", "validation": {"split": "validation"}}
    theirs = tilth.run(recipe(llama, settings, unit_rows=13), tmp_path / "b")
    ours, plain = steps(found["tuned"]), steps(theirs["tuned"])
    assert sorted(ours[0]["rows"]) == sorted(plain[0]["rows"]), "all rows are in the one step"
    assert ours[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
    assert ours[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)
    assert found["tuned"].metrics["validation_loss"] == pytest.approx(
        theirs["tuned"].metrics["validation_loss"], rel=1e-5
    )
    assert found["tuned"].counts["rows_seen"] == len(order)


@pytest.mark.long
def test_packs_of_another_tokenizer_or_already_packed_rows_are_refused(tmp_path: Path, llama: Path) -> None:
    other = tmp_path / "other"
    load_pretrained(llama, "language_model").model.save_pretrained(other)
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(other)
    what = recipe(llama, {})
    for train, says in (
        ({"model": {"name": str(other)}}, "packed with another tokenizer or chat template than that of"),
        ({"loss_on": "all"}, "loss_on is all, but @packed was packed with completion; leave it out here, or set it"),
        ({"max_length": 64}, "max_length is 64, but @packed was packed with 48"),
        ({"packing": {}}, "lie in their packs already; leave out"),
        ({"split": "validation"}, "@packed packs train, not validation"),
        ({"tasks": {}}, "a pack holds rows of several tasks"),
        ({"model": {"name": str(llama), "prompt_tuning": {"length": 4}}}, "puts its tokens before a pack"),
    ):
        what["stages"]["tuned"] |= train
        with pytest.raises(StageError, match=says):
            tilth.run(what, tmp_path / "run")
        what = recipe(llama, {})
    again = {"kind": "mix", "data": {"one": "@packed"}, "resources": {"workers": 0}}
    what["stages"] = {**what["stages"], "mixed": again, "tuned": {**what["stages"]["tuned"], "data": "@mixed"}}
    del what["stages"]["tuned"]
    what["stages"]["tuned"] = {**recipe(llama, {})["stages"]["tuned"], "data": "@mixed"}
    with pytest.raises(StageError, match="went through a stage mix; pack after it"):
        tilth.run(what, tmp_path / "run")
    assert not Store.at(tmp_path / "run").exists("stages/tuned/model")


@pytest.mark.slow
def test_the_recipe_packs_on_ray(
    tmp_path: Path, llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, ray_session: Any
) -> None:
    monkeypatch.chdir(root)
    small = (
        f"stages.packs.model={llama}", f"stages.tuned.model.name={llama}", "stages.tuned.optimisation.steps=2",
        "stages.packs.unit_rows=8", "stages.packs.resources.workers=2", "stages.tuned.scale.workers=0",
    )  # fmt: skip
    found = tilth.run("examples/recipes/pack.yaml", tmp_path, *small)
    assert found["packs"].counts["accepted"] == found["instructions"].counts["accepted"]
    assert 0 < found["packs"].metrics["packs"] < Dataset.open(found["packs"]).splits()["train"]
    assert found["tuned"].metrics["steps"] == 2


def test_what_is_not_learnt_is_not_a_loss_of_a_neighbour(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    rows = [original(f"r{i}", "train", {"prompt": "Say", "completion": f" {i}"}) for i in range(3)]
    for row in packed(rows, Encoder(tokenizer, "completion", "completion", 16), 16, ["train"]):
        asked = tokenizer("Say")["input_ids"]
        assert row["labels"] == [IGNORED] * len(asked) + row["input_ids"][len(asked) :]
