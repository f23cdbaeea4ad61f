"""Supervised fine-tuning: of a language model on texts, completions and conversations, or of a head on an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tilth.data.schema import PACKED
from tilth.errors import Problem, StageError
from tilth.train.base import Training
from tilth.train.config import Packing
from tilth.train.forgetting import Forgetting

if TYPE_CHECKING:
    from tilth.recipe import Stage
    from tilth.trials import Judge, Outcome, Packs, Trial

_HEADS = {"tagged": "token_classification", "qa": "question_answering"}


class Sft(Training):
    """Supervised fine-tuning by TRL, or of an encoder-decoder or a head by transformers.

    A completion is learnt after its prompt, of a conversation the assistant's last turn or all of its turns, a text
    whole. Labelled rows are classified, or, as a language model's texts, generated after their label. Of tagged rows
    every word is classified, of questions the answer is found in its context.
    """

    objective: Literal["auto", "language_model", "classification"] = Field(
        "auto", description="auto: classification for labelled rows, language_model for others."
    )

    loss_on: Literal["completion", "assistant", "all"] = Field(
        "completion",
        description="What is learnt of a row with a prompt: its completion, every turn of the assistant, or all of it.",
    )
    packing: Packing | None = Field(None, description="Lay several rows in one sequence; null: pad each alone.")

    forgetting: Forgetting = Field(Forgetting(), description="General ability: watched, and what helps to keep it.")

    @property
    def forgets(self) -> Forgetting:
        return self.forgetting

    @property
    def learns(self) -> str:
        return self.loss_on

    @property
    def pack_length(self) -> int | None:
        return None if self.packing is None else self.packing.length or self.max_length

    def check(self) -> list[Problem]:
        return [*super().check(), *self._packing_problems(), *self._forgetting_problems(), *self._task_problems()]

    def _forgetting_problems(self) -> Iterator[Problem]:
        if problem := self.forgetting.scale_problem(self.scale):
            yield problem
        if self.objective == "classification" and (self.forgetting.probes or self.forgetting.replay):
            what = "general text is probed and replayed in a language model, not in a classifier"
            yield Problem("forgetting", what, "leave out probes and replay")
        for number, probe in enumerate(self.forgetting.probes):
            if (probe.data, probe.split) == (self.data, self.split):
                yield Problem(f"forgetting.probes.{number}", "these rows are trained on", "probe another split")

    def _task_problems(self) -> Iterator[Problem]:
        if self.tasks and self.packing:
            yield Problem(
                "packing", "a pack holds rows of several tasks, which `tasks` takes apart", "set packing: null"
            )
        if self.tasks and self.forgetting.replay:
            what = "rows that are replayed are of no task"
            yield Problem("forgetting.replay", what, "join their dataset as a task by a stage of kind mix")

    def _packing_problems(self) -> Iterator[Problem]:
        if self.packing is None:
            return
        from tilth.train.prompts import Prompts  # most recipes pack nothing, and need not load it

        if self.objective == "classification":
            yield Problem("packing", "only a language model learns from packed rows", "set packing: null")
        if isinstance(self.model.peft, Prompts):
            what = f"{self.model.peft.kind} puts its tokens before a pack, not before each row in it"
            yield Problem("packing", what, "set packing: null, or take lora")
        if self.packing.length is not None and self.packing.length < self.max_length:
            what = f"packs of {self.packing.length} tokens cannot hold rows of {self.max_length}"
            yield Problem("packing.length", what, f"use {self.max_length} or more, or lower max_length")

    def objective_of(self, row_type: str) -> str:
        if row_type == PACKED:
            if self.objective == "classification" or self.packing or self.forgetting.replay:
                raise StageError(
                    "sft: rows of a stage pack are a language model's, and lie in their packs already; leave out "
                    "objective, packing and replay (general rows are joined before they are packed, by a stage mix)"
                )
            return "language_model"
        if row_type == "preference":
            raise StageError("sft needs text, labelled, completion or chat rows, not preference rows; use stage dpo")
        if (fixed := _HEADS.get(row_type)) and self.objective in ("auto", fixed):
            return fixed
        if fixed:
            raise StageError(f"sft: {row_type} rows are for {fixed}, not for {self.objective}; use objective: auto")
        if self.objective == "classification" and row_type != "labelled":
            raise StageError(f"sft: classification needs labelled rows, not {row_type} rows")
        if self.objective != "auto":
            return self.objective
        return "classification" if row_type == "labelled" else "language_model"

    @classmethod
    def packs(cls, stages: Mapping[str, Stage], places: int, room: float | None = None) -> Packs:
        from tilth.train.packs.fit import packs

        return packs({name: stage for name, stage in stages.items() if isinstance(stage, Sft)}, places, room)

    @classmethod
    def pack(cls, trials: Iterable[Trial], places: int, judge: Judge) -> Iterator[Outcome]:
        from tilth.train.packs.over_workers import pack

        return pack(trials, places, judge)

    def conditioned_on(self, row_type: str, objective: str) -> bool:
        return row_type == "labelled" and objective == "language_model"
