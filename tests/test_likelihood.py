"""How likely generators that hold a model find texts: as likely as forward passes of transformers in float32 do."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tilth
from test_evaluate_generation import FRUIT, recipe, trained
from test_generators import SMOLLM, adapter_at
from tilth import models
from tilth.data.dataset import Dataset
from tilth.data.loading import Card, load_tokenizer
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs
from tilth.errors import ModelError, RecipeError, StageError
from tilth.evaluate.predictor import Predictor, Wanted, predictions
from tilth.evaluate.tasks.base import Pass
from tilth.evaluate.tasks.choices import Choices
from tilth.generate.base import Likelihood, LocalModel
from tilth.generate.echo import Echo
from tilth.generate.hf import HuggingFace
from tilth.generate.vllm import Vllm
from tiny import model_folder

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
#: tokens that the tiny model reads, which are bytes
MOST = 64
TURNS = [
    {"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Loire."},
    {"role": "user", "content": "Another?"}, {"role": "assistant", "content": "The Elbe."},
    {"role": "user", "content": "Ah"},
]  # fmt: skip
PAYLOADS: dict[str, dict[str, Any]] = {
    "text": {"text": "Where is it? Où est-ce?", "label": "card_arrival"},
    "one token": {"text": "x"},
    "as long as it reads": {"text": "y" * (MOST - 1)},
    "one longer": {"text": "y" * MOST},
    "long": {"text": "one two three " * 20},
    "completion": {"prompt": "The capital of France is", "completion": " Paris, on the Seine."},
    "long prompt": {"prompt": "very " * 20 + "long", "completion": " indeed"},
    "no prompt": {"prompt": "", "completion": "Paris"},
    "conversation": {"messages": TURNS[:2]},
    "open conversation": {"messages": TURNS},
}
#: float32 sums over other orders: of nats a window sums to, hundreds
NATS = {"rel": 1e-5, "abs": 1e-3}


def rows(*names: str) -> list[Row]:
    return [original(name, "test", PAYLOADS[name]) for name in names or PAYLOADS]


def agree(found: list[Row], expected: list[Row]) -> None:
    """The same figures of every row: nll within `NATS`, all others exactly."""
    for one, other in zip(found, expected, strict=True):
        assert one["meta"].pop("nll") == pytest.approx(other["meta"].pop("nll"), **NATS), one["id"]
        assert one == other


def causal(folder: Path) -> Path:
    """A tiny language model whose attention heads are wide enough for vLLM, with a card."""
    model_folder(folder, "llama", width=128)
    Card(max_length=MOST).write(folder)
    return folder


def vllm(folder: Path | str, **fields: Any) -> Vllm:
    engine = {"kv_cache_gib": 0.2, "max_num_seqs": 16}
    return Vllm.model_validate({"model": str(folder), "dtype": "float32", "engine": engine, **fields})


def told(generator: LocalModel, wanted: Wanted, given: list[Row]) -> list[Row]:
    return predictions(generator, Inputs(), wanted, batch_tokens=1, dtype="auto")(given)


def windows_are_those_of_forward_passes(generator: LocalModel, folder: Path) -> None:
    for wanted in (Wanted(), Wanted(stride=20), Wanted(keeps_end=True)):
        names = [*PAYLOADS]
        if wanted == Wanted():
            names.remove("long prompt")  # its completion would be cut off
        agree(told(generator, wanted, rows(*names)), Predictor(folder, wanted).predict(rows(*names)))


def test_transformers_as_a_generator_is_the_same_forward_pass(tmp_path: Path) -> None:
    folder = causal(tmp_path / "m")
    windows_are_those_of_forward_passes(HuggingFace(model=str(folder), batch_tokens=100), folder)


def test_windows_are_no_longer_than_the_generator_is_to_read(tmp_path: Path) -> None:
    folder = causal(tmp_path / "m")
    (found,) = told(HuggingFace(model=str(folder), max_model_len=20), Wanted(), rows("long"))
    assert (found["meta"]["tokens"], found["meta"]["truncated"]) == (19, True)
    (found,) = told(HuggingFace(model=str(folder), max_model_len=2000), Wanted(), rows("long"))
    assert found["meta"]["tokens"] == MOST - 1


def test_a_template_of_the_recipe_writes_conversations(tmp_path: Path) -> None:
    folder = causal(tmp_path / "m")
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    (found,) = told(HuggingFace(model=str(folder), chat_template=template), Wanted(), rows("conversation"))
    assert found["meta"]["bytes"] == len("The Loire.|")


def evaluated(folder: Path, task: dict[str, Any], given: list[dict[str, Any]], row: str) -> tuple[Any, dict[str, Any]]:
    """The stage `evaluate`, and what each model said, by row."""
    plan = recipe(folder, given, row, task, models={"plain": str(folder / "m")})
    artifact = tilth.run(plan, folder / "out")["evaluate"]
    names = ["plain", *task["generators"]]
    said = {name: list(Dataset.open(artifact.store.sub(f"predictions/{name}")).rows()) for name in names}
    return artifact, {name: {row["id"]: row["meta"] for row in kept} for name, kept in said.items()}


def generators(folder: Path, *kinds: str) -> dict[str, Any]:
    every = {
        "hf": {"kind": "hf", "model": str(folder / "m"), "batch_tokens": 100},
        "vllm": {"kind": "vllm", **vllm(folder / "m").model_dump(exclude={"kind"})},
    }
    return {kind: every[kind] for kind in kinds}


def choices_are_ranked_alike(folder: Path, *kinds: str) -> None:
    """Two shots before each question, so that some rows are longer than the model reads and lose their beginning."""
    given = [{"text": f"{split} thing {'very ' * (i % 3)}{i}", "label": FRUIT[i % 3], "split": split}
             for split in ("train", "test") for i in range(12)]  # fmt: skip
    task = {
        "kind": "choices", "prompt": "{{ text }} is a", "shots": {"count": 2}, "generators": generators(folder, *kinds),
        "metrics": [{"kind": "classification"}, {"kind": "auc_ovr"}],
    }  # fmt: skip
    artifact, said = evaluated(folder, task, given, "labelled")
    assert any(meta["truncated"] for meta in said["plain"].values())
    for kind in kinds:
        assert artifact.metrics[f"{kind}/accuracy"] == artifact.metrics["plain/accuracy"]
        for name, meta in said["plain"].items():
            other = said[kind][name]
            assert other["prediction"] == meta["prediction"]
            assert other["probabilities"] == pytest.approx(meta["probabilities"], abs=1e-4)
            assert (other["references"], other["truncated"]) == (meta["references"], meta["truncated"])


def perplexities_are_alike(folder: Path, *kinds: str) -> None:
    given = [
        {"prompt": f"Name fruit {i}.", "completion": f" {FRUIT[i % 4]}, which is {'very ' * i}ripe"} for i in range(12)
    ]
    task = {"kind": "forward", "stride": 16, "generators": generators(folder, *kinds)}
    artifact, said = evaluated(folder, task, given, "completion")
    for kind in kinds:
        for figure in ("perplexity", "bits_per_byte"):
            assert artifact.metrics[f"{kind}/{figure}"] == pytest.approx(artifact.metrics[f"plain/{figure}"], rel=1e-5)
        for name, meta in said["plain"].items():
            assert said[kind][name] == {**meta, "nll": pytest.approx(meta["nll"], **NATS)}


def test_the_stage_ranks_and_measures_by_transformers_as_a_generator(tmp_path: Path) -> None:
    causal(tmp_path / "m")
    choices_are_ranked_alike(tmp_path, "hf")
    perplexities_are_alike(tmp_path, "hf")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a tiny model lies in `m`, while an engine serves it that all generators with the same config share."""
    folder = tmp_path_factory.mktemp("served")
    held: Likelihood = vllm(causal(folder / "m")).load_likelihood(Inputs())
    yield folder
    del held


@needs_vllm
@pytest.mark.long
def test_vllm_finds_texts_as_likely_as_forward_passes_do(served: Path) -> None:
    """All that needs no other engine, in one test, since the engine takes half a minute to start."""
    windows_are_those_of_forward_passes(vllm(served / "m"), served / "m")
    choices_are_ranked_alike(served, "vllm")
    perplexities_are_alike(served, "vllm")


@needs_vllm
@pytest.mark.slow
def test_an_adapter_trained_after_labels_is_read_with_its_own_tokenizer_and_length(tmp_path: Path) -> None:
    adapter_at(tmp_path)
    tokenizer = load_tokenizer(models.resolve(SMOLLM))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    Card(base=SMOLLM, peft="lora", max_length=24, conditioned=True).write(tmp_path)
    names = ("text", "long", "completion", "conversation", "open conversation")
    for wanted in (Wanted(), Wanted(stride=10), Wanted(keeps_end=True)):
        found = told(vllm(tmp_path), wanted, rows(*names))
        agree(found, Predictor(tmp_path, wanted).predict(rows(*names)))


# what tells no likelihood


@pytest.mark.parametrize("task", [{"kind": "forward"}, {"kind": "choices"}], ids=["forward", "choices"])
@pytest.mark.parametrize(
    ("generator", "says"),
    [
        ({"kind": "echo"}, "task.generators.m: kind echo answers, but does not tell how likely"),
        ({"kind": "http", "base_url": "http://x/v1", "model": "m"}, "use kind vllm or hf, which hold the model"),
        ({"kind": "hf", "model": "x/y", "system": "Be brief."}, "task.generators.m.system: is put before no text"),
    ],
    ids=["echo", "http", "system"],
)
def test_generators_that_tell_no_likelihood_are_refused_before_anything_starts(
    tmp_path: Path, task: dict[str, Any], generator: dict[str, Any], says: str
) -> None:
    given = [{"text": "a", "label": "b"}]
    with pytest.raises(RecipeError, match=says.replace(".", r"\.")):
        tilth.load(recipe(tmp_path, given, "labelled", {**task, "generators": {"m": generator}}))


def test_a_generator_that_tells_none_is_refused_in_python_too() -> None:
    with pytest.raises(StageError, match="kind echo answers, but does not tell"):
        Choices().step(Echo(), Pass())


@pytest.mark.parametrize(
    ("kind", "objective", "says"),
    [
        ("t5", "seq2seq", "is an encoder-decoder, of which no generator tells .* name it in the stage's `models`"),
        ("bert", "classification", "was trained for classification; a generator needs a language model"),
    ],
)
@pytest.mark.parametrize("generator", [HuggingFace, Vllm])
def test_what_is_no_causal_language_model_is_refused(
    tmp_path: Path, kind: str, objective: str, says: str, generator: type[LocalModel]
) -> None:
    folder = trained(tmp_path / "m", kind, objective, ("a", "b") if objective == "classification" else ())
    with pytest.raises(ModelError, match=says):
        generator.model_validate({"model": str(folder)}).load_likelihood(Inputs())
