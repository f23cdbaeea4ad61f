"""What can be known to fail before any worker is taken: rows, labels, lengths, the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from tilth.data.dataset import Dataset
from tilth.data.positions import positions
from tilth.data.schema import PACKED
from tilth.data.transform import Inputs
from tilth.errors import ModelError, StageError
from tilth.train.config import Packing
from tilth.train.fitting import fitted
from tilth.train.forgetting import Probe
from tilth.train.job import Job
from tilth.train.prompts import PromptTuning, PTuning
from tilth.train.reward import RewardTraining

if TYPE_CHECKING:
    from pathlib import Path

    from tilth.generate.choosing import Choosing
    from tilth.runs import Artifact, Out
    from tilth.train.base import Training
    from tilth.train.forgetting import Replay


#: the column that holds the classes of an objective
_LABELS = {"classification": "label", "token_classification": "tags"}


def prepare(stage: Training, out: Out, inputs: Mapping[str, Artifact]) -> Job:
    """The job of a stage, or StageError or ModelError with what does not hold."""
    dataset = Dataset.open(inputs[stage.data])
    where = Inputs.of(inputs, out.pins)
    folder = where.model(stage.model.name)
    objective = _refined(out.stage, stage.objective_of(dataset.row_type), dataset.row_type, folder)
    if dataset.row_type == PACKED:
        stage = _packed(stage, out.stage, inputs[stage.data], folder)
    if stage.model.peft and (why := stage.model.peft.refuses.get(objective)):
        raise StageError(f"{out.stage}: {stage.model.peft.kind} cannot be trained for {objective}: {why}")
    _fitting(stage, out.stage, objective)
    _answerable(stage, out.stage, dataset.row_type)
    _splits(stage, out.stage, dataset)
    if stage.tasks:
        stage.tasks.refuse(out.stage, _tasks(dataset.split(stage.split)))
    _general(stage, out.stage, inputs)
    labels = _labels(out.stage, dataset, _LABELS[objective]) if objective in _LABELS else stage.outputs
    if dataset.row_type == "chat":
        _conversations(stage, out.stage, dataset)
    if isinstance(stage, RewardTraining):
        _pairs(stage, out.stage, dataset, folder)
    tokenizer = _model(stage, out.stage, objective, folder)
    stage = fitted(stage, out.stage, folder)
    if dataset.row_type == "chat" and not tokenizer.chat_template:
        raise ModelError(
            f"{out.stage}: {stage.model.name} has no chat template; name a model that was made for conversations"
        )
    told = inputs[stage.data].detail
    conditioned = told.get("conditioned", stage.conditioned_on(dataset.row_type, objective))
    return Job(
        out.stage, stage, out.fingerprint, out.store, dataset.store, dataset.row_type, objective, labels, conditioned,
        where,
    )  # fmt: skip


def _packed(stage: Training, name: str, data: Artifact, folder: Path) -> Training:
    """The stage with the lengths of its packs; they must be of the model's own tokenizer."""
    from tilth.data.loading import load_tokenizer
    from tilth.train.tokens import tokenizer_digest

    told = data.detail
    if "tokenizer" not in told:
        raise StageError(f"{name}: the packs of {stage.data} went through a stage {data.kind}; pack after it")
    if told["tokenizer"] != tokenizer_digest(load_tokenizer(folder)):
        raise StageError(
            f"{name}: {stage.data} was packed with another tokenizer or chat template than that of "
            f"{stage.model.name}; name the same model in both stages"
        )
    if stage.split not in told["packed"]:
        raise StageError(f"{name}: {stage.data} packs {', '.join(told['packed'])}, not {stage.split}; see its splits")
    for field in ("loss_on", "max_length"):
        value = getattr(stage, field)
        # packs of before say nothing of loss_on
        if value not in (type(stage).model_fields[field].default, told.get(field, value)):
            what = f"{name}: {field} is {value}, but {stage.data} was packed with {told[field]}"
            raise StageError(f"{what}; leave it out here, or set it in the stage that packs")
    changes = {"packing": Packing(length=told["length"]), "max_length": told["max_length"]}
    stage = stage.model_copy(update=changes)
    for problem in stage.check():
        raise StageError(f"{name}: {problem.what}; {stage.data} is packed, train on what it was made from instead")
    return stage


def _fitting(stage: Training, name: str, objective: str) -> None:
    """What only some objectives can be trained with."""
    if objective != "language_model":
        what = f"{name}: the rows are learnt by {objective}"
        if stage.pack_length is not None:
            raise StageError(f"{what}, and only those of a language model are packed; set packing: null")
        if stage.probes or stage.forgets.replay:
            raise StageError(f"{what}, which reads no general text; leave out probes and replay")
        if stage.tasks and objective not in ("classification", "masked_lm"):
            raise StageError(f"{what}, which is not taken apart by task yet; leave out tasks")


def _answerable(stage: Training, name: str, row_type: str) -> None:
    if stage.validation and stage.validation.answers and row_type not in ("completion", "chat"):
        raise StageError(f"{name}: {row_type} rows hold no prompt with an answer; leave out validation.answers")


def _splits(stage: Training, name: str, dataset: Dataset) -> None:
    rows = dataset.splits()
    for split in filter(None, stage.splits):
        if not rows.get(split):
            have = ", ".join(f"{key} {count}" for key, count in rows.items() if count) or "no rows at all"
            raise StageError(f"{name}: split {split!r} of {stage.data} is empty; there are: {have}")


def _tasks(dataset: Dataset) -> Counter[str | None]:
    """Rows of each task."""
    found: Counter[str | None] = Counter()
    for table in dataset.tables(["task"]):
        found.update(table["task"].to_pylist())
    return found


def _general(stage: Training, name: str, inputs: Mapping[str, Artifact]) -> None:
    """Rows to probe and to replay must be there and have an answer to them."""
    wanted: list[Probe | Replay] = [*stage.probes, *filter(None, [stage.forgets.replay])]
    for part in wanted:
        dataset = Dataset.open(inputs[part.data])
        if dataset.row_type in ("preference", PACKED):
            what = f"{part.data} holds {dataset.row_type} rows, which are no general text"
            raise StageError(f"{name}: {what}; name another")
        if not dataset.splits().get(part.split):
            have = ", ".join(f"{key} {count}" for key, count in dataset.splits().items() if count) or "no rows at all"
            raise StageError(f"{name}: split {part.split!r} of {part.data} is empty; there are: {have}")
        if isinstance(part, Probe) and part.zero_shot:
            _task(name, part, part.zero_shot, dataset)


def _task(name: str, probe: Probe, choosing: Choosing, dataset: Dataset) -> None:
    """Every row of a zero-shot task must have choices, a question and a right answer."""
    labels = dataset.labels()
    for row in islice(dataset.split(probe.split).rows(), probe.rows):
        try:
            choices = choosing.offered(row, labels)
            choosing.question(row, choices)
            choosing.right(row, choices)
        except StageError as error:
            raise StageError(f"{name}: {probe.name} of {probe.data}: {error}") from error


def _refined(name: str, objective: str, row_type: str, folder: Path) -> str:
    """The objective for the kind of model: an encoder-decoder reads prompts and learns completions."""
    if objective == "feedback" and _config(folder).is_encoder_decoder:
        raise StageError(f"{name}: ppo needs a causal language model, not an encoder-decoder")
    if not _config(folder).is_encoder_decoder or objective not in (
        "language_model",
        "preference",
        "unpaired",
        "reward",
    ):
        return objective
    if objective == "reward":
        raise StageError(f"{name}: a reward model stands on a causal language model or an encoder, not on both in one")
    if row_type != "completion":
        raise StageError(f"{name}: an encoder-decoder learns completions after prompts, not {row_type} rows")
    return "seq2seq"


def _labels(name: str, dataset: Dataset, column: str) -> tuple[str, ...]:
    """The sorted labels of all splits; a row has one, or one for each of its words."""
    found: set[str] = set()
    for table in dataset.tables(["id", column]):
        for row_id, label in zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True):
            if not label:
                raise StageError(f"{name}: row {row_id} has no {column}; label it or drop it before classification")
            found.update(label if isinstance(label, list) else [label])
    if len(found) < 2:
        raise StageError(f"{name}: classification needs two labels or more, not {sorted(found)}")
    return tuple(sorted(found))


def _conversations(stage: Training, name: str, dataset: Dataset) -> None:
    for table in dataset.split(*filter(None, stage.splits)).tables(["id", "messages"]):
        for row_id, messages in zip(table["id"].to_pylist(), table["messages"].to_pylist(), strict=True):
            if len(messages or ()) < 2 or messages[-1]["role"] != "assistant":
                raise StageError(f"{name}: conversation {row_id} does not end with an answer of the assistant")


def _pairs(stage: RewardTraining, name: str, dataset: Dataset, folder: Path) -> None:
    """Margins and ties must be there, and a learnt prompt must leave the last token where the head looks for it."""
    if stage.margin or stage.ties:
        for row in dataset.split(*filter(None, stage.splits)).rows():
            stage.refuse(row)
    if isinstance(stage.model.peft, PromptTuning | PTuning) and _counts_places(_config(folder)):
        raise StageError(
            f"{name}: {stage.model.peft.kind} moves the positions of {stage.model.name}, which are absolute, so that "
            "the head would read padding; take lora or prefix_tuning"
        )


def _counts_places(config: Any) -> bool:
    """Whether a model reads its last token and knows every token by its place, not by distances as with RoPE."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "rope_parameters", None)


def _config(folder: Path) -> Any:
    """The configuration of the model below all adapters."""
    from transformers import AutoConfig

    from tilth.data.loading import Card, base_folder, refuse_unmergeable

    while (card := Card.read(folder)).peft is not None:
        refuse_unmergeable(folder, card)
        folder = base_folder(card)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _model(stage: Training, name: str, objective: str, folder: Path) -> Any:
    """Read the model's configuration and tokenizer, not its weights; the tokenizer."""
    from tilth.data.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    config = _config(folder)
    context = positions(config)
    if context and stage.max_length > context:
        raise StageError(
            f"{name}: max_length {stage.max_length} is beyond the {context} tokens of {stage.model.name}; "
            f"use {context} or less"
        )
    if objective == "masked_lm" and tokenizer.mask_token is None:
        raise ModelError(f"{name}: {stage.model.name} has no mask token; name an encoder such as BERT")
    if tokenizer.pad_token is None:
        raise ModelError(f"{name}: {stage.model.name} has neither a padding nor an end-of-text token")
    return tokenizer
