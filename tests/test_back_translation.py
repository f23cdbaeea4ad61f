"""Round trips with the real engines: Bergamot in process, CTranslate2 and transformers with OPUS-MT."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tilth import models
from tilth.augment.back_translation import BackTranslation
from tilth.augment.translators import Bergamot, CTranslate2, Decoding, Pivot, Transformers
from tilth.data.schema import Row, original
from tilth.data.transform import Inputs
from tilth.errors import ModelError
from tilth.generate.engines.sampling import gumbel

EN_FR, FR_EN = "Helsinki-NLP/opus-mt-en-fr", "Helsinki-NLP/opus-mt-fr-en"
LONG = "I still have not received my new card. It was ordered two weeks ago!\n\n  What do I do now?"


def rows(*texts: str) -> list[Row]:
    return [original(f"r{n}", "train", {"text": text, "label": "card_arrival"}) for n, text in enumerate(texts)]


def children(config: BackTranslation, given: list[Row]) -> dict[str, Row]:
    return {row["id"]: row for row in config.load(Inputs(), {})(given) if row["parent"]}


@pytest.fixture(scope="session")
def opus() -> None:
    """The two OPUS-MT models are at hand."""
    try:
        models.resolve(EN_FR), models.resolve(FR_EN)
    except ModelError as error:
        pytest.skip(str(error))


def test_the_default_needs_nothing_and_keeps_label_lineage_and_paragraphs() -> None:
    config = BackTranslation()
    child = children(config, rows(LONG))["r0/back_translation.0"]
    assert child["text"] != LONG
    assert child["text"].count("\n\n  ") == 1
    assert child["reason"] is None
    assert (child["root"], child["parent"], child["via"]) == ("r0", "r0", "back_translation")
    assert child["label"] == "card_arrival"
    assert child["model"] == "bergamot en-pt > bergamot pt-en"
    assert 50 < child["meta"]["chrf"] < 95
    assert 0.5 < child["meta"]["edit_similarity"] < 0.95


def test_bergamot_is_its_native_result_unspoilt() -> None:
    translate = Bergamot(direction="pt-en").load(Inputs())
    assert translate(["O que faço agora?"], [0], 1) == [["What do I do now?"]]


def test_a_round_trip_that_says_the_same_has_a_reason() -> None:
    made = children(BackTranslation(), rows("Yes.", "", "12345"))
    assert [row["reason"].partition(":")[0] for row in made.values()] == ["unchanged"] * 3
    strict = children(BackTranslation(near_identical=0.5), rows(LONG))
    assert strict["r0/back_translation.0"]["reason"].startswith("unchanged: edit similarity 0.")


def test_variants_of_a_row_that_repeat_each_other_have_a_reason() -> None:
    made = children(BackTranslation(variants=2, pivots=(Pivot(), Pivot())), rows(LONG))
    assert made["r0/back_translation.0"]["reason"] is None
    assert made["r0/back_translation.1"]["reason"] == "duplicate: the same words as variant 0"


def test_a_row_gives_the_same_round_trip_alone_or_in_any_company(shared: Path) -> None:
    with open(shared / "data/banking77/train.csv", newline="", encoding="utf-8") as handle:
        texts = [row["text"] for row in csv.DictReader(handle)][::500]
    given = rows(*texts)
    function = BackTranslation().load(Inputs(), {})
    whole = {row["id"]: row for row in function(given)}
    alone = {child["id"]: child for row in given[::-1] for child in function([row])}
    assert alone == whole


def test_faults_are_found_before_any_model_is_loaded() -> None:
    [problem] = BackTranslation(variants=3, pivots=(Pivot(), Pivot())).check()
    assert "need 2 translations from pivot 0, which gives 1" in problem.what
    [problem] = Pivot(backward=Bergamot(direction="en-pt")).check()
    assert "forward translates en to pt" in problem.what
    narrow = CTranslate2(model=EN_FR, decoding=Decoding(beams=2, temperature=1.0, top=8))
    assert "draws from 8" in narrow.check()[0].what
    drawing = Decoding(beams=32, temperature=1.0, top=4)
    few = Pivot(forward=CTranslate2(model=EN_FR, decoding=drawing), backward=CTranslate2(model=FR_EN))
    assert "which gives 4" in BackTranslation(variants=5, pivots=(few,)).check()[0].what
    wide = Pivot(forward=CTranslate2(model=EN_FR, decoding=Decoding(beams=5)), backward=CTranslate2(model=FR_EN))
    assert BackTranslation(variants=5, pivots=(wide,)).check() == []


def test_seeded_noise_is_gumbel_and_depends_on_nothing_else() -> None:
    seeds = torch.tensor([[1], [2], [2**62 + 5]])
    tokens = torch.arange(60_000).unsqueeze(0)
    noise = gumbel(seeds, 7, tokens)
    # mean and variance of the standard Gumbel distribution
    assert noise.mean(1).tolist() == pytest.approx([0.5772] * 3, abs=0.03)
    assert noise.var(1).tolist() == pytest.approx([1.6449] * 3, abs=0.05)
    assert torch.corrcoef(noise)[0, 1].abs() < 0.02
    assert torch.equal(gumbel(seeds[1:2], 7, tokens[:, 500:900])[0], noise[1, 500:900])
    assert not torch.equal(gumbel(seeds, 8, tokens), noise)


@pytest.mark.slow
@pytest.mark.usefixtures("opus")
@pytest.mark.parametrize("engine", [CTranslate2, Transformers])
def test_sampled_variants_differ_and_a_retry_gives_them_again(engine: type[CTranslate2 | Transformers]) -> None:
    how = Decoding(beams=6, temperature=1.0, top=6)
    config = BackTranslation(
        variants=3,
        pivots=(
            Pivot(forward=engine(model=EN_FR, decoding=how), backward=engine(model=FR_EN, decoding=Decoding(beams=1))),
        ),
    )
    given = rows(LONG, "My card payment was declined yesterday.", "How do I change my PIN at the cash machine?")
    function = config.load(Inputs(), {})
    whole = {row["id"]: row for row in function(given)}
    alone = {child["id"]: child for row in given[::-1] for child in function([row])}
    assert alone == whole
    kept = [row["text"] for row in whole.values() if row["parent"] and row["reason"] is None]
    assert len(kept) == len(set(kept)) >= 4
    other = {row["id"]: row["text"] for row in config.model_copy(update={"seed": 1}).load(Inputs(), {})(given)}
    assert other != {name: row["text"] for name, row in whole.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("opus")
def test_ctranslate2_translates_as_well_as_transformers(shared: Path) -> None:
    from sacrebleu import corpus_bleu

    def lines(language: str) -> list[str]:
        return (shared / f"data/flores/dev.{language}").read_text(encoding="utf-8").splitlines()[:60]

    greedy = Decoding(beams=1)
    score = {}
    made = {}
    for engine in (CTranslate2, Transformers):
        translate = engine(model=EN_FR, decoding=greedy).load(Inputs())
        made[engine] = [found[0] for found in translate(lines("en"), range(60), 1)]
        score[engine] = corpus_bleu(made[engine], [lines("fr")]).score
    assert score[Transformers] > 35
    assert score[CTranslate2] == pytest.approx(score[Transformers], abs=1.5)
    assert corpus_bleu(made[CTranslate2], [made[Transformers]]).score > 80
