"""Scored rows a second beside lm-evaluation-harness and `evaluate`: one model, the same rows, the same process.

Choices: four labels of each question ranked by their likelihood. Texts: the log-likelihood of whole texts. Both sides
get the model in memory and the batch that suits them: ours 2,048 padded tokens, the harness 16 sequences sorted by
length. The model is a small Llama with SmolLM2's tokenizer, with --full SmolLM2-135M itself.

Labels: questions sorted into 77 intents by MiniLM with a head, and scored; ours with intervals, by 2,048 padded tokens,
the package's evaluator without, by a pipeline of 16. Its metrics lie on the hub: accuracy is given to it as the few
lines that it is there. `pip install --no-deps evaluate` where it is not installed, or it is left out.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.paired import paired, timed
from tests.bench.result import SHARED, Options, Result, compared

SUMMARY = "scored rows/s over lm-evaluation-harness, ranking choices and texts"
AIM = 1.0
CHOICES = 4
SEQUENCES = 16


def missing(options: Options) -> str | None:
    if importlib.util.find_spec("lm_eval") is None:
        return "lm-evaluation-harness is not installed (tilth[harness])"
    needed = [SHARED / "data" / name for name in ("banking77/test.csv", "gsm8k/test.jsonl")]
    absent = [str(path.relative_to(SHARED)) for path in needed if not path.is_file()]
    return f"no {', '.join(absent)} in the folder of real data" if absent else None


def measure(options: Options) -> Iterator[Result]:
    from lm_eval.models.huggingface import HFLM

    from tilth.evaluate.predictor import Predictor

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(_folder(Path(scratch), options))
        theirs = HFLM(
            pretrained=predictor.loaded.model,
            tokenizer=predictor.loaded.tokenizer,
            batch_size=SEQUENCES,
            max_length=512,
        )
        count = options.size(32, 200)
        for name, sides in (("choices", _choices(count)), ("texts", _texts(count))):
            rows, requests = sides
            kind = "loglikelihood" if name == "choices" else "loglikelihood_rolling"
            ours = partial(timed, count, partial(predictor.predict, rows))
            found = paired(ours, partial(timed, count, _harness(theirs, requests, kind)), options.rounds)
            yield compared(f"evaluate: {name} over lm-evaluation-harness", found, AIM, f"{len(rows)} sequences")
    if importlib.util.find_spec("evaluate") is not None:
        yield _labels(options)


#: accuracy as the hub has it
ACCURACY = """
import datasets
import evaluate
from sklearn.metrics import accuracy_score

class Accuracy(evaluate.Metric):
    def _info(self):
        kinds = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(kinds))

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
"""


def _labels(options: Options) -> Result:
    from evaluate import evaluator, load
    from evaluate.evaluator import base
    from transformers import pipeline

    from tilth.data.schema import original
    from tilth.evaluate.predictor import Predictor
    from tilth.evaluate.scores import intervals, score

    found = _questions(options.size(320, 1280))
    rows = [
        original(f"q{number}", "test", {"text": row["text"], "label": row["category"]})
        for number, row in enumerate(found)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        predictor = Predictor(_sorter(Path(scratch), sorted({row["category"] for row in found})))
        (Path(scratch) / "accuracy.py").write_text(ACCURACY, encoding="utf-8")
        metric = load(str(Path(scratch) / "accuracy.py"))
        given = _table(found)
        model = predictor.loaded.model
        # evaluate 0.4 asks whether a model is one of TensorFlow's, which transformers 5 has no more
        for name in ("TFPreTrainedModel", "FlaxPreTrainedModel"):
            vars(base.transformers)[name] = type(name, (), {})
        passes = pipeline("text-classification", model=model, tokenizer=predictor.loaded.tokenizer, batch_size=16)
        theirs = evaluator("text-classification")
        names = {label: number for number, label in model.config.id2label.items()}
        told: dict[str, float] = {}

        def ours() -> None:
            [scored] = score({"m": predictor.predict(rows)}).values()
            told["ours"] = intervals(scored, 2000, 0)["accuracy"].value

        def other() -> None:
            told["theirs"] = theirs.compute(passes, given, metric=metric, label_mapping=names)["accuracy"]

        paired_rates = paired(partial(timed, len(rows), ours), partial(timed, len(rows), other), options.rounds)
    if told["ours"] != told["theirs"]:
        raise RuntimeError(f"they do not score the same: {told}")
    note = f"{len(rows)} questions, the same accuracy"
    return compared("evaluate: labels over the package evaluate", paired_rates, AIM, note)


def _table(found: Sequence[dict[str, str]]) -> Any:
    from datasets import Dataset

    labels = sorted({row["category"] for row in found})
    return Dataset.from_dict(
        {"text": [row["text"] for row in found], "label": [labels.index(row["category"]) for row in found]}
    )


def _sorter(folder: Path, labels: Sequence[str]) -> Path:
    """MiniLM with an untrained head, as training leaves a model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tilth.data.loading import Card
    from tilth.models import resolve

    body = resolve("sentence-transformers/all-MiniLM-L6-v2")
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    model = AutoModelForSequenceClassification.from_pretrained(body, id2label=names, num_labels=len(labels))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(body).save_pretrained(folder)
    Card("classification", tuple(labels), max_length=128).write(folder)
    return folder


def _folder(scratch: Path, options: Options) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tilth.data.loading import load_tokenizer
    from tilth.models import resolve

    real = resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    if options.full:
        return real
    tokenizer = load_tokenizer(real)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3,
        max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def _choices(count: int) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    """Questions with four of the labels each, the right one among them, as rows and as requests."""
    from tilth.data.schema import original

    found = _questions(count)
    labels = sorted({row["category"] for row in found})
    rng, rows, requests = random.Random(1), [], []
    for number, row in enumerate(found):
        offered = [row["category"], *rng.sample([label for label in labels if label != row["category"]], CHOICES - 1)]
        for label in offered:
            before, after = f"{row['text'].strip()}\nLabel:", f" {label.replace('_', ' ')}"
            rows.append(original(f"q{number}", "test", {"prompt": before, "completion": after}))
            requests.append((before, after))
    return rows, requests


def _questions(count: int) -> list[dict[str, str]]:
    with (SHARED / "data/banking77/test.csv").open(encoding="utf-8", newline="") as handle:
        return random.Random(0).sample(list(csv.DictReader(handle)), count)


def _texts(count: int) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    from tilth.data.schema import original

    lines = random.Random(2).sample((SHARED / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines(), count)
    texts = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
    return [original(f"t{i}", "test", {"text": text}) for i, text in enumerate(texts)], [(text,) for text in texts]


def _harness(model: Any, requests: list[tuple[str, ...]], kind: str) -> Callable[[], object]:
    from lm_eval.api.instance import Instance

    made = [Instance(kind, {}, arguments, index) for index, arguments in enumerate(requests)]
    return lambda: getattr(model, kind)(made, disable_tqdm=True)
