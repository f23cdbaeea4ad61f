"""Generators that need no server: `echo`, `hf` on a real small model, and asking again for answers without shape."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from tilth import models
from tilth.data.loading import Card
from tilth.data.transform import Inputs
from tilth.errors import ModelError
from tilth.generate.base import Answer, Generate, Generator, Prompt, SamplingParams, total_usage
from tilth.generate.echo import Echo
from tilth.generate.engines.constraints import Guides
from tilth.generate.engines.prompts import Encoder
from tilth.generate.engines.sampling import Draws, SeededSampling
from tilth.generate.engines.weights import Weights
from tilth.generate.hf import HuggingFace
from tilth.generate.shape import Shape, ShapeError
from tiny import model_folder, tokenizer

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["city", "stars"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    CITY,
    TREE,
    {"type": "string", "minLength": 40, "maxLength": 44},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 3, "maxItems": 3, "uniqueItems": True},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 7, "minimum": 20, "maximum": 30},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": "x"}]},
    {"type": ["integer", "null"]},
    {"allOf": [{"properties": {"a": {"type": "boolean"}}, "required": ["a"]}, {"required": ["b"], "minProperties": 4}]},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "string", "format": "date"}], "items": False},
]


def turns(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def texts(answers: Sequence[Answer]) -> list[list[str]]:
    return [[item.text for item in answer.completions] for answer in answers]


# --- echo


def test_echo_depends_on_the_question_and_its_seed_alone() -> None:
    ask = Echo().open(Inputs())
    prompts = [Prompt(turns(f"tell me about card number {i}"), seed=i % 3, n=3) for i in range(9)]
    together = ask(prompts)
    assert [ask([prompt])[0] for prompt in prompts[::-1]] == together[::-1]
    assert all(len(set(found)) == 3 for found in texts(together))
    assert len({found[0] for found in texts(together)}) == 9
    assert total_usage(together)["completion_tokens"] == sum(len(t.split()) for found in texts(together) for t in found)


def test_echo_of_few_words_still_gives_n_texts() -> None:
    (answer,) = Echo().open(Inputs())([Prompt("yes", n=60)])
    assert len(set(texts([answer])[0])) == 60


def test_echo_ends_at_a_stop_text_or_the_most_tokens_and_says_which() -> None:
    ask = Echo(sampling=SamplingParams(max_tokens=4)).open(Inputs())
    (cut,), (stopped,) = (
        ask([prompt])[0].completions for prompt in (Prompt("a b c d e f"), Prompt("a b", stop=("b",)))
    )
    assert (cut.finish, cut.tokens, len(cut.text.split()), cut.whole) == ("length", 4, 4, False)
    assert "b" not in stopped.text


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)) + str(len(str(schema))))
def test_echo_obeys_a_schema(schema: dict[str, Any]) -> None:
    answers = Echo(retries=0).open(Inputs())([Prompt("some words", seed=i, shape=Shape.of(schema)) for i in range(30)])
    assert [answer.first.finish for answer in answers] == ["stop"] * 30


def test_echo_provokes_the_trouble_that_it_is_told_to() -> None:
    prompts = [Prompt(f"question {i}", seed=i, shape=Shape.of(CITY)) for i in range(300)]
    answers = Echo(malformed=0.2, truncated=0.1, failing=0.1, retries=0).open(Inputs())(prompts)
    failed = [answer for answer in answers if answer.failure]
    ends = [answer.first.finish for answer in answers if not answer.failure]
    assert 15 <= len(failed) <= 45
    assert 15 <= ends.count("length") <= 45
    assert 30 <= ends.count("malformed") <= 75


# --- asking again


def test_malformed_answers_are_asked_again_and_the_good_ones_of_a_question_kept() -> None:
    prompts = [Prompt(f"question {i}", seed=i, n=4, shape=Shape.of(CITY)) for i in range(20)]
    once = Echo(malformed=0.4, retries=0).open(Inputs())(prompts)
    again = Echo(malformed=0.4, retries=8).open(Inputs())(prompts)
    assert all(len(answer.completions) == 4 for answer in again)
    assert all(item.whole and item.value["stars"] in range(1, 6) for answer in again for item in answer.completions)
    pairs = [pair for a, b in zip(once, again, strict=True) for pair in zip(a.completions, b.completions, strict=True)]
    assert {old.finish for old, _ in pairs} == {"stop", "malformed"}
    assert all(new == old for old, new in pairs if old.whole)
    # what was thrown away was paid for as well
    assert total_usage(again)["completion_tokens"] > sum(item.tokens for _, item in pairs)


def test_what_stays_malformed_keeps_its_text_and_has_no_value() -> None:
    (answer,) = Echo(malformed=1.0, retries=3).open(Inputs())([Prompt("question", shape=Shape(choices=("a", "b")))])
    assert answer.first.finish == "malformed"
    assert answer.first.text.startswith("malformed ")
    assert answer.first.value is None


def test_a_text_that_was_cut_is_never_whole_even_where_what_is_left_has_the_shape() -> None:
    shape = Shape(choices=("yes", "yes of course"))
    ask = Echo(sampling=SamplingParams(max_tokens=1), retries=0).open(Inputs())
    found = [ask([Prompt("is it", seed=seed, shape=shape)])[0].first for seed in range(20)]
    assert {(item.text, item.finish, item.value) for item in found} == {("yes", "stop", "yes"), ("yes", "length", None)}


@pytest.mark.parametrize(
    "text", ["Not Equal", " not equal.", '"Not Equal".', "**Not Equal.**", "“NOT EQUAL”", "`Not Equal`"]
)
def test_a_choice_is_read_as_models_write_it(text: str) -> None:
    assert Shape(choices=("Equal", "Not Equal")).read(text) == "Not Equal"


def test_a_choice_is_read_only_where_it_stands_alone_and_is_one() -> None:
    either = Shape(choices=("a", "A", "yes.", "*"))
    assert [either.read(text) for text in ("a", " A\n", "YES", "*")] == ["a", "A", "yes.", "*"]
    for text in ("a.", "yes or a", "no", "", '""', "**"):
        with pytest.raises(ShapeError, match="is none of a, A"):
            either.read(text)


class Recorder(Generator):
    """Answers with the prompts that it got, as JSON, so that a test sees what an engine is asked."""

    def load(self, inputs: Inputs) -> Generate:
        def answer(prompts: Sequence[Prompt]) -> list[Answer]:
            return Echo().load(inputs)([Prompt(json.dumps(prompt.messages), prompt.seed) for prompt in prompts])

        return answer


def test_a_system_message_is_put_before_turns_that_have_none() -> None:
    ask = Recorder(system="Be_brief").open(Inputs())
    own = ({"role": "system", "content": "Be_long"}, *turns("hello"))
    (bare,), (kept,), (plain,) = texts(ask([Prompt(turns("hello"), 5), Prompt(own, 5), Prompt("hello", 5)]))
    assert "be_brief" in bare.lower()
    assert "be_brief" not in kept.lower()
    assert "be_brief" not in plain.lower()


# --- sampling


def frequencies(draws: Draws, logits: list[float], prompts: list[list[int]] | None = None) -> list[float]:
    """How often each token is drawn, one draw for each seed."""
    count = len(draws.seeds)
    sampling = SeededSampling(draws, "cpu", 0, prompts or [[]] * count)
    scores = torch.tensor([logits]).expand(count, -1)
    drawn = sampling(torch.zeros((count, 0), dtype=torch.long), scores).argmax(-1)
    share: list[float] = torch.bincount(drawn, minlength=len(logits)).div(count).tolist()
    return share


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(x) / total for x in logits]


def test_draws_have_the_probabilities_that_vllm_defines() -> None:
    logits = [2.0, 1.0, 0.5, -1.0, -3.0]
    seeds = [seed * 7919 for seed in range(40_000)]

    def drawn(temperature: float, **fields: Any) -> list[float]:
        return frequencies(Draws(seeds, [temperature] * len(seeds), **fields), logits)

    assert drawn(1.0) == pytest.approx(softmax(logits), abs=0.01)
    assert drawn(0.5) == pytest.approx(softmax([2 * x for x in logits]), abs=0.01)
    assert drawn(0.0) == [1, 0, 0, 0, 0]
    assert drawn(1.0, top_k=2) == pytest.approx([*softmax(logits[:2]), 0, 0, 0], abs=0.01)
    # the two best hold 0.83: at 0.82 the third is out, at 0.84 it is in
    assert drawn(1.0, top_p=0.82) == pytest.approx([*softmax(logits[:2]), 0, 0, 0], abs=0.01)
    assert drawn(1.0, top_p=0.84) == pytest.approx([*softmax(logits[:3]), 0, 0], abs=0.01)
    # of the three best, as shares of these three
    assert drawn(1.0, top_k=3, top_p=0.5) == pytest.approx([1, 0, 0, 0, 0], abs=0.01)


def test_the_penalty_is_on_tokens_seen_divides_what_is_positive_and_multiplies_what_is_not() -> None:
    seeds = list(range(40_000))
    draws = Draws(seeds, [1.0] * len(seeds), penalty=2.0)
    found = frequencies(draws, [2.0, 1.0, -1.0], [[0, 2]] * len(seeds))
    assert found == pytest.approx(softmax([1.0, 1.0, -2.0]), abs=0.01)


def test_a_long_tail_is_drawn_from_as_well() -> None:
    # 3,000 equal tokens: the likeliest 1,024 do not hold 0.9 of them
    seeds = list(range(3_000))
    found = frequencies(Draws(seeds, [1.0] * len(seeds), top_p=0.9), [0.0] * 3_000)
    assert sum(share > 0 for share in found) > 1_200
    assert sum(share > 0 for share in found) <= 2_701


# --- hf


@pytest.fixture(scope="module")
def hf() -> Generate:
    return HuggingFace(model=SMOLLM, sampling=SamplingParams(max_tokens=8)).open(Inputs())


def mixed(count: int) -> list[Prompt]:
    """Prompts of unlike length and kind."""
    words = "Please tell me all about the card that I ordered last week and that never came"
    asked = [words[: 10 + 11 * i] for i in range(count)]
    return [Prompt(text if i % 3 == 0 else turns(text), seed=2**61 + i, n=1 + i % 2) for i, text in enumerate(asked)]


@pytest.mark.long
def test_a_prompt_gives_the_same_in_whatever_batch_it_is(hf: Generate) -> None:
    prompts = mixed(6)
    together = texts(hf(prompts))
    assert texts(hf(prompts[::-1])) == together[::-1]
    assert [texts(hf([prompt]))[0] for prompt in prompts] == together
    small = HuggingFace(model=SMOLLM, sampling=SamplingParams(max_tokens=8), batch_tokens=64).open(Inputs())
    assert texts(small(prompts)) == together


def test_seeds_decide_unless_the_likeliest_is_asked_for(hf: Generate) -> None:
    def ask(seed: int, temperature: float | None) -> list[str]:
        (answer,) = hf([Prompt(turns("Tell me a story"), seed, n=2, temperature=temperature)])
        return texts([answer])[0]

    first, second = ask(1, None), ask(2, None)
    assert len({*first, *second}) == 4
    assert ask(1, None) == first
    assert len({*ask(1, 0.0), *ask(2, 0.0)}) == 1


def test_an_answer_says_how_it_ended_and_what_it_took(hf: Generate) -> None:
    prompts = [
        Prompt(turns("What is 2 + 2? Answer with one number."), temperature=0.0, max_tokens=200),
        Prompt(turns("Tell me a very long story."), max_tokens=5),
        Prompt("The colours are red, green, blue, red, green, blue, red,", temperature=0.0, stop=("blue",)),
    ]
    ended, cut, stopped = hf(prompts)
    tokenizer: Any = AutoTokenizer.from_pretrained(models.resolve(SMOLLM))
    assert ended.first.finish == "stop"
    assert ended.first.tokens == len(tokenizer(ended.first.text).input_ids) + 1  # and the mark of the end
    assert ended.prompt_tokens == len(
        tokenizer.apply_chat_template(prompts[0].messages, add_generation_prompt=True)["input_ids"]
    )
    assert (cut.first.finish, cut.first.tokens, cut.completion_tokens) == ("length", 5, 5)
    assert (stopped.first.finish, stopped.first.text) == ("stop", " green, ")


def test_a_stop_that_is_a_special_token_ends_a_text_in_which_it_cannot_be_seen(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    marked: Any = AutoTokenizer.from_pretrained(folder)
    marked.add_tokens([AddedToken("<turn>", special=True)])  # as [/INST]: special, without a role
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(marked))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely as any other
    model.save_pretrained(folder)
    marked.save_pretrained(folder)
    ask = HuggingFace(model=str(folder), sampling=SamplingParams(top_p=1.0, temperature=2.0)).open(Inputs())
    free, stopped = (ask([Prompt("a", 1, n=8, max_tokens=200, stop=stop)])[0] for stop in ((), ("<turn>",)))
    earlier = 0
    for a, b in zip(free.completions, stopped.completions, strict=True):
        assert a.text.startswith(b.text)
        assert "<turn>" not in b.text
        earlier += b.tokens < a.tokens
        assert b.finish == "stop" or (a.finish, a.tokens) == (b.finish, b.tokens)
    assert earlier


def test_tokens_that_end_a_completion_are_the_tokenizers_end_and_the_stops_that_are_special() -> None:
    marked: Any = tokenizer()
    marked.add_tokens([AddedToken("<turn>", special=True), AddedToken("<plain>", special=False)])
    encode = Encoder(marked, 99, SamplingParams(stop=("<turn>", "blue")))
    found, other = encode([Prompt("a", stop=("<plain>", "<mask>")), Prompt("a")])
    assert found.ends == (2, 3, marked.convert_tokens_to_ids("<turn>"))
    assert other.ends == (2, marked.convert_tokens_to_ids("<turn>"))
    marked.eos_token = "<mask>"
    assert Encoder(marked, 99, SamplingParams())([Prompt("a")])[0].ends == (3,)


def test_log_probabilities_are_those_of_the_model(hf: Generate) -> None:
    (answer,) = hf([Prompt("The capital of France is", seed=3, temperature=1.5, max_tokens=6)])
    tokenizer: Any = AutoTokenizer.from_pretrained(models.resolve(SMOLLM))
    model: Any = AutoModelForCausalLM.from_pretrained(models.resolve(SMOLLM), dtype=torch.float32)
    prompt, whole = (
        tokenizer(text).input_ids
        for text in ("The capital of France is", f"The capital of France is{answer.first.text}")
    )
    with torch.inference_mode():
        logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    expected = sum(float(logs[at - 1, whole[at]]) for at in range(len(prompt), len(whole)))
    assert len(whole) == len(prompt) + 6
    assert answer.first.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_answers_keep_to_a_shape(hf: Generate) -> None:
    city = Prompt(turns("Name a city with stars, as JSON"), n=2, shape=Shape.of(CITY), max_tokens=60, temperature=0.3)
    colours = ("red", "green", "blue")
    choice = Prompt(turns("Which is best?"), n=16, shape=Shape(choices=colours), temperature=5.0)
    cities, chosen = HuggingFace(model=SMOLLM, retries=0).open(Inputs())([city, choice])
    assert all(item.whole and item.value["stars"] in range(1, 6) for item in cities.completions)
    assert {item.value for item in chosen.completions} == set(colours)


def test_where_one_choice_begins_another_the_end_tells_them_apart() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(models.resolve(SMOLLM))
    guide = Guides(tokenizer, 49_152, [2]).of(Shape(choices=("red", "red wine", "blue")))
    assert guide is not None
    red, blue, wine = (tokenizer(text).input_ids[0] for text in ("red", "blue", " wine"))
    assert set(guide.allowed().nonzero().flatten().tolist()) == {red, blue}
    assert not guide.accept(red)
    assert set(guide.allowed().nonzero().flatten().tolist()) == {wine, 2}
    assert guide.accept(wine)


def test_a_prompt_without_room_fails_with_the_numbers(hf: Generate) -> None:
    long, short, empty = hf([Prompt("card " * 9_000), Prompt("card"), Prompt("")])
    assert long.failure == "prompt_too_long: 9001 tokens, the model reads 8191 and answers"
    assert short.failure is None
    assert empty.failure == "empty: the prompt has no token"
    narrow = HuggingFace(model=SMOLLM, max_model_len=32).open(Inputs())
    (cut,) = narrow([Prompt("card " * 19, temperature=0.0)])
    assert (cut.first.finish, cut.first.tokens) == ("length", 12)
    with pytest.raises(ModelError, match=r"max_model_len is 9000, but .* knows 8192 positions"):
        HuggingFace(model=SMOLLM, max_model_len=9_000).open(Inputs())


def adapter_at(folder: Path) -> Any:
    """A PEFT model with a LoRA adapter of random weights, saved in `folder`."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(models.resolve(SMOLLM), dtype=torch.float32)
    how = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, how)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.long
def test_an_adapter_answers_as_peft_does(tmp_path: Path) -> None:
    adapted = adapter_at(tmp_path / "adapter")
    tokenizer: Any = AutoTokenizer.from_pretrained(models.resolve(SMOLLM))
    ids = tokenizer("The capital of France is", return_tensors="pt")
    made = adapted.generate(**ids, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(made[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    prompt = Prompt("The capital of France is", temperature=0.0, max_tokens=12)
    (found,) = HuggingFace(model=str(tmp_path / "adapter")).open(Inputs())([prompt])
    assert found.first.text == expected
    # the same by the name of a training stage, whose model/ holds the adapter and a card
    (tmp_path / "model").mkdir()
    for file in (tmp_path / "adapter").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    Card(base=SMOLLM, peft="lora").write(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    staged = HuggingFace.model_validate({"model": "@sft"}).open(Inputs({"@sft": str(tmp_path)}))
    assert staged([prompt])[0].first.text == expected


PLAIN = [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}]
BEYOND = [
    {"rank_pattern": {"q_proj": 2}},
    {"alpha_pattern": {"v_proj": 64}},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"use_dora": True},
]


@pytest.mark.parametrize("how", [*PLAIN, *BEYOND], ids=str)
def test_an_adapter_is_served_beside_its_base_only_where_it_is_plain(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTH_CACHE", str(tmp_path / "cache"))
    base = model_folder(tmp_path / "base", "llama")
    given = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **how)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), given).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    weights = Weights.at(tmp_path / "adapter")
    folder, beside = weights.servable()
    if how in PLAIN:
        assert (weights.rank, folder, beside) == (4, base, tmp_path / "adapter")
        return
    assert (weights.rank, beside) == (0, None)
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(found, adapted(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"layer_replication": [[0, 2], [1, 3]]}, "replicated cannot be merged for vLLM; use `kind: hf`"),
        ({"lora_bias": True}, "cannot be merged for vLLM: .* base layer has no bias.; use `kind: hf`"),
        ({"alora_invocation_tokens": [5, 6]}, "cannot be merged for vLLM: aLoRA .*; use `kind: hf`"),
    ],
)
def test_an_adapter_that_no_merge_can_hold_is_refused_for_vllm(how: dict[str, Any], why: str, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", "llama")
    given = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **how)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), given)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=why):
        Weights.at(tmp_path / "adapter").servable()


def test_a_classifier_is_no_generator(tmp_path: Path) -> None:
    Card(objective="classification", labels=("a", "b")).write(tmp_path)
    with pytest.raises(ModelError, match="was trained for classification; a generator needs a language model"):
        Weights.at(tmp_path)
