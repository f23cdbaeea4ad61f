"""Proposals of masked language models, held against plain transformers."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, DistilBertConfig, MPNetConfig, RobertaConfig

from proposing import CAUSAL, ENCODER, blanks_of, masked_bert, questions, resolved
from tilth.augment.base import Sample
from tilth.augment.contextual import Contextual, Sampling
from tilth.augment.edits import Editor
from tilth.augment.engines.rounded import Rounded
from tilth.augment.lm import LanguageModel, windows
from tilth.augment.proposers import Blank, MaskedLM, Request
from tilth.data.conditioning import label_prefix
from tilth.data.schema import Row
from tilth.data.transform import Inputs
from tilth.errors import ModelError


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    return questions(shared, 400)


def of_kind(kind: str, folder: Path) -> Path:
    """A small masked language model of a family, all its weights drawn; mpnet is one that only transformers runs."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolved(CAUSAL if kind == "roberta" else ENCODER))
    # roberta counts positions from its padding token's number
    padding = tokenizer.convert_ids_to_tokens(1) if kind == "roberta" else "[PAD]"
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "pad_token": padding})
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 514}
    if kind == "distilbert":
        config: Any = DistilBertConfig(dim=64, n_heads=4, hidden_dim=128, n_layers=3, **size)
    else:
        layers = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 3}
        config = {"roberta": RobertaConfig, "mpnet": MPNetConfig}[kind](**layers, **size)
    model = AutoModelForMaskedLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embeddings" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet"])
def test_a_masked_proposer_gives_the_models_own_probabilities(kind: str, masked: Path, tmp_path: Path) -> None:
    folder = masked if kind == "bert" else of_kind(kind, tmp_path)
    text = "I still have not received my new card from the bank."
    request = Request(text, blanks_of(text, "received", "bank"))
    # neighbours of other lengths, and one of the same
    others = [Request(f"{text} {text}", blanks_of(text, "card")), Request(text, blanks_of(text, "new"))]
    propose = MaskedLM(model=str(folder), precision="float32").load_proposals(Inputs())
    [[first, second], *_] = propose([request, *others], 100_000)

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    encoded = tokenizer(text.replace("received", "[MASK]").replace("bank", "[MASK]"), return_tensors="pt")
    with torch.inference_mode():
        logits = model(**encoded).logits[0]
    places = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    mark = "Ġ" if kind == "roberta" else ""
    names = [name for name in tokenizer.get_vocab() if name.startswith(mark)]
    token_of = {tokenizer.convert_tokens_to_string([name]).strip() if mark else name: name for name in names}
    for proposed, place, old in zip((first, second), places, ("received", "bank"), strict=True):
        assert math.fsum(map(math.exp, proposed.scores)) == pytest.approx(1, abs=1e-3)
        tokens = tokenizer.convert_tokens_to_ids([token_of[word] for word in (*proposed.words, old)])
        logs = torch.log_softmax(logits[place][tokens[:-1]], dim=-1)
        assert proposed.scores == pytest.approx(logs.tolist(), abs=1e-4)
        assert proposed.original == pytest.approx(logs[tokens.index(tokens[-1])].item(), abs=1e-4)
        plain = tokenizer.convert_ids_to_tokens(logits[place].argsort(descending=True).tolist())
        known = {token_of[word]: word for word in proposed.words}
        words_alone = [known[token] for token in plain if token in known]
        assert all(word.translate(dict.fromkeys(map(ord, "'’-"))).isalpha() for word in proposed.words)
        assert words_alone[:20] == list(proposed.words[:20])


def test_eight_bits_propose_what_floats_do(masked: Path, rows: list[Row]) -> None:
    requests = [Request(item["text"], blanks_of(item["text"], item["text"].split()[1])) for item in rows]
    exact, eight = (
        MaskedLM(model=str(masked), precision=precision).load_proposals(Inputs())(requests, 50)
        for precision in ("float32", "int8")
    )
    same = [a.words[0] == b.words[0] for [a], [b] in zip(exact, eight, strict=True)]
    assert sum(same) >= 0.85 * len(same)
    for [a], [b] in zip(exact, eight, strict=True):
        scores = dict(zip(b.words, b.scores, strict=True))
        gaps = [abs(score - scores[word]) for word, score in zip(a.words, a.scores, strict=True) if word in scores]
        assert len(gaps) >= 35
        assert sum(gaps) / len(gaps) < 0.2


def test_eight_bits_give_a_row_the_same_numbers_in_any_batch(masked: Path, rows: list[Row]) -> None:
    requests = [Request(item["text"], blanks_of(item["text"], item["text"].split()[1])) for item in rows]
    propose = MaskedLM(model=str(masked)).load_proposals(Inputs())
    assert propose(requests, 5) == [propose([request], 5)[0] for request in requests]


@pytest.mark.parametrize("small", [True, False])
def test_a_layer_in_eight_bits_sums_whole_numbers(small: bool) -> None:
    """Held against the same arithmetic written plainly."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(96, 40), torch.randn(3, 7, 96)
    with torch.inference_mode():
        made, exact = Rounded(linear, small)(x).double(), linear(x).double()
    weight = linear.weight.detach()
    steps, unit = x.abs().amax(-1, keepdim=True) / 127, weight.abs().amax(1) / 64
    sums = (x / steps).round().double() @ (weight / unit[:, None]).round().double().T
    assert torch.allclose(made, sums * unit * steps + linear.bias.detach(), atol=1e-5)
    assert 0 < (made - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_a_label_conditional_proposer_reads_the_label_before_the_text(masked: Path) -> None:
    text = "Where is it now?"
    config = MaskedLM(model=str(masked), label_conditional=True)
    [[labelled]] = config.load_proposals(Inputs())([Request(text, blanks_of(text, "it"), "card_arrival")], 5)
    written = label_prefix("card_arrival") + text
    start = written.index("it now")
    plain = MaskedLM(model=str(masked)).load_proposals(Inputs())
    [[prefixed]] = plain([Request(written, (Blank(start, start + 2),))], 5)
    assert written == "card arrival: Where is it now?"
    assert labelled == prefixed


def test_all_masks_of_all_rows_take_one_pass_a_round(masked: Path, rows: list[Row]) -> None:
    propose = MaskedLM(model=str(masked), batch_tokens=4096).load_proposals(Inputs())
    passes: list[int] = []
    propose.logits.register_forward_hook(lambda _m, _a, logits: passes.append(len(logits)))
    for rounds in (1, 2):
        config = Contextual(
            proposer=MaskedLM(model=str(masked)), edits=1.0, min_edits=2, max_edits=2, sampling=Sampling(rounds=rounds)
        )
        samples = [Sample(item["id"], item["text"], None, random.Random(1), item) for item in rows]
        made = Editor(config, propose)(samples)
        edits = sum(len(variant.meta["edits"]) for [variant] in made)
        assert len(passes) == rounds
        assert passes[0] == edits
        if rounds == 2:
            assert passes[1] < passes[0]
        passes.clear()


def test_every_part_of_a_long_text_is_reached(masked: Path) -> None:
    text = " ".join(f"the {word} went home early" for word in ["dog", "teacher", "army", "doctor"] * 60)
    last = text.rindex("doctor")
    request = Request(text, (*blanks_of(text, "dog"), Blank(last, last + len("doctor"))))
    [found] = MaskedLM(model=str(masked)).load_proposals(Inputs())([request], 3)
    assert [len(proposed.words) for proposed in found] == [3, 3]


def test_every_window_of_a_long_text_begins_with_the_label(masked: Path) -> None:
    lm = LanguageModel.load(AutoModelForMaskedLM, masked)
    text = " ".join(f"the {word} went home early" for word in ["dog", "teacher", "army", "doctor"] * 120)
    spans = [(found.start(), found.end()) for found in re.finditer("dog|army", text)]
    cut = windows(lm, [text, "short it is"], [spans, [(6, 8)]], ["card arrival: "] * 2)
    begin = lm.tokenizer("card arrival:")["input_ids"][:-1]
    assert len(cut) > 4
    assert all(window.ids[: len(begin)] == begin for window in cut)
    assert max(len(window.ids) for window in cut) == lm.context
    assert all(window.ids[-1] == lm.tokenizer.sep_token_id for window in cut)
    for window in cut[:-1]:
        held = {lm.tokenizer.decode(window.ids[place.first : place.end]) for place in window.places}
        assert held <= {"dog", "army"}
    assert sorted(place.blank for window in cut[:-1] for place in window.places) == list(range(len(spans)))
    assert cut[-1].ids == lm.tokenizer("card arrival: short it is")["input_ids"]


def test_the_label_counts_at_the_end_of_a_long_text_too(masked: Path) -> None:
    text = " ".join(f"the {word} went home early" for word in ["dog", "teacher", "army", "doctor"] * 60)
    last = text.rindex("doctor")
    propose = MaskedLM(model=str(masked), label_conditional=True).load_proposals(Inputs())
    request = Request(text, (Blank(last, last + len("doctor")),))
    [one], [other] = propose([replace(request, label=label) for label in ("card_arrival", "age_limit")], 5)
    assert one.scores != other.scores


def test_an_encoder_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="mlm stage"):
        MaskedLM(model=str(resolved(ENCODER))).load_proposals(Inputs())
