"""Stage `pack`: rows as tokens, several in one sequence, made on many CPUs before any trainer is there. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import EXECUTION, DatasetRef, DatasetRefStr, ModelRef, Ref
from tilth.data.schema import PACKED
from tilth.data.transform import Inputs, Resources, RowsFunction, Transform
from tilth.errors import Problem, StageError
from tilth.recipe import Stage

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.data.transform import Fitted
    from tilth.runs import Artifact, Out

TAKES = ("text", "labelled", "completion", "chat")


class Tokens(Transform):
    """A row's text as `input_ids` and `labels`; `pack` is the id of the first row of its sequence.

    Of `packed` splits the rows of a unit lie in the order of their packs. A row of which nothing would be learnt is
    dropped, with the reason `no_loss`.
    """

    sees_parents: ClassVar[bool] = False

    model: ModelRef = Field(description="Whose tokenizer.")
    row_type: str = Field(description="What the rows are.")
    loss_on: str = Field(description="Which of their tokens are learnt.")
    max_length: int = Field(description="Tokens of a row.")
    length: int = Field(description="Tokens of a pack.")
    packed: tuple[str, ...] = Field(description="Splits whose rows are laid together.")

    def load(self, inputs: Inputs, fitted: Fitted) -> RowsFunction:
        from tilth.data.loading import load_tokenizer
        from tilth.train.tokens import Encoder, packed

        folder = inputs.model(self.model)
        encode = Encoder(load_tokenizer(folder), self.row_type, self.loss_on, self.max_length)
        return lambda rows: packed(rows, encode, self.length, self.packed)


class Pack(Stage):
    """Every row as the tokens that `sft` would make of it, laid in packs by best-fit decreasing (arXiv:2404.10830).

    `sft` on such rows needs no tokenizing on its GPU nodes: it maps the packs into memory and reads them as they are.
    Their `loss_on` and `max_length` are set here; an `sft` that sets others is refused.
    Rows of one unit share packs, so that larger units leave less padding. Lineage stays with every row.
    """

    produces: ClassVar[str] = "dataset"

    data: DatasetRef = Field(description="The dataset: text, labelled, completion or chat rows.")
    model: ModelRef = Field(description="The model that will learn them, for its tokenizer.")
    loss_on: Literal["completion", "assistant", "all"] = Field(
        "completion",
        description="What is learnt of a row with a prompt: its completion, every turn of the assistant, or all of it.",
    )
    max_length: int = Field(512, ge=2, description="Tokens of a row; what goes beyond is cut off.")
    length: int | None = Field(None, ge=2, description="Tokens of a pack; default: max_length.")
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        ("train",), min_length=1, description="Splits that are packed; of others every row is a sequence of its own."
    )
    unit_rows: int = Field(1024, ge=1, description="Rows committed together, which share packs.")
    max_quarantined: float = Field(
        0.01, ge=0, le=1, json_schema_extra=EXECUTION, description="Share of rows in quarantine at which it fails."
    )
    resources: Resources = Field(default_factory=Resources, description="Workers.", json_schema_extra=EXECUTION)

    @property
    def room(self) -> int:
        """Tokens of a pack."""
        return self.length or self.max_length

    @property
    def encoded(self) -> Ref:
        return DatasetRefStr(self.data)

    def check(self) -> list[Problem]:
        if self.length is None or self.length >= self.max_length:
            return []
        what = f"packs of {self.length} tokens cannot hold rows of {self.max_length}"
        return [Problem("length", what, f"use {self.max_length} or more, or lower max_length")]

    def estimate(self, rows: Mapping[str, int]) -> dict[str, Any]:
        total = sum(rows.values())
        return {"rows": total, "tokens": total * self.max_length}

    def run(self, out: Out, inputs: Mapping[str, Artifact]) -> Artifact:
        from tilth.data.dataset import Dataset
        from tilth.data.finish import finished
        from tilth.data.loading import load_tokenizer
        from tilth.train.tokens import fill, tokenizer_digest

        source, context = Dataset.open(inputs[self.data]), Inputs.of(inputs, out.pins)
        if source.row_type not in TAKES:
            raise StageError(f"{out.stage}: {source.row_type} rows are not packed; {', '.join(TAKES)} rows are")
        tokenizer = load_tokenizer(context.model(self.model))
        if source.row_type == "chat" and not tokenizer.chat_template:
            raise StageError(f"{out.stage}: {self.model} has no chat template; name a model made for conversations")
        result = finished(out.store) or self._pack(out, source, context)
        detail = {
            "row_type": PACKED, "tokenizer": tokenizer_digest(tokenizer), "loss_on": self.loss_on,
            "max_length": self.max_length, "length": self.room, "packed": list(self.splits),
            "conditioned": source.row_type == "labelled",
        }  # fmt: skip
        artifact = out.artifact(fill(result.split(*self.splits), self.room), result.counts, detail)
        self.judge(artifact, inputs)
        return artifact

    def judge(self, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
        from tilth.data.finish import check_quarantine

        check_quarantine(artifact.store, artifact.counts, self.max_quarantined)

    def _pack(self, out: Out, source: Dataset, context: Inputs) -> Dataset:
        from tilth.data.chain import Chain, cut
        from tilth.data.engine import run_units
        from tilth.data.finish import finish
        from tilth.data.ledger import Ledger

        step = Tokens(
            model=self.model, row_type=source.row_type, loss_on=self.loss_on, max_length=self.max_length,
            length=self.room, packed=self.splits,
        )  # fmt: skip
        ledger = Ledger(out.store, out.fingerprint, cut(source, self.unit_rows))
        run_units(Chain(source.store, PACKED, (step,), context), ledger, self.resources, out.stage)
        return finish(ledger, PACKED)
