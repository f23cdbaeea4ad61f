"""Metrics against the tools that the field scores with, on fixed files, to the last digit that they print."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import re
import string
from collections import Counter

import numpy as np
import pytest
from sklearn import metrics as sk

from tilth.config import Component
from tilth.data.schema import original
from tilth.data.transform import Inputs
from tilth.errors import StageError
from tilth.evaluate.measures.answers import ExactAnswer, ExactMatch, Squad
from tilth.evaluate.measures.base import Measure, Metric
from tilth.evaluate.measures.classes import Auc, AucOvr, Calibration, Classification
from tilth.evaluate.measures.entities import Entities
from tilth.evaluate.measures.meaning import Diversity, Similarity
from tilth.evaluate.measures.programs import PassAtK, pass_at_k
from tilth.evaluate.measures.summaries import Meteor, Rouge
from tilth.evaluate.measures.translation import Bleu, Chrf


def answered(pairs):
    """Rows with an answer each and what is right."""
    rows = []
    for number, (said, right) in enumerate(pairs):
        references = right if isinstance(right, list) else [right]
        meta = {"answers": [said], "references": references, "truncated": False}
        rows.append({**original(f"r{number}", "test", {"prompt": "q", "completion": references[0]}), "meta": meta})
    return rows


def figures(metric, rows):
    """The point of every figure, its terms made by the step that workers run."""
    measured = Measure(metrics=(metric,)).load(Inputs(), {})([dict(row) for row in rows])
    found = metric.statistics({"m": measured})["m"]
    return {name: statistic.point() for name, statistic in found.items()}, measured


@pytest.fixture(scope="module")
def summaries(shared):
    """(lead of a dialogue, its summary) of 60 rows: texts that share some words."""
    lines = (shared / "data/summarization/dialogsum.dev.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    return [(row["dialogue"][:160].replace("\n", " "), row["summary"]) for row in rows]


def test_bleu_and_chrf_are_sacrebleus_with_its_signature(summaries):
    import sacrebleu

    said, right = map(list, zip(*summaries, strict=True))
    two = [right, [text.lower() for text in right]]
    cases = [
        (Bleu(), sacrebleu.BLEU(), "bleu"),
        (Bleu(tokenizer="intl", lowercase=True), sacrebleu.BLEU(tokenize="intl", lowercase=True), "bleu"),
        (Chrf(), sacrebleu.CHRF(), "chrf"),
        (Chrf(word_order=2), sacrebleu.CHRF(word_order=2), "chrf++"),
    ]
    for ours, theirs, name in cases:
        for references in ([right], two):
            rows = answered(zip(said, map(list, zip(*references, strict=True)), strict=True))
            found, measured = figures(ours, rows)
            assert found[name] == pytest.approx(theirs.corpus_score(said, references).score, abs=1e-10)
            assert ours.detail(measured)["signatures"][name] == str(theirs.get_signature())


def test_rouge_is_rouge_scores_and_of_two_references_the_better_counts(summaries):
    from rouge_score import rouge_scorer

    types = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    for stemming in ("none", "porter"):
        scorer = rouge_scorer.RougeScorer(types, use_stemmer=stemming == "porter")
        rows = answered([(said, [right, said[:40]]) for said, right in summaries])
        found, _ = figures(Rouge(stemming=stemming), rows)
        each = [[scorer.score(target, said) for target in (right, said[:40])] for said, right in summaries]
        for name in types:
            assert found[name] == pytest.approx(
                np.mean([max(s[name].fmeasure for s in pair) for pair in each]), abs=1e-12
            )


def test_meteor_is_nltks(summaries):
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    found, _ = figures(Meteor(), answered(summaries[:8]))
    split = NLTKWordTokenizer().tokenize
    theirs = [single_meteor_score(split(right), split(said)) for said, right in summaries[:8]]
    assert found["meteor"] == pytest.approx(np.mean(theirs), abs=1e-12)


def official(prediction, truths):
    """evaluate-v1.1.py of SQuAD: (F1, exact match)."""

    def normal(text):
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(truth):
        said, right = normal(prediction).split(), normal(truth).split()
        same = sum((Counter(said) & Counter(right)).values())
        return 2 * same / (len(said) + len(right)) if same else 0.0

    return max(map(f1, truths)), max(normal(prediction) == normal(truth) for truth in truths)


def test_squad_is_the_official_script_on_real_questions(shared):
    data = json.loads((shared / "data/xquad/xquad.en.json").read_text(encoding="utf-8"))["data"]
    rng, rows, theirs = random.Random(0), [], []
    for item in itertools.islice((qa for a in data for p in a["paragraphs"] for qa in p["qas"]), 300):
        right = [answer["text"] for answer in item["answers"]]
        said = rng.choice([right[0], f"the {right[0]}!", " ".join(right[0].split()[:2]), "something else"])
        theirs.append(official(said, right))
        answers = [{"text": text, "start": 0} for text in right]
        row = original(item["id"], "test", {"question": item["question"], "context": "", "answers": answers})
        rows.append({**row, "meta": {"prediction": said, "truncated": False}})
    found, _ = figures(Squad(), rows)
    f1, exact = np.mean(theirs, axis=0)
    assert found == {"squad_f1": pytest.approx(f1, abs=1e-12), "squad_exact": pytest.approx(exact, abs=1e-12)}


def test_a_question_without_an_answer_is_answered_by_silence():
    rows = [original(f"n{i}", "test", {"question": "?", "context": "c", "answers": []}) for i in range(2)]
    rows = [{**row, "meta": {"prediction": said}} for row, said in zip(rows, ("", "c"), strict=True)]
    assert figures(Squad(), rows)[0] == {"squad_f1": 0.5, "squad_exact": 0.5}


def test_solutions_are_right_where_gsm8ks_own_extraction_says_so(shared):
    lines = (shared / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rng, pairs, theirs = random.Random(1), [], []
    for line in lines:
        right = json.loads(line)["answer"]
        said = right if rng.random() < 0.6 else right + "1"
        number = re.compile(r"#### (\-?[0-9\.\,]+)")  # of openai/grade-school-math
        theirs.append(number.search(said).group(1).replace(",", "") == number.search(right).group(1).replace(",", ""))
        pairs.append((said, right))
    found, _ = figures(ExactAnswer(), answered(pairs))
    assert found == {"exact_answer": np.mean(theirs)}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("So it is $1,200.", True),
        ("1200.0 dollars", True),
        ("Between 3 and 1200", True),
        ("120", False),
        ("none", False),
    ],
)
def test_the_last_number_of_an_answer_counts_as_a_number(said, right):
    assert figures(ExactAnswer(), answered([(said, "She pays 1,200 #### 1200")]))[0] == {"exact_answer": right}


def test_an_answer_without_a_number_is_right_of_no_reference():
    assert figures(ExactAnswer(), answered([("none", "nothing")]))[0] == {"exact_answer": 0}


def test_of_a_pattern_with_alternatives_the_group_that_matched_counts():
    metric = ExactAnswer(pattern=r"answer: (\d+)|\\boxed{(\d+)}")
    assert [metric.extract(text) for text in ("answer: 4", r"\boxed{4}", "4")] == [4, 4, None]
    assert ExactAnswer(pattern=r"(\$)?\d+").extract("7") == 7


def test_exact_match_takes_any_reference_and_no_other_case_unless_told():
    rows = answered([(" Rome ", ["Roma", "Rome"]), ("rome", ["Rome"]), ("Paris", ["Rome"])])
    assert figures(ExactMatch(), rows)[0]["exact_match"] == 1 / 3
    assert figures(ExactMatch(ignore_case=True), rows)[0]["exact_match"] == 2 / 3


@pytest.fixture(scope="module")
def intents(shared):
    """400 questions of 12 intents, a third of them mistaken, with how sure a model might be."""
    with open(shared / "data/banking77/test.csv", newline="", encoding="utf-8") as file:
        labels = [row["category"] for row in csv.DictReader(file)][:400]
    rng = random.Random(2)
    known = sorted(set(labels))
    rows = []
    for number, label in enumerate(labels):
        said = label if rng.random() < 0.65 else rng.choice([*known, "never_true"])
        meta = {"prediction": said, "confidence": round(rng.random(), 6), "truncated": False}
        rows.append({**original(f"q{number}", "test", {"text": "x", "label": label}), "meta": meta})
    return rows


def test_figures_of_labels_are_scikit_learns(intents):
    truth, said = [row["label"] for row in intents], [row["meta"]["prediction"] for row in intents]
    found, _ = figures(Classification(show=("mcc", "accuracy", "f1_macro", "precision_macro", "recall_macro")), intents)
    macro = {"average": "macro", "zero_division": 0}
    assert list(found) == ["mcc", "accuracy", "f1_macro", "precision_macro", "recall_macro"]
    assert found == pytest.approx(
        {
            "mcc": sk.matthews_corrcoef(truth, said), "accuracy": sk.accuracy_score(truth, said),
            "f1_macro": sk.f1_score(truth, said, **macro), "precision_macro": sk.precision_score(truth, said, **macro),
            "recall_macro": sk.recall_score(truth, said, **macro),
        },
        abs=1e-12,
    )  # fmt: skip


def test_the_area_under_the_curve_is_scikit_learns_also_with_ties_and_repeated_rows():
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.4
    sure = np.round(np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1), 1)  # many ties
    rows = []
    for number, (positive, value) in enumerate(zip(truth, sure, strict=True)):
        said = "spam" if value >= 0.5 else "ham"
        meta = {
            "prediction": said,
            "probabilities": {"ham": 1 - float(value), "spam": float(value)},
            "truncated": False,
        }
        label = "spam" if positive else "ham"
        rows.append({**original(f"m{number}", "test", {"text": "x", "label": label}), "meta": meta})
    statistic = Auc(positive="spam").statistics({"m": rows})["m"]["auc"]
    assert statistic.point() == pytest.approx(sk.roc_auc_score(truth, sure), abs=1e-12)
    weights = np.bincount(rng.integers(0, 300, 300), minlength=300).astype(float)
    theirs = sk.roc_auc_score(truth, sure, sample_weight=weights)
    assert statistic.of(weights[None])[0] == pytest.approx(theirs, abs=1e-12)


def spread(seed, names, held, rows=240):
    """Rows of the labels `held`, with the probabilities that a model gives to `names`, many of them equal."""
    rng = np.random.default_rng(seed)
    truth = [held[place] for place in rng.integers(0, len(held), rows)]
    logits = rng.normal(size=(rows, len(names))).round(1) + 1.2 * (np.array(truth)[:, None] == np.array(names))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    made = []
    for number, (label, each) in enumerate(zip(truth, shares, strict=True)):
        meta = {"probabilities": dict(zip(names, each.tolist(), strict=True)), "prediction": names[int(each.argmax())]}
        row = original(f"m{number}", "test", {"text": "x", "label": label})
        made.append({**row, "meta": {**meta, "truncated": False}})
    return made, truth, shares


def test_the_area_of_several_labels_is_scikit_learns_mean_of_one_against_the_rest():
    names = ["a", "b", "c", "d"]
    rows, truth, shares = spread(5, names, names)
    theirs = {"multi_class": "ovr", "average": "macro"}
    other = [{**row, "meta": {**row["meta"], "probabilities": dict.fromkeys(names, 0.25)}} for row in rows]
    found = AucOvr().statistics({"other": other, "m": rows})
    statistic = found["m"]["auc_ovr"]
    assert statistic.point() == pytest.approx(sk.roc_auc_score(truth, shares, **theirs), abs=1e-12)
    assert found["other"]["auc_ovr"].point() == 0.5
    weights = np.bincount(np.random.default_rng(6).integers(0, len(rows), len(rows)), minlength=len(rows))
    drawn = sk.roc_auc_score(truth, shares, sample_weight=weights, **theirs)
    assert statistic.of(weights[None].astype(float))[0] == pytest.approx(drawn, abs=1e-12)
    mixed = [rows[place] if place % 3 else other[place] for place in range(len(rows))]
    swapped = statistic.terms.copy().tolil()
    swapped[::3] = found["other"]["auc_ovr"].terms.tolil()[::3]
    point = statistic.value(np.asarray(np.ones((1, len(rows))) @ swapped.tocsr()))[0]
    [alone] = AucOvr().statistics({"mixed": mixed})["mixed"].values()
    assert point == pytest.approx(alone.point(), abs=1e-12), "what a test of two models swaps is each row's scores"


def test_a_label_that_no_row_has_is_left_out_of_the_area_and_named():
    names, held = ["a", "b", "c", "d"], ["a", "c", "d"]
    rows, truth, shares = spread(7, names, held)
    areas = [sk.roc_auc_score(np.array(truth) == label, shares[:, names.index(label)]) for label in held]
    assert figures(AucOvr(), rows)[0]["auc_ovr"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert AucOvr().detail(rows) == {"auc_ovr": {"labels": 3, "absent": ["b"]}}
    few = [row for row in rows if row["label"] != "a"]
    part = AucOvr().statistics({"m": rows})["m"]["auc_ovr"]
    weights = np.array([[float(row["label"] != "a") for row in rows]])
    assert part.of(weights)[0] == pytest.approx(figures(AucOvr(), few)[0]["auc_ovr"], abs=1e-12), "nor has this draw"
    with pytest.raises(StageError, match="all rows have the label 'a'"):
        figures(AucOvr(), [row for row in rows if row["label"] == "a"])


def test_of_two_labels_it_is_the_mean_of_both_areas():
    rows, truth, shares = spread(8, ["ham", "spam"], ["ham", "spam"])
    areas = [sk.roc_auc_score(np.array(truth) == label, shares[:, at]) for at, label in enumerate(("ham", "spam"))]
    assert figures(AucOvr(), rows)[0]["auc_ovr"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_calibration_is_a_plain_loop_over_bins(intents):
    found, _ = figures(Calibration(bins=10), intents)
    total = 0.0
    for low in range(10):
        inside = [row for row in intents if low / 10 < row["meta"]["confidence"] <= (low + 1) / 10]
        if inside:
            right = np.mean([row["label"] == row["meta"]["prediction"] for row in inside])
            total += len(inside) * abs(right - np.mean([row["meta"]["confidence"] for row in inside]))
    assert found["ece"] == pytest.approx(total / len(intents), abs=1e-12)


def test_entities_are_counted_as_seqeval_counts_them():
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = random.Random(4)
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "S-ORG"]
    truth = [[rng.choice(tags) for _ in range(rng.randint(1, 12))] for _ in range(80)]
    said = [[tag if rng.random() < 0.7 else rng.choice(tags) for tag in row] for row in truth]
    rows = [
        {**original(f"t{i}", "test", {"tokens": ["w"] * len(right), "tags": right}), "meta": {"prediction": guess}}
        for i, (right, guess) in enumerate(zip(truth, said, strict=True))
    ]
    assert figures(Entities(), rows)[0] == pytest.approx(
        {
            "entity_f1": f1_score(truth, said), "entity_precision": precision_score(truth, said),
            "entity_recall": recall_score(truth, said), "tag_accuracy": accuracy_score(truth, said),
        },
        abs=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (6, 2, 1), (6, 2, 3), (6, 5, 2), (8, 3, 8)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_programs(n, c, k):
    right = [True] * c + [False] * (n - c)
    every = [any(chosen) for chosen in itertools.combinations(right, k)]
    assert pass_at_k(n, c, k) == pytest.approx(np.mean(every), abs=1e-12)


def test_solutions_of_humaneval_pass_its_tests_and_others_do_not(shared):
    with gzip.open(shared / "data/code/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(next(file)) for _ in range(3)]
    rows = []
    for problem in problems:
        meta = {key: problem[key] for key in ("test", "entry_point")}
        meta |= {"answers": [problem["canonical_solution"], "    return None\n"], "references": []}
        row = original(problem["task_id"], "test", {"prompt": problem["prompt"], "completion": "x"})
        rows.append({**row, "meta": meta})
    metric = PassAtK(
        k=(1, 2), program="{{ prompt }}{{ answer }}", tests="{{ meta.test }}\ncheck({{ meta.entry_point }})"
    )
    try:
        found, _ = figures(metric, rows)
    except StageError as error:
        pytest.skip(f"no sandbox here: {error}")
    assert found == {"pass@1": 0.5, "pass@2": 1.0}


def test_similarity_is_a_cosine_and_diversity_has_no_interval():
    rows = answered([("Where is my card?", ["Where is my card?", "Bananas are yellow."])] * 2)
    assert figures(Similarity(), rows)[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert Diversity().statistics({"m": rows}) == {"m": {}}
    assert Diversity().detail(rows)["diversity"]["distinct_1"] == 0.5


def test_every_metric_has_a_description_of_each_field():
    from tilth.kinds import KINDS, load_class

    for family in ("metric", "task"):
        for kind in KINDS[family]:
            cls = load_class(family, kind)
            assert issubclass(cls, Component)
            assert all(field.description for field in cls.model_fields.values()), kind
            assert cls.__doc__


def test_a_metric_of_ones_own_needs_one_method():
    class Shouts(Metric):
        def figures(self, rows):
            from tilth.data.bootstrap import mean

            return {"shouts": mean([row["meta"]["answers"][0].isupper() for row in rows])}

    assert figures(Shouts(), answered([("HEY", "x"), ("hey", "x")]))[0] == {"shouts": 0.5}
