"""Answers that models write, and every kind of head: against plain loops, through the exactly-once engine."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import normalizers

import tilth
from faulty_server import FaultyServer
from scripted import Scripted, script
from tilth.data.bootstrap import mean
from tilth.data.dataset import Dataset
from tilth.data.loading import Card, load_pretrained, load_tokenizer
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import RecipeError, StageError
from tilth.evaluate.measures.base import AnswerMetric, compared
from tilth.evaluate.predictor import Predictor, Wanted
from tilth.evaluate.tasks.choices import Ranking
from tilth.evaluate.tasks.generation import Answers, Ask
from tilth.evaluate.tasks.prompting import Questions, Shots
from tilth.generate.hf import HuggingFace
from tilth.generate.render import render
from tilth.report import write_report
from tilth.runs import Run
from tiny import model_folder, tokenizer

HUMAN_EVAL = "{{ prompt }}{{ answer }}"
FRUIT = ("apple", "pear", "plum", "fig")


def recipe(folder: Path, rows: list[dict[str, Any]], row: str, task: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Rows with their split, and an evaluation of them in this process."""
    by_split: dict[str, list[dict[str, Any]]] = {}
    for item in rows:
        by_split.setdefault(item.get("split", "test"), []).append(item)
    sources = {}
    for split, members in by_split.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(m) + "\n" for m in members), encoding="utf-8")
        sources[split] = {"kind": "jsonl", "path": str(folder / f"{split}.jsonl")}
    stage = {"kind": "evaluate", "data": "@data", "task": task, "bootstrap": {"samples": 100}, **fields}
    return {
        "name": "asked",
        "stages": {
            "data": {"kind": "data", "row": row, "sources": sources},
            "evaluate": {"resources": {"workers": 0}, **stage},
        },
    }


def completions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Name fruit {i}.", "completion": FRUIT[i % 4]} for i in range(count)]


@script
def half_right(text: str, prompt: Any) -> str:
    number = int("".join(filter(str.isdigit, text.splitlines()[-1])))
    return FRUIT[number % 4] if number % 2 else "stone"


@script
def always_right(text: str, prompt: Any) -> str:
    return FRUIT[int("".join(filter(str.isdigit, text.splitlines()[-1]))) % 4]


def scripted(name: str) -> dict[str, Any]:
    return {"kind": "scripted:Scripted", "script": name}


def test_generators_are_scored_compared_and_kept_row_by_row(tmp_path: Path):
    task = {
        "kind": "generation", "metrics": [{"kind": "exact_match"}, {"kind": "rouge", "types": ["rouge1"]}],
        "generators": {"half": scripted("half_right"), "full": scripted("always_right")},
    }  # fmt: skip
    found = tilth.run(recipe(tmp_path, completions(40), "completion", task, baseline="half"), tmp_path / "out")
    artifact = found["evaluate"]
    assert artifact.metrics["half/exact_match"] == 0.5
    assert artifact.metrics["full/exact_match"] == artifact.metrics["full/rouge1"] == 1
    assert artifact.metrics["difference/exact_match_p"] == pytest.approx(2 * 0.5**20)
    assert artifact.detail["models"]["half"]["task"] == "generation"
    kept = list(Dataset.open(artifact.store.sub("predictions/half")).rows())
    assert len({row["id"] for row in kept}) == 40
    for row in kept:
        assert row["meta"]["references"] == [row["completion"]]
        assert row["meta"]["terms"]["rouge"] == [float(row["meta"]["answers"][0] == row["completion"])]


ASKED: list[str] = []
LIMIT = {"left": 0}


def test_another_metric_asks_nobody_again(tmp_path: Path):
    def scores(metrics: list[dict[str, Any]], **answers: Any) -> dict[str, Any]:
        task = {
            "kind": "generation",
            "metrics": metrics,
            "answers": answers,
            "generators": {"m": scripted("dies_once")},
        }
        return tilth.run(recipe(tmp_path, completions(20), "completion", task), tmp_path / "out")["evaluate"].metrics

    ASKED.clear()
    LIMIT["left"] = 1000
    first = scores([{"kind": "exact_match"}])
    again = scores([{"kind": "rouge", "types": ["rouge1"]}, {"kind": "exact_match"}])
    assert len(ASKED) == 20
    assert again["m/exact_match"] == again["m/rouge1"] == first["m/exact_match"] == 0.25
    scores([{"kind": "exact_match"}], seed=7)
    assert len(ASKED) == 40, "what is asked otherwise is asked anew"


class Brittle(AnswerMetric):
    """Exact match that breaks on one row as long as nothing else is measured."""

    broken: bool = True

    def scorer(self, inputs: Inputs) -> Any:
        def terms(answer: str, references: list[str]) -> list[float]:
            if self.broken and references == ["fig"]:
                raise ValueError("no figs")
            return [float(answer in references)]

        return terms

    def figures(self, rows: Any) -> Any:
        return {"brittle": mean([hit for (hit,) in self.terms(rows)])}


def test_a_row_that_failed_is_in_the_next_version_again(tmp_path: Path):
    def run(broken: bool) -> Any:
        metric = {"kind": "test_evaluate_generation:Brittle", "broken": broken}
        task = {"kind": "generation", "metrics": [metric], "generators": {"m": scripted("always_right")}}
        return tilth.run(recipe(tmp_path, completions(8), "completion", task), tmp_path / "out")["evaluate"]

    with pytest.raises(StageError, match="could not predict row"):
        run(broken=True)
    artifact = run(broken=False)
    assert artifact.detail["models"]["m"]["intervals"]["brittle"]["n"] == artifact.counts["rows"] == 8


@script
def dies_once(text: str, prompt: Any) -> str:
    """Answers as long as there is something left of its limit."""
    ASKED.append(text)
    if LIMIT["left"] <= 0:
        raise StageError("the endpoint is gone")
    LIMIT["left"] -= 1
    return "apple"


def test_what_was_answered_before_an_endpoint_died_is_not_asked_again(tmp_path: Path):
    task = {"kind": "generation", "metrics": [{"kind": "exact_match"}], "generators": {"m": scripted("dies_once")}}
    plan = recipe(tmp_path, completions(64), "completion", task)
    ASKED.clear()
    LIMIT["left"] = 40
    with pytest.raises(StageError, match="the endpoint is gone"):
        tilth.run(plan, tmp_path / "out")
    first, LIMIT["left"] = set(ASKED[:40]), 1000
    ASKED.clear()
    artifact = tilth.run(plan, tmp_path / "out")["evaluate"]
    assert artifact.metrics["m/exact_match"] == 0.25
    assert len(first & set(ASKED)) < 8, "only the unit that was under way is asked again"
    assert first | set(ASKED) == {row["prompt"] for row in completions(64)}


def test_an_endpoint_is_asked_again_for_what_it_refused_alone(tmp_path: Path):
    refusing = {"on": True}

    def plan(number: int, before: int, body: dict[str, Any]) -> str | None:
        return "400" if refusing["on"] and body["messages"][-1]["content"] == "Name fruit 30." else None

    with FaultyServer(plan) as server:
        asked = {"kind": "http", "base_url": server.url, "model": "tiny", "pace": {"timeout": 5, "max_attempts": 2}}
        task = {"kind": "generation", "metrics": [{"kind": "chrf"}], "generators": {"served": asked}}
        made = recipe(tmp_path, completions(64), "completion", task)
        with pytest.raises(StageError, match="was not answered"):
            tilth.run(made, tmp_path / "out")
        answered = len(server.bodies)
        refusing["on"] = False
        artifact = tilth.run(made, tmp_path / "out")["evaluate"]
        assert len(server.bodies) - answered < 64, "units that were committed are not asked again"
    rows = list(Dataset.open(artifact.store.sub("predictions/served")).rows())
    assert {row["meta"]["answers"][0].rpartition(" ")[0] for row in rows} == {f"Name fruit {i}." for i in range(64)}
    assert all(row["meta"]["usage"]["prompt_tokens"] == 7 for row in rows)
    assert artifact.detail["models"]["served"]["signatures"]["chrf"].startswith("nrefs:1|")


@script
def goes_on(text: str, prompt: Any) -> str:
    return "    return 2\n"


def test_a_continuation_keeps_its_indent_and_nothing_else_does():
    row = original("r", "test", {"prompt": 'def two():\n    """Two."""\n', "completion": "x"})
    labelled = original("l", "test", {"text": "x", "label": "return 2"})
    generator = Scripted(script="goes_on")

    def asked(row: Any, form: Any) -> Any:
        step = Ask(generator=generator, form=form)
        return step.load(Inputs(), step.fit([row], Inputs()))([row])[0]

    answer = asked(row, "text")["meta"]["answers"][0]
    names: dict[str, Any] = {}
    exec(render(HUMAN_EVAL, **row, answer=answer), names)
    assert names["two"]() == 2
    assert asked(row, "chat")["meta"]["answers"] == ["return 2"]
    assert asked(labelled, "text")["meta"]["prediction"] == "return 2"
    assert list(compared([asked(row, "text")], "rouge")) == [("return 2", ["x"])]


def test_few_shot_questions_as_turns_and_as_one_text():
    rows = [original(f"s{i}", "train", {"prompt": f"Q{i}?", "completion": f"A{i}"}) for i in range(5)]
    shots = Shots(count=2).draw(rows)
    assert shots == Shots(count=2).draw(reversed(rows)), "whatever order the rows come in"
    asked = Questions(shots=shots)
    row = original("t", "test", {"prompt": "Q?", "completion": "A"})
    roles = [(turn["role"], turn["content"]) for turn in asked.turns(row)]
    one, two = shots
    assert roles == [
        ("user", one["prompt"]), ("assistant", one["completion"]), ("user", two["prompt"]),
        ("assistant", two["completion"]), ("user", "Q?"),
    ]  # fmt: skip
    assert asked.text(row) == f"{one['prompt']} {one['completion']}\n\n{two['prompt']} {two['completion']}\n\nQ?"
    with pytest.raises(StageError, match="split 'validation' has 0 rows, fewer than 2"):
        Shots(count=2, split="validation").draw(rows)


def test_labels_are_offered_and_scored_as_labels(tmp_path: Path):
    @script
    def first_label(text: str, prompt: Any) -> str:
        assert prompt.shape.choices == ("fruit", "tool")
        return "fruit"

    rows = [{"text": f"thing {i}", "label": "fruit" if i % 4 else "tool"} for i in range(20)]
    task = {"kind": "generation", "generators": {"m": scripted("first_label")}}
    artifact = tilth.run(recipe(tmp_path, rows, "labelled", task), tmp_path / "out")["evaluate"]
    assert artifact.metrics["m/accuracy"] == 0.75
    assert artifact.detail["models"]["m"]["labels"] == ["fruit", "tool"]


@pytest.mark.parametrize(
    ("task", "fields", "says"),
    [
        ({"kind": "generation"}, {}, "models: names no model"),
        ({"kind": "generation", "prompt": "{{ nothing }}", "generators": {"e": {"kind": "echo"}}}, {}, "names nothing"),
        (
            {"kind": "generation", "metrics": [{"kind": "pass_at_k", "k": [5]}], "generators": {"e": {"kind": "echo"}}},
            {}, "set answers.samples to 5 or more",
        ),
        (
            {"kind": "generation", "shots": {"count": 1, "split": "test"}, "generators": {"e": {"kind": "echo"}}},
            {}, "task.shots.split: shows rows of test",
        ),
        (
            {"kind": "generation", "answers": {"samples": 3}, "generators": {"e": {"kind": "echo"}}},
            {}, "answers.samples: at temperature 0 all answers are the same",
        ),
        (
            {"kind": "generation", "generators": {"e": {"kind": "echo"}}},
            {"slices": ["lable"]}, "slices.0: 'lable' is no part that rows have; did you mean",
        ),
        (
            {"kind": "forward", "metrics": [{"kind": "bleu"}, {"kind": "bleu"}]},
            {"models": {"a": "x/y"}}, "bleu is measured already",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said_before_anything_starts(
    tmp_path: Path, task: dict[str, Any], fields: dict[str, Any], says: str
):
    with pytest.raises(RecipeError, match=says.replace(".", r"\.")):
        tilth.load(recipe(tmp_path, completions(2), "completion", task, **fields))


def test_answers_that_many_metrics_could_score_want_one_named(tmp_path: Path):
    task = {"kind": "generation", "generators": {"e": {"kind": "echo"}}}
    with pytest.raises(StageError, match="set the task's metrics"):
        tilth.run(recipe(tmp_path, completions(8), "completion", task), tmp_path / "out")


# heads, on tiny models of random weights


def trained(folder: Path, kind: str, objective: str, labels: tuple[str, ...] = (), length: int = 64) -> Path:
    """A model of this architecture with a head of random weights, as a training stage would leave it."""
    model_folder(folder, kind)
    torch.manual_seed(1)
    load_pretrained(folder, objective, labels).model.save_pretrained(folder)
    Card(objective, labels, max_length=length).write(folder)
    return folder


def test_an_encoder_decoder_writes_what_transformers_writes_and_is_scored(tmp_path: Path):
    folder = trained(tmp_path / "t5", "t5", "seq2seq")
    rows = [original(f"r{i}", "test", {"prompt": "ab" * i, "completion": f"xyz{i}"}) for i in range(1, 6)]
    step = Ask(generator=HuggingFace(model=str(folder)), form="text", answers=Answers(max_tokens=8))
    asked = step.load(Inputs(), step.fit(rows, Inputs()))(rows)
    model, tokenizer = load_pretrained(folder, "seq2seq").model.eval(), load_tokenizer(folder)
    for row, scored in zip(asked, Predictor(folder, batch_tokens=40).predict(rows), strict=True):
        one = tokenizer(row["prompt"], return_tensors="pt")
        made = model.generate(**one, max_new_tokens=8, do_sample=False, suppress_tokens=[0])
        assert row["meta"]["answers"] == [tokenizer.decode(made[0], skip_special_tokens=True).strip()]
        labels = tokenizer(row["completion"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = float(model(**one, labels=labels).loss)
        assert scored["meta"]["tokens"] == labels.shape[1]
        assert scored["meta"]["nll"] == pytest.approx(loss * labels.shape[1], rel=1e-4)
        assert scored["meta"]["bytes"] == len(row["completion"])


def test_bytes_are_those_of_the_text_whatever_its_tokens_leave_of_it(tmp_path: Path):
    """T5's tokens know no line break and no brace: bits per byte were of fewer bytes than other models' are."""
    folder = trained(tmp_path / "t5", "t5", "seq2seq", length=12)
    coding = tokenizer(seq2seq=True)
    coding.backend_tokenizer.normalizer = normalizers.Replace("{", "")
    coding.save_pretrained(folder)
    texts = {"whole": "a{b{c", "cut": "{" * 9 + "x" * 40}
    rows = [original(name, "test", {"prompt": "p", "completion": text}) for name, text in texts.items()]
    found = {row["id"]: row["meta"] for row in Predictor(folder).predict(rows)}
    assert (found["whole"]["bytes"], found["whole"]["truncated"]) == (5, False)
    assert (found["cut"]["bytes"], found["cut"]["truncated"]) == (11, True)


def test_words_get_the_tag_of_their_first_token(tmp_path: Path):
    labels = ("B-PER", "I-PER", "O")
    folder = trained(tmp_path / "bert", "bert", "token_classification", labels, length=32)
    rng = random.Random(0)
    rows = [
        original(
            f"r{i}", "test", {"tokens": ["".join(rng.choices("abcdef", k=n)) for n in (3, 5, 1, 4)], "tags": ["O"] * 4}
        )
        for i in range(4)
    ]
    rows.append(original("long", "test", {"tokens": ["x" * 40, "y"], "tags": ["O", "O"]}))
    model, tokenizer = load_pretrained(folder, "token_classification", labels).model.eval(), load_tokenizer(folder)
    *found, cut = Predictor(folder, batch_tokens=64).predict(rows)
    for row in found:
        with torch.no_grad():
            logits = model(**tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")).logits[0]
        starts = [1 + sum(map(len, row["tokens"][:n])) for n in range(4)]  # <s>, then a token for each byte
        assert row["meta"]["prediction"] == [labels[int(logits[at].argmax())] for at in starts]
    assert cut["meta"]["truncated"]
    assert cut["meta"]["prediction"][1] == "O"


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("llama", "language_model"),
        ("t5", "seq2seq"),
        ("bert", "classification"),
        ("bert", "token_classification"),
        ("bert", "question_answering"),
    ],
)
def test_a_model_whose_training_diverged_has_no_score(tmp_path: Path, kind: str, objective: str):
    """What is no number would be the first label, and an accuracy like any other."""
    labels = ("O", "B-PER") if "classification" in objective else ()
    folder = trained(tmp_path / "m", kind, objective, labels)
    model = load_pretrained(folder, objective, labels).model
    torch.nn.init.constant_(next(model.parameters()), torch.nan)
    model.save_pretrained(folder)
    if objective == "seq2seq":
        tokenizer(seq2seq=True).save_pretrained(folder)
    payload: dict[str, Any] = {
        "language_model": {"text": "abcd"}, "seq2seq": {"prompt": "ab", "completion": "cd"},
        "classification": {"text": "abcd", "label": "O"},
        "token_classification": {"tokens": ["ab", "c"], "tags": ["O", "O"]},
        "question_answering": {"question": "a?", "context": "a bc", "answers": [{"text": "a", "start": 0}]},
    }[objective]  # fmt: skip
    with pytest.raises(StageError, match=r"is no number: its weights .* train it anew, or set dtype to float32"):
        Predictor(folder).predict([original("r", "test", payload)])


@pytest.mark.parametrize("objective", ["seq2seq", "classification", "token_classification"])
def test_a_long_row_ends_in_the_mark_that_training_leaves_there(tmp_path: Path, objective: str):
    folder = trained(tmp_path / "m", "t5" if objective == "seq2seq" else "bert", objective, ("O", "B"), length=12)
    tokenizer(seq2seq=True).save_pretrained(folder)
    payload = {"prompt": "ab" * 20, "completion": "xyz" * 9, "text": "ab" * 20, "tokens": ["ab" * 20, "c"]}
    row = original("long", "test", {**payload, "tags": ["O", "O"]})
    predictor = Predictor(folder)
    (window,) = predictor.head.encode(row)
    assert window.ids == tokenizer(seq2seq=True)(payload["text"], truncation=True, max_length=12)["input_ids"]
    assert window.ids[-1] == 2
    if objective == "seq2seq":
        assert window.targets == tokenizer(seq2seq=True)(payload["completion"][:11])["input_ids"]
    assert predictor.predict([row])[0]["meta"]["truncated"]


def test_the_likeliest_span_is_found_by_trying_all_also_in_windows(tmp_path: Path):
    folder = trained(tmp_path / "bert", "bert", "question_answering", length=48)
    model, tokenizer = load_pretrained(folder, "question_answering").model.eval(), load_tokenizer(folder)
    contexts = ["Ann lives in Rome now", "the quick brown fox jumps over a lazy dog, " * 3]
    rows = [
        original(f"r{i}", "test", {"question": "Where?", "context": c, "answers": []}) for i, c in enumerate(contexts)
    ]
    found = Predictor(folder, batch_tokens=100).predict(rows)
    for row in found:
        batch = tokenizer(
            row["question"], row["context"], return_tensors="pt", truncation="only_second", max_length=48,
            return_overflowing_tokens=True, stride=20, padding=True, return_offsets_mapping=True,
        )  # fmt: skip
        best = (-math.inf, "")
        for at in range(len(batch["input_ids"])):
            with torch.no_grad():
                said = model(
                    input_ids=batch["input_ids"][at : at + 1], attention_mask=batch["attention_mask"][at : at + 1]
                )
            inside = [place for place, kind in enumerate(batch.sequence_ids(at)) if kind == 1]
            starts, ends = ({p: float(x[0, p]) for p in inside} for x in (said.start_logits, said.end_logits))
            near = sorted(inside, key=lambda p: -starts[p])[:20], sorted(inside, key=lambda p: -ends[p])[:20]
            for a in near[0]:
                for b in near[1]:
                    if 0 <= b - a < 30 and starts[a] + ends[b] > best[0]:
                        spans = batch["offset_mapping"][at]
                        best = (starts[a] + ends[b], row["context"][int(spans[a][0]) : int(spans[b][1])])
        assert row["meta"]["prediction"] == best[1]
    nothing = Predictor(folder, Wanted(nulls=True)).predict(rows)
    assert {row["meta"]["prediction"] for row in nothing} <= {"", *(row["meta"]["prediction"] for row in found)}


def test_long_texts_are_read_in_windows_each_token_once(tmp_path: Path):
    folder = trained(tmp_path / "llama", "llama", "language_model", length=16)
    model, tokenizer = load_pretrained(folder, "language_model").model.eval(), load_tokenizer(folder)
    text = "où est ma carte, s'il vous plaît ? "
    (row,) = Predictor(folder, Wanted(stride=5)).predict([original("r", "test", {"text": text})])
    ids = tokenizer(text)["input_ids"]
    total = 0.0
    for at in range(1, len(ids)):  # the context that the window of token `at` holds
        start = 0 if at < 16 else 5 * math.ceil((at - 15) / 5)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:at]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[ids[at]])
    assert (row["meta"]["tokens"], row["meta"]["bytes"]) == (len(ids) - 1, len(text.encode()))
    assert row["meta"]["nll"] == pytest.approx(total, rel=1e-5)
    assert not row["meta"]["truncated"]
    (short,) = Predictor(folder).predict([original("r", "test", {"text": text})])
    assert short["meta"]["truncated"]
    assert short["meta"]["tokens"] == 15


def test_one_model_at_two_lengths_is_not_compared_with_itself(tmp_path: Path):
    lengths = {"base": 64, "tuned": 16}
    models = {name: str(trained(tmp_path / name, "llama", "language_model", length=n)) for name, n in lengths.items()}
    rows = [{"text": "short"}, {"text": "a text that is longer than one of them reads"}]
    plan = recipe(tmp_path, rows, "text", {"kind": "forward"}, models=models, baseline="base")
    detail = tilth.run(plan, tmp_path / "out")["evaluate"].detail
    assert detail["differences"] == {"tuned": []}
    (line,) = detail["verdicts"]
    assert line.startswith("tuned and base read different parts of 1 of 2 rows")
    assert "set task.stride" in line


@pytest.mark.parametrize("words", [0, 300])
def test_choices_are_ranked_as_a_plain_loop_ranks_them(tmp_path: Path, words: int):
    """Of rows that are longer than the model reads the beginning goes, and choices are scored whole."""
    most, before = 200, "very " * words
    folder = trained(tmp_path / "llama", "llama", "language_model", length=most)
    rows = [{"text": f"{before}thing number {i}", "label": FRUIT[i % 3]} for i in range(12)]
    task = {"kind": "choices", "prompt": "{{ text }} is a", "length": "none"}
    plan = recipe(tmp_path, rows, "labelled", task, models={"m": str(folder)})
    artifact = tilth.run(plan, tmp_path / "out")["evaluate"]
    model, tokenizer = load_pretrained(folder, "language_model").model.eval(), load_tokenizer(folder)

    def likelihood(text: str, choice: str) -> float:
        whole = tokenizer(f"{text} is a {choice}")["input_ids"]
        scored, ids = len(whole) - len(tokenizer(f"{text} is a")["input_ids"]), whole[-most:]
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        return sum(float(logs[at - 1, ids[at]]) for at in range(len(ids) - scored, len(ids)))

    right = []
    for row in Dataset.open(artifact.store.sub("predictions/m")).rows():
        best = max(FRUIT[:3], key=lambda choice: likelihood(row["text"], choice))
        assert row["meta"]["prediction"] == best
        assert row["meta"]["truncated"] == bool(words)
        right.append(best == row["label"])
    assert artifact.metrics["m/accuracy"] == pytest.approx(np.mean(right))


def test_what_ranks_all_labels_is_asked_for_where_earlier_answers_lack_it(tmp_path: Path):
    base = Path(model_folder(tmp_path / "tiny", "bert"))
    torch.manual_seed(1)
    labels = ("fruit", "tool", "verb", "noun")
    load_pretrained(base, "classification", labels).model.save_pretrained(tmp_path / "m")
    load_tokenizer(base).save_pretrained(tmp_path / "m")
    Card("classification", labels, max_length=32).write(tmp_path / "m")
    rows = [{"text": f"word {number}", "label": labels[number % 3]} for number in range(24)]

    def evaluated(*kinds: str) -> Any:
        task = {"kind": "forward", "metrics": [{"kind": kind} for kind in kinds]}
        found = recipe(tmp_path, rows, "labelled", task, models={"m": str(tmp_path / "m")})
        return tilth.run(found, tmp_path / "out")["evaluate"]

    assert "m/auc_ovr" not in evaluated("classification").metrics
    artifact = evaluated("classification", "auc_ovr")
    told = list(Dataset.open(artifact.store.sub("predictions/m")).rows())
    shares = np.array([[row["meta"]["probabilities"][label] for label in labels] for row in told])
    truth = np.array([row["label"] for row in told])
    areas = [roc_auc_score(truth == label, shares[:, place]) for place, label in enumerate(labels[:3])]
    assert artifact.metrics["m/auc_ovr"] == pytest.approx(np.mean(areas), abs=1e-12)
    write_report(Run(tmp_path / "out"))
    assert "mean over the 3 labels that rows have; no row has noun." in (tmp_path / "out/report.html").read_text()


def test_each_question_that_is_shown_lists_the_choices_of_its_own_row():
    def row(name: str, *choices: str) -> dict[str, Any]:
        return original(name, "test", {"text": name, "label": choices[0]}, {"choices": list(choices)})

    ranking = Ranking(model="m", prompt="{{ text }}: {{ labels | join(' or ') }}?", choices="meta.choices")
    one, two = ranking._parts(row("sky", "blue", "green"), ["blue", "green"], [row("fire", "hot", "cold")])
    assert one["prompt"] == "fire: hot or cold? hot\n\nsky: blue or green?"
    assert (one["completion"], two["completion"]) == (" blue", " green")


def test_choices_that_are_none_or_could_be_meant_for_another_are_refused():
    ranking = Ranking(model="m", choices="meta.choices", reference="meta.gold")

    def right(gold: Any, *choices: Any) -> str:
        row = original("r", "test", {"text": "?", "label": "x"}, {"choices": list(choices), "gold": gold})
        return ranking.right(row, ranking.offered(row, []))

    assert (right(1, "0", "2", "1"), right(0, 5, 6, 7), right(7, 5, 6, 7), right(1, 0, 1)) == ("2", "5", "7", "1")
    with pytest.raises(StageError, match=r"2 is one of its choices and the place of another; write .* as texts"):
        right(2, 2, 3, 4)
    for nothing in (None, "", " "):
        with pytest.raises(StageError, match=f"one of its choices is {nothing!r}"):
            right(0, "yes", nothing)


def test_a_masked_model_says_nothing_that_could_be_scored(tmp_path: Path):
    folder = trained(tmp_path / "bert", "bert", "masked_lm")
    with pytest.raises(StageError, match="trained for masked lm"):
        Predictor(folder)
