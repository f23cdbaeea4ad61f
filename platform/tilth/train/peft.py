"""Parameter-efficient fine-tuning: adapters as kinds of one family, built by the library PEFT.

A kind says what PEFT's configuration of it is, which objectives it can be trained for, and which settings it cannot
be trained with. Those that learn prompts are in `tilth.train.prompts`, bottleneck adapters in `tilth.train.bottleneck`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.config import Component
from tilth.errors import Problem

if TYPE_CHECKING:
    from tilth.train.config import Scale

#: PEFT's name of each objective's task; a masked language model has none
TASKS = {
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "language_model": "CAUSAL_LM",
    "preference": "CAUSAL_LM",
    "unpaired": "CAUSAL_LM",
    "feedback": "CAUSAL_LM",
    "reward": "SEQ_CLS",
    "seq2seq": "SEQ_2_SEQ_LM",
    "masked_lm": None,
}


#: what PEFT rescales of Llama and its kin, BERT and RoBERTa, GPT-2 and T5 unless told otherwise, and which at the input
IA3_TARGETS = r"\.(k_proj|v_proj|key|value|c_attn|(Self|EncDec)Attention\.[kv])$"
IA3_INNER = r"\.(down_proj|output\.dense|mlp\.c_proj|DenseReluDense\.wo)$"


class Peft(Component, family="peft"):
    """An adapter. A kind says how to build PEFT's configuration of it."""

    #: objectives that it cannot be trained for, and why
    refuses: ClassVar[dict[str, str]] = {}
    #: whether the weights below are loaded in 4 bits
    quantized: ClassVar[bool] = False

    @property
    def moves_base(self) -> bool:
        """Whether the weights below are others as soon as it is there."""
        return False

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        """PEFT's configuration.

        `objective` is a key of TASKS; `head` names modules that are new in the model, which are trained whole and
        saved with the adapter; `tokenizer` is the model's directory.
        """
        raise TypeError(f"{type(self).__name__} must define build()")

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """About how many it adds to a model whose tensors have these shapes, for `tilth plan`; by default few."""
        return 0

    def unfit(self, scale: Scale) -> list[Problem]:
        """What in the way of training it cannot be trained with."""
        return []


def shared(objective: str, head: tuple[str, ...]) -> dict[str, Any]:
    """What every configuration of PEFT takes."""
    return {"task_type": TASKS[objective], "modules_to_save": list(head) or None}


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The modules that have a matrix, with its shape."""
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}


class Lora(Peft):
    """Low-rank updates beside frozen weight matrices (Hu et al. 2022, arXiv:2106.09685).

    variant: dora learns magnitude and direction of a weight apart (Liu et al. 2024, arXiv:2402.09353). scaling:
    rank_stabilized divides by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732). init: pissa starts at the
    principal singular vectors of the weights (Meng et al. 2024, arXiv:2404.02948); what is saved is a plain adapter
    of twice the rank on the model as it was.
    """

    rank: int = Field(8, ge=1, description="Rank of the update.")
    alpha: int = Field(16, ge=1, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update.")
    targets: str | tuple[str, ...] = Field(
        "all-linear",
        min_length=1,
        description="Modules: all-linear, a regular expression of whole names, or a list of their last parts.",
    )
    variant: Literal["plain", "dora"] = Field("plain", description="dora: learn magnitudes apart from directions.")
    scaling: Literal["rank", "rank_stabilized"] = Field("rank", description="Divide alpha by rank, or by its root.")
    init: Literal["zero", "gaussian", "pissa"] = Field(
        "zero", description="zero: a random and a zero factor; gaussian: the same with a normal one; pissa."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="Other ranks, by the end of a module's name or a regular expression of it."
    )
    alpha_pattern: dict[str, int] = Field(default_factory=dict, description="Other alphas, in the same way.")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases that are trained too.")

    @property
    def moves_base(self) -> bool:
        return self.init == "pissa"

    @property
    def plain(self) -> bool:
        """Whether it is two matrices for each module, of one rank and one scale for all, and nothing else."""
        return (self.variant, self.bias) == ("plain", "none") and not (self.rank_pattern or self.alpha_pattern)

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            use_dora=self.variant == "dora",
            use_rslora=self.scaling == "rank_stabilized",
            init_lora_weights={"zero": True, "gaussian": "gaussian", "pissa": "pissa"}[self.init],
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            bias=self.bias,
            **shared(objective, head),
        )

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """A matrix of m x n gets two of rank x n and m x rank."""
        matrices = _matrices(shapes)
        return sum(self.rank * sum(shape) for name, shape in matrices.items() if self._adapts(name))

    def _adapts(self, name: str) -> bool:
        """Whether a matrix of that name is among the targets; embeddings and heads are not linear layers to adapt."""
        if self.targets == "all-linear":
            return not re.search(r"embed|wte|wpe|shared|lm_head|relative_attention_bias", name)
        if isinstance(self.targets, str):
            return re.fullmatch(rf"(.*\.)?(?:{self.targets})", name) is not None
        return name.endswith(self.targets)

    def check(self) -> list[Problem]:
        if self.init == "pissa" and self.variant == "dora":
            what = "dora cannot start from pissa: what is learnt is then no plain update of the weights"
            return [Problem("variant", what, "use init: zero, or variant: plain")]
        return []


class QLora(Lora):
    """LoRA beside weights that are frozen in 4 bits, NormalFloat by bitsandbytes (arXiv:2305.14314): on GPUs only."""

    quantized: ClassVar[bool] = True

    def check(self) -> list[Problem]:
        if self.init == "pissa":
            return [Problem("init", "pissa changes the frozen weights, which are quantized", "use init: zero")]
        return super().check()

    def unfit(self, scale: Scale) -> list[Problem]:
        if not scale.gpus:
            mend = "set scale.gpus: 1, or take lora"
            return [Problem("model.peft", "4-bit weights (qlora) need GPUs, and scale.gpus is 0", mend)]
        if scale.zero and scale.zero.stage == 3:
            what = "4-bit weights (qlora) cannot be partitioned, as ZeRO stage 3 does"
            return [Problem("scale.deepspeed.stage", what, "use stage 2")]
        return []


class Ia3(Peft):
    """Learned vectors that rescale keys, values and the inner activations of feed-forward layers.

    (IA)³, Liu et al. 2022, arXiv:2205.05638. Without targets PEFT's own choice for the architecture is taken.
    """

    targets: tuple[str, ...] = Field((), description="Last parts of the names of modules that are rescaled.")
    feed_forward: tuple[str, ...] = Field((), description="Those of the targets that are rescaled at their input.")

    def build(self, objective: str, head: tuple[str, ...] = (), tokenizer: str = "") -> Any:
        from peft import IA3Config

        return IA3Config(
            target_modules=list(self.targets) or None,
            feedforward_modules=list(self.feed_forward) or None,
            **shared(objective, head),
        )

    def parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """A number for each output of a rescaled matrix, of a feed-forward layer for each of its inputs."""
        matrices = _matrices(shapes)
        if self.targets:
            inner, scaled = self.feed_forward, self.targets
            kinds = {name: (name.endswith(scaled), name.endswith(inner)) for name in matrices}
        else:
            kinds = {name: (bool(re.search(IA3_TARGETS, name)), bool(re.search(IA3_INNER, name))) for name in matrices}
        return sum(matrices[name][1 if inside else 0] for name, (hit, inside) in kinds.items() if hit or inside)

    def check(self) -> list[Problem]:
        if missing := sorted(set(self.feed_forward) - set(self.targets)):
            return [Problem("feed_forward", f"{', '.join(missing)} is not among the targets", "name it in both")]
        return []
