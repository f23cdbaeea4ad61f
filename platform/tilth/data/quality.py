"""What a stage says at its end of all that it made: how diverse it is, and how it differs from the originals."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tilth import ui
from tilth.config import EXECUTION, Component, ModelRef, Ref, identity
from tilth.data.embeddings import DEFAULT_MODEL
from tilth.data.schema import PAYLOADS, Row, from_table, row_seed
from tilth.data.texts import text_or_none, whole_text
from tilth.data.transform import Inputs
from tilth.errors import Problem, StageError
from tilth.recipe import MEASURED

if TYPE_CHECKING:
    import pyarrow as pa

    from tilth.data.dataset import Dataset
    from tilth.runs import Artifact

_FACETS = ("labels", "lengths", "topics", "sentiment", "gender", "age", "religion", "ethnicity", "orientation")
FACETS = (*_FACETS, "disability", "identity")


class BiasReport(Component):
    """Distributions of labels, lengths, topics, sentiment and identity terms, made rows beside originals.

    See `tilth.data.bias` for the figures and what they can tell; `identity` stands for all six axes of identity.
    """

    field: str = Field("text", description="The column that is read; rows without it are read whole.")
    topics: int = Field(12, ge=2, le=64, description="Clusters of words.")
    sample: int = Field(20_000, ge=100, description="Rows of each side that are looked at, drawn by id.")
    seed: int = Field(0, ge=0, description="Seed of the draw and the clusters.")
    max_divergence: Mapping[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        json_schema_extra=EXECUTION,
        description="Jensen-Shannon bits above which the stage fails, by facet or `identity`.",
    )

    def check(self) -> list[Problem]:
        known = ", ".join(FACETS)
        return [
            Problem(f"max_divergence.{name}", f"there is no facet {name!r}", f"use one of: {known}")
            for name in self.max_divergence
            if name not in FACETS
        ]

    def measure(self, originals: Iterable[Row], synthetic: Iterable[Row]) -> dict[str, Any]:
        """The figures, as JSON-ready data for an artifact's `detail["bias"]`, with the lines of `exceeded`."""
        from tilth.data import bias

        found = bias.report(originals, synthetic, self.field, topics=self.topics, sample=self.sample, seed=self.seed)
        return self.judged(found)

    def judged(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The figures with the limits of this config, and a line for each that is exceeded."""
        from tilth.data import bias

        limits = dict(self.max_divergence)
        return {**found, "limits": limits, "exceeded": bias.exceeded(found, limits)}

    def refuse(self, measured: Mapping[str, Any], where: str) -> None:
        """StageError where a facet diverges by more than its limit; `where` the figures lie."""
        if measured["exceeded"]:
            lines = "\n".join(measured["exceeded"])
            raise StageError(
                f"{lines}\nBalance what is made (a step `balance`, other seeds), or raise quality.bias.max_divergence: "
                f"the rows are kept, and nothing is made again. All figures are in {where}"
            )


class DiversityReport(Component):
    """Distinct n-grams, self-BLEU, Vendi score, coverage of the originals, and the map of verbs and nouns.

    Each figure is of at most `sample` rows, so that figures of runs of unlike size can be compared.
    """

    field: str = Field("text", description="The column that is read; rows without it are read whole.")
    sample: int = Field(1000, ge=10, description="Rows of each side that are looked at, drawn by id.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")
    model: ModelRef = Field(DEFAULT_MODEL, description="Sentence embedding model: hub name or directory.")
    near: float = Field(0.7, gt=0, le=1, description="Cosine at which an original counts as covered.")
    verbs: bool = Field(True, description="Parse English sentences for the map of verbs and nouns.")
    batch_tokens: int | None = Field(
        None, ge=256, json_schema_extra=EXECUTION, description="Padded tokens run at once; none: fit for the device."
    )

    def measure(self, originals: Iterable[Row], synthetic: Iterable[Row], inputs: Inputs) -> dict[str, Any]:
        """The figures of both sides, as JSON-ready data for an artifact's `detail["diversity"]`; {} without made rows.

        originals and synthetic: rows, distinct_1 to distinct_3, self_bleu, vendi; coverage {covered, mean_distance,
        novelty_distance, near}; verb_nouns, see `diversity.verb_map`, with `parsed` texts that had such a pair.
        """
        from tilth.data import diversity
        from tilth.data.vectors import vectors_of

        sides = {"originals": self._drawn(originals), "synthetic": self._drawn(synthetic)}
        if not sides["synthetic"]:
            return {}
        vectors = {
            name: vectors_of(texts, self.model, inputs, f"diversity: embedding {name}", self.batch_tokens)
            for name, texts in sides.items()
        }
        found: dict[str, Any] = {
            name: {**self._figures(texts), "vendi": round(diversity.vendi_score(vectors[name]), 3)}
            for name, texts in sides.items()
        }
        covered = diversity.coverage(vectors["originals"], vectors["synthetic"], self.near)
        found["coverage"] = {**{key: round(value, 4) for key, value in covered.items()}, "near": self.near}
        if self.verbs:
            pairs = diversity.verb_nouns(sides["synthetic"])
            found["verb_nouns"] = {"parsed": pairs.total(), "verbs": diversity.verb_map(pairs)}
        return found

    def check(self) -> list[Problem]:
        if not isinstance(self.model, Ref):
            return []
        what = f"{self.model} is a stage, and figures are no part of what a stage depends on"
        return [Problem("model", what, "name a hub model or a directory")]

    def _drawn(self, rows: Iterable[Row]) -> list[str]:
        drawn = heapq.nsmallest(self.sample, rows, key=lambda row: row_seed(self.seed, row["id"], "diversity"))
        return [text_or_none(row, self.field) or whole_text(row) for row in drawn]

    def _figures(self, texts: list[str]) -> dict[str, Any]:
        from tilth.data import diversity

        distinct = {f"distinct_{n}": round(diversity.distinct_n(texts, n), 4) for n in (1, 2, 3)}
        return {"rows": len(texts), **distinct, "self_bleu": round(diversity.self_bleu(texts, seed=self.seed), 2)}


class Quality(Component):
    """Diversity and bias of what a stage made, beside the originals, measured once all rows are there.

    Originals are the training rows of the given data that nothing made; made rows are all those of the result,
    whichever stage made them. No part of a stage's identity: other figures of finished rows are taken without making
    a row again, and rows that break a limit stay where they are.
    """

    diversity: DiversityReport | None = Field(default_factory=DiversityReport, description="None: not measured.")
    bias: BiasReport | None = Field(default_factory=BiasReport, description="None: not measured.")

    def refuse_limits(self, row_type: str) -> None:
        """StageError, before anything is made, for a limit on what rows of this type do not have."""
        if self.bias is not None and "labels" in self.bias.max_divergence and "label" not in PAYLOADS[row_type]:
            raise StageError(f"quality.bias.max_divergence.labels: {row_type} rows have no labels; leave it out")

    def hold(self, given: Dataset, result: Dataset, inputs: Inputs) -> None:
        """Measure, unless that was done; StageError where a limit is exceeded. The figures stay beside the result."""
        store, asked = result.store, identity(self, str)
        before = store.read_json(MEASURED)
        found = (
            before if before and before["asked"] == asked else {"asked": asked, **self.measure(given, result, inputs)}
        )
        if self.bias is not None:
            found = {**found, "bias": self.bias.judged(found["bias"])}
        if found != before:
            store.write_json(MEASURED, found)
            ui.reporter().say(f"quality: {'; '.join(_said(found)) or 'no row was made that could be measured'}")
        if self.bias is not None:
            self.bias.refuse(found["bias"], store.at_url(MEASURED))

    def measure(self, given: Dataset, result: Dataset, inputs: Inputs) -> dict[str, Any]:
        """`diversity` and `bias`, see both reports, each with the rows that were there to draw from, as `of`."""
        found: dict[str, Any] = {}
        if self.diversity is not None:
            old, new, of = _sides(given, result, self.diversity.sample, self.diversity.seed)
            found["diversity"] = {**self.diversity.measure(old, new, inputs), "of": of}
        if self.bias is not None:
            old, new, of = _sides(given, result, self.bias.sample, self.bias.seed)
            found["bias"] = {**self.bias.measure(old, new), "of": of}
        return found


def judge_made(
    artifact: Artifact, inputs: Mapping[str, Artifact], data: str, max_quarantined: float, quality: Quality | None
) -> None:
    """QuarantineError or StageError where made rows break a limit that is no part of their stage's identity.

    `data` names the given rows among `inputs`.
    """
    from tilth.data.dataset import Dataset
    from tilth.data.finish import check_quarantine

    check_quarantine(artifact.store, artifact.counts, max_quarantined)
    if quality is not None:
        quality.hold(Dataset.open(inputs[data]), Dataset.open(artifact), Inputs.of(inputs))


def _said(found: Mapping[str, Any]) -> Iterator[str]:
    """The figures in a line, those of the originals in brackets."""
    measured, held = found.get("diversity", {}), found.get("bias", {})
    if "synthetic" in measured:
        new, old = measured["synthetic"], measured["originals"]
        for key, name in (("distinct_2", "distinct-2"), ("self_bleu", "self-BLEU"), ("vendi", "Vendi score")):
            yield f"{name} {new[key]:.4g} ({old[key]:.4g})"
        yield f"{measured['coverage']['covered']:.0%} of the originals covered"
    if facets := held.get("facets"):
        name = max(facets, key=lambda key: facets[key]["js_bits"] - facets[key]["noise_bits"])
        yield f"farthest from the originals in {name}: {facets[name]['js_bits']:.3f} bits"


def _sides(given: Dataset, result: Dataset, size: int, seed: int) -> tuple[list[Row], list[Row], dict[str, int]]:
    """Originals and made rows, at most `size` of each, and how many there are; all given rows if none is original."""
    old, originals = _drawn(given, _unmade, size, seed)
    if not originals:
        old, originals = _drawn(given, lambda table: table, size, seed)
    new, made = _drawn(result, _made, size, seed)
    return old, new, {"originals": originals, "synthetic": made}


def _made(table: pa.Table) -> pa.Table:
    return table.filter(table["via"].is_valid())


def _unmade(table: pa.Table) -> pa.Table:
    return table.filter(table["via"].is_null())


def _drawn(dataset: Dataset, wanted: Callable[[pa.Table], pa.Table], size: int, seed: int) -> tuple[list[Row], int]:
    """The training rows that are `wanted` whose ids hash lowest, and of how many; of all others only the id is read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    train = dataset.split("train")

    def ids() -> Iterator[list[str]]:
        return (wanted(table)["id"].to_pylist() for table in train.tables(["id", "via"]))

    total = sum(map(len, ids()))
    drawn = heapq.nsmallest(size, chain.from_iterable(ids()), key=lambda row_id: row_seed(seed, row_id, "quality"))
    if not drawn:
        return [], total
    return from_table(train.scan().to_table(filter=pc.field("id").isin(pa.array(drawn, pa.string())))), total
