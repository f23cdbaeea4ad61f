"""Evaluation rows kept out of what is made: runs of words that they share, and their meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tilth.augment.base import Candidate, Filter, Verdict, VerdictsFunction
from tilth.config import EXECUTION, ModelRef
from tilth.data.embeddings import DEFAULT_MODEL, embedder
from tilth.data.schema import Row
from tilth.data.texts import refuse_encoded, text_or_none, whole_text
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.recipe import TextsRef

if TYPE_CHECKING:
    from tilth.data.dataset import Dataset
    from tilth.data.overlap import Overlap
    from tilth.data.transform import Fitted

_INDEX = ("keys", "owners", "sizes", "runs")


class Decontaminate(Filter):
    """Drops added rows that hold an evaluation row: of the stage's own data, and of the datasets in `against`.

    By words: any run of 13 that an evaluation row has too (GPT-3, Brown et al. 2020, arXiv:2005.14165, appendix C);
    of shorter rows the whole text, from 8 words on anywhere in the added row, below only where that is all it says.
    With `share` instead so much of an evaluation row's runs: ngram 8 and share 0.7 is PaLM's rule (Chowdhery et al.
    2022, arXiv:2204.02311). By meaning: a cosine of `max_cosine` with one of them.

    Datasets in `against` count with their test and validation rows, or with all rows where they have neither. Each
    worker holds 12 bytes for a run and 1.5 kB for a row's vector. Recorded: `meta.evaluation_cosine`, the highest.
    Reason: `contaminated`, naming the evaluation row.
    """

    against: tuple[TextsRef, ...] = Field((), description='Further datasets to be evaluated on, as "@stage".')
    splits: tuple[Literal["test", "validation", "train"], ...] = Field(
        ("test", "validation"),
        description="Splits of the stage's own data that are evaluated on; none: only `against`.",
    )
    ngram: int = Field(13, ge=3, le=64, description="Words in a run.")
    share: float = Field(0.0, ge=0.0, le=1.0, description="Share of an evaluation row's runs; 0: one is enough.")
    common: int = Field(10, ge=1, description="Runs that more evaluation rows share are wording, and do not count.")
    max_cosine: float | None = Field(0.95, gt=0.0, le=1.0, description="Cosine that is the same; none: not looked at.")
    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def check(self) -> list[Problem]:
        if self.splits or self.against:
            return []
        return [Problem("against", "names nothing and splits is empty: there are no evaluation rows", "name some")]

    def fit(self, rows: Iterable[Row], inputs: Inputs) -> Fitted:
        """The index of all evaluation rows. StageError where there are none: the gate would stop nothing."""
        import numpy as np

        from tilth.data.overlap import Index

        for ref in self.against:
            refuse_encoded(self._against(ref, inputs).row_type, ref, "decontaminate: against")
        named = list(self._evaluated(rows, inputs))
        if not named:
            raise StageError(
                f"decontaminate: the data has no {' or '.join(self.splits) or 'such'} rows and `against` names no "
                "dataset with rows, so nothing could be found; split the data, or name what is evaluated on"
            )
        names, texts = [name for name, _ in named], [text for _, text in named]
        index = Index.of(texts, self.ngram, self.common)
        return {"names": np.array(names), "vectors": self._vectors(texts, inputs)} | {
            name: getattr(index, name) for name in _INDEX
        }

    def _vectors(self, texts: list[str], inputs: Inputs) -> Any:
        import numpy as np

        from tilth.data.vectors import vectors_of

        if self.max_cosine is None:
            return np.empty((0, 1), np.float32)
        return vectors_of(texts, self.model, inputs, "decontaminate: embedding evaluation rows", self.batch_tokens)

    def _evaluated(self, rows: Iterable[Row], inputs: Inputs) -> Iterator[tuple[str, str]]:
        """How each evaluation row is named, and its text."""
        for row in rows:
            if row["split"] in self.splits:
                yield f"{row['id']} ({row['split']})", self._text(row)
        for ref in self.against:
            dataset = self._against(ref, inputs)
            held_out = dataset.split("test", "validation")
            for row in (held_out if len(held_out) else dataset).rows():
                yield f"{row['id']} ({row['split']} of {ref})", self._text(row)

    def _against(self, ref: str, inputs: Inputs) -> Dataset:
        from tilth.data.dataset import Dataset
        from tilth.storage import Store

        return Dataset.open(Store.at(inputs.urls[ref]))

    def _text(self, row: Row) -> str:
        return text_or_none(row, self.field) or whole_text(row)

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        from tilth.data.overlap import Index

        index = Index(*(fitted[name] for name in _INDEX))
        names = fitted["names"].tolist()

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            near = self._nearest(candidates, inputs, fitted)
            overlaps = [index.find(item.text, self.share) for item in candidates]
            return [self._verdict(names, *found) for found in zip(overlaps, near, strict=True)]

        return judge

    def _nearest(self, candidates: list[Candidate], inputs: Inputs, fitted: Fitted) -> list[tuple[int, float] | None]:
        """The evaluation row nearest in meaning to each candidate, and the cosine."""
        if self.max_cosine is None or not candidates:
            return [None] * len(candidates)
        vectors = embedder(inputs.model(self.model), self.batch_tokens).encode([item.text for item in candidates])
        cosines = vectors @ fitted["vectors"].T
        return [(int(row.argmax()), round(float(row.max()), 4)) for row in cosines]

    def _verdict(self, names: list[str], overlap: Overlap | None, near: tuple[int, float] | None) -> Verdict:
        meta = {} if near is None else {"evaluation_cosine": near[1]}
        if overlap is not None:
            what = f"{overlap.size} words" if overlap.size else "all words"
            much = f", {overlap.share:.0%} of its runs" if self.share else ""
            return Verdict(f"contaminated: {what} of {names[overlap.index]}{much}", meta)
        if near is not None and self.max_cosine is not None and near[1] >= self.max_cosine:
            return Verdict(f"contaminated: cosine {near[1]:.2f} with {names[near[0]]}", meta)
        return Verdict(meta=meta)
