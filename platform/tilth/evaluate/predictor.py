"""Forward passes of a trained model over rows, batched by length; needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tilth.data.batching import in_batches
from tilth.data.positions import positions
from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.evaluate.heads import Classes, Encoded, Head, Likelihood, Seq2Seq, Spans, Tags

if TYPE_CHECKING:
    from torch import Tensor


class Predictor:
    """A trained model in a directory, ready to say what it makes of rows.

    dtype: a torch dtype's name, or "auto" for that of the weights. In bfloat16 what is said of a row depends on
    the batch that it is in: of SmolLM2-135M a question's nll moves by 0.2 %. `stride` and `keeps_end`, `nulls` and
    `probabilities`: see `heads.Likelihood`, `heads.Spans` and `heads.Classes`.
    """

    def __init__(
        self, folder: Path, *, batch_tokens: int = 2048, dtype: str = "float32", device: str = "auto",
        stride: int | None = None, nulls: bool = False, probabilities: bool = False, keeps_end: bool = False,
    ) -> None:  # fmt: skip
        from tilth.data.loading import load_trained

        self.loaded = load_trained(folder, device=device, dtype=dtype)
        self.model: Any = self.loaded.model
        self.tokenizer: Any = self.loaded.tokenizer
        self.batch_tokens = batch_tokens
        heads: dict[str, Head] = {
            "classification": Classes(self, probabilities),
            "language_model": Likelihood(self, stride, keeps_end),
            "seq2seq": Seq2Seq(self),
            "token_classification": Tags(self),
            "question_answering": Spans(self, nulls),
        }
        if self.loaded.objective == "reward":
            raise StageError(f"{folder} is a reward model: its own stage tells what it makes of held-out pairs")
        if self.loaded.objective not in heads:
            what = self.loaded.objective.replace("_", " ")
            raise StageError(
                f"{folder} was trained for {what}: a model of that kind says nothing of a row that could be scored; "
                "evaluate what is trained on it"
            )
        self.head = heads[self.loaded.objective]

    def predict(self, rows: list[Row]) -> list[Row]:
        """The rows with the model's word in `meta`, see `Predict`. StageError where a row has nothing to score."""
        windows = [self.head.encode(row) for row in rows]
        items = [item for parts in windows for item in parts]
        found = iter(in_batches(items, self.head.run, size=self.batch_tokens, length=lambda item: item.size))
        said = [
            self.head.said(row, parts, [next(found) for _ in parts]) for row, parts in zip(rows, windows, strict=True)
        ]
        return [
            {**row, "meta": {**row["meta"], **told, "truncated": any(item.truncated for item in parts)}}
            for row, told, parts in zip(rows, said, windows, strict=True)
        ]

    def cut(self, *texts: Any, **how: Any) -> tuple[Any, bool]:
        """What the tokenizer makes of texts, cut as in training so that its marks stay, and whether it was cut."""
        found = self.tokenizer(*texts, **how)
        if len(found["input_ids"]) <= self.max_length:
            return found, False
        return self.tokenizer(*texts, truncation=True, max_length=self.max_length, **how), True

    @property
    def max_length(self) -> int:
        """Tokens that the model can attend to."""
        known = [size for size in (self.loaded.max_length, positions(self.model.config)) if size]
        return int(min(known, default=self.tokenizer.model_max_length))

    def forward(self, batch: list[Encoded], **more: Tensor) -> Any:
        """The model's outputs for padded windows."""
        ids = self.padded([item.ids for item in batch], self.tokenizer.pad_token_id or 0)
        mask = self.padded([[1] * item.size for item in batch], 0)
        if batch[0].segments:
            more["token_type_ids"] = self.padded([item.segments for item in batch], 0)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask, **more)

    def padded(self, rows: list[list[int]], fill: int) -> Tensor:
        """Rows of unlike length as one tensor."""
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self.model.device)
