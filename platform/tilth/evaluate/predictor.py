"""What a trained model makes of rows: one in a directory by forward passes here, or a generator's; needs no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tilth.data.loading import load_trained
from tilth.data.passes import Passes
from tilth.data.schema import Row
from tilth.data.transform import Inputs, RowsFunction
from tilth.errors import StageError
from tilth.evaluate.heads import Classes, Head, Seq2Seq, Spans, Tags, predicted
from tilth.evaluate.language_model import LanguageModel
from tilth.generate.base import LocalModel
from tilth.generate.engines.likelihood import PassLikelihood


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a model, each by the kinds that have it: see `LanguageModel`, `Spans` and `Classes`."""

    stride: int | None = None
    keeps_end: bool = False
    nulls: bool = False
    probabilities: bool = False


_HEADS: dict[str, Callable[[Passes, Wanted], Head]] = {
    "classification": lambda by, wanted: Classes(by, wanted.probabilities),
    "language_model": lambda by, wanted: LanguageModel(PassLikelihood(by), wanted.stride, wanted.keeps_end),
    "seq2seq": lambda by, wanted: Seq2Seq(by),
    "token_classification": lambda by, wanted: Tags(by),
    "question_answering": lambda by, wanted: Spans(by, wanted.nulls),
}


class Predictor:
    """A trained model in a directory, ready to say what it makes of rows.

    dtype: a torch dtype's name, or "auto" for that of the weights. In bfloat16 what is said of a row depends on
    the batch that it is in: of SmolLM2-135M a question's nll moves by 0.2 %.
    """

    def __init__(
        self, folder: Path, wanted: Wanted | None = None, *, batch_tokens: int = 2048, dtype: str = "float32"
    ) -> None:
        self.loaded = load_trained(folder, dtype=dtype)
        objective = self.loaded.objective
        if objective == "reward":
            raise StageError(f"{folder} is a reward model: its own stage tells what it makes of held-out pairs")
        if objective not in _HEADS:
            raise StageError(
                f"{folder} was trained for {objective.replace('_', ' ')}: a model of that kind says nothing of a row "
                "that could be scored; evaluate what is trained on it"
            )
        self.head = _HEADS[objective](Passes(self.loaded, batch_tokens), wanted or Wanted())

    def predict(self, rows: list[Row]) -> list[Row]:
        """The rows with the model's word in `meta`, see `Predict`. StageError where a row has nothing to score."""
        return predicted(self.head, rows)


def predictions(
    model: str | LocalModel, inputs: Inputs, wanted: Wanted, batch_tokens: int, dtype: str, *, causal: bool = False
) -> RowsFunction:
    """What a model says of rows; a generator's is a language model. With `causal`, StageError for any other."""
    if not isinstance(model, str):
        return partial(predicted, LanguageModel(model.load_likelihood(inputs), wanted.stride, wanted.keeps_end))
    predictor = Predictor(inputs.model(model), wanted, batch_tokens=batch_tokens, dtype=dtype)
    if causal and predictor.loaded.objective != "language_model":
        raise StageError(f"{model} is no causal language model; choices are ranked by their likelihood in one")
    return predictor.predict
