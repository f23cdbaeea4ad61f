"""Loading a trained model: the directory that a training stage leaves, or one as the hub publishes it.

`tilth.json` beside the weights is the model's card: what it was trained for and on top of what.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilth import models
from tilth.errors import ModelError
from tilth.storage import Store

CARD = "tilth.json"
#: where the further members of an ensemble lie in a model's directory, each a model by itself
MEMBERS = "members"
_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "reward": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "language_model": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "masked_lm": "AutoModelForMaskedLM",
}
#: adapters that are no change of weights: nothing can be merged into what is below them. Our kinds, and in small
#: letters PEFT's names of these and of others
UNMERGEABLE = {
    "prefix_tuning", "prompt_tuning", "p_tuning", "bottleneck", "multitask_prompt_tuning", "adaption_prompt", "cpt"
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a model directory holds. `base` is a hub name, a directory, or the URI of another stage's `model/`."""

    objective: str = "language_model"
    labels: tuple[str, ...] = ()
    base: str = ""
    #: the state of the base that the adapter was trained on; empty where it is not known, or a stage's
    base_identity: str = field(default="", kw_only=True)
    #: the kind of adapter in the directory, None where it holds all weights
    peft: str | None = None
    max_length: int | None = None
    #: whether texts were trained with `label_prefix` before them
    conditioned: bool = False
    #: of a reward model: what is taken off a score for each character of the answer beyond their mean number
    length_slope: float = 0.0
    length_mean: float = 0.0
    #: of an ensemble of reward models: what each member gives an answer on average, for scores of pairs have no zero
    member_means: tuple[float, ...] = ()

    @staticmethod
    def read(folder: Path) -> Card:
        """The card in `folder`; of a directory without one, that of a plain language model or encoder-decoder."""
        try:
            data = json.loads((folder / CARD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Card("seq2seq") if _encodes(folder) else Card()
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return Card(**{**data, **lists})

    def write(self, folder: Path) -> None:
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


def _settings(folder: Path) -> dict[str, Any]:
    """What transformers wrote of a model; nothing where it wrote nothing."""
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _encodes(folder: Path) -> bool:
    """Whether a model as the hub publishes it is an encoder-decoder."""
    return bool(_settings(folder).get("is_encoder_decoder"))


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer, on `model.device`, ready for a forward pass."""

    model: Any
    tokenizer: Any
    objective: str
    labels: tuple[str, ...]
    #: tokens that it was trained to read; None where only the model's own limit is known
    max_length: int | None = None
    conditioned: bool = False


def load_trained(folder: Path, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """The model of a training stage (adapter or all weights), or a plain causal language model.

    `dtype` is a torch dtype's name; auto: that of the weights. ModelError where the directory, or the base that an
    adapter stands on, cannot be loaded.
    """
    import torch

    card = Card.read(folder)
    if card.peft is None:
        model = load_whole(folder, card.objective, card.labels, dtype)
    else:
        below = load_pretrained(base_folder(card), card.objective, card.labels, dtype)
        model = adapted(below.model, folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(folder)
    return Loaded(model.to(device).eval(), tokenizer, card.objective, card.labels, card.max_length, card.conditioned)


def load_whole(folder: Path, objective: str, labels: tuple[str, ...] = (), dtype: str = "auto") -> Any:
    """A model all of whose weights lie in `folder`; ModelError for one that foresees nothing, as an encoder."""
    if objective == "language_model" and (masked := _masked(folder)):
        raise ModelError(
            f"{folder} is a {masked}, which sees the very tokens that it would have to foresee; name a causal language "
            "model, or one that was trained for another task"
        )
    found = load_pretrained(folder, objective, labels, dtype)
    if found.new and objective in ("language_model", "seq2seq"):
        raise ModelError(
            f"{folder} holds no weights of {', '.join(found.new[:3])}, which it needs to foresee a text: they would be "
            "drawn at random; name a language model, or train this one for a task first"
        )
    return found.model


def _masked(folder: Path) -> str | None:
    """The architecture in `folder` where it is that of a masked language model."""
    names = _settings(folder).get("architectures") or [""]
    return str(names[0]) if str(names[0]).endswith("ForMaskedLM") else None


@dataclass(frozen=True)
class Pretrained:
    """A transformers model, and the names of its modules that the weights in its directory did not fill."""

    model: Any
    new: tuple[str, ...] = ()


def adapted(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder` beside its weights, as PEFT loads it; bottleneck adapters too."""
    from peft import PeftModel

    import tilth.data.bottleneck  # noqa: F401 - makes bottleneck adapters known to PEFT

    return PeftModel.from_pretrained(model, folder)


def load_pretrained(
    folder: Path, objective: str, labels: tuple[str, ...] = (), dtype: str = "auto", *, quantized: bool = False
) -> Pretrained:
    """A transformers model for an objective; an adapter in `folder` is merged into the base below it.

    `labels` sets the width and names of a classification head. `dtype` is a torch dtype's name. `quantized`: its
    linear layers in 4 bits, NormalFloat with double quantization. ModelError where the weights do not fit.
    """
    import transformers

    card = Card.read(folder)
    if card.peft is not None:
        refuse_unmergeable(folder, card)
        below = load_pretrained(base_folder(card), objective, labels, dtype)
        # PEFT froze what it stood on; merged, it is a model as any other
        return Pretrained(_merged(below.model, folder).requires_grad_(True), below.new)
    head: dict[str, Any] = {}
    if labels:
        head = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if quantized:
        head["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    auto = getattr(transformers, _CLASSES[objective])
    try:
        model, info = auto.from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **head,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded for {objective}: {error}") from error
    return Pretrained(
        model, _new_modules(model, {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    )


def _merged(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder` merged into its weights, whatever head it stood under when trained."""
    from peft import PeftConfig, PeftModel

    settings = PeftConfig.from_pretrained(folder)
    settings.task_type = None
    # a head of other labels is trained anew, as it is on a whole model
    how = {"config": settings, "ignore_mismatched_sizes": True}
    return PeftModel.from_pretrained(model, folder, **how).merge_and_unload()


def refuse_unmergeable(folder: Path, card: Card) -> None:
    """ModelError for an adapter on which nothing can stand."""
    if card.peft in UNMERGEABLE:
        raise ModelError(
            f"{folder}: {card.peft} is no change of weights, so no other training can stand on it; train both on its "
            "base, or take lora or ia3, which are merged"
        )


def _new_modules(model: Any, unfilled: set[str]) -> tuple[str, ...]:
    """Innermost modules with weights of their own among `unfilled`; a matrix tied to the embeddings is not new."""
    tied = model.get_input_embeddings().weight
    names = {key.rpartition(".")[0] for key in unfilled if model.get_parameter_or_buffer(key) is not tied}
    return tuple(sorted(name for name in names if not list(model.get_submodule(name).children())))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, with a padding token: its own, else the end of text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_folder(card: Card) -> Path:
    """The local directory of the model that an adapter stands on, in the state that it was trained on."""
    if "://" in card.base:
        parent, _, name = card.base.rpartition("/")
        return Store.at(parent).fetch(name)
    known = card.base_identity
    folder: Path = models.planned(card.base, known) if known else models.resolve(card.base)
    return folder
