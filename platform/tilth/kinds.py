"""Every built-in kind, one line each: what a recipe may write after `kind:` and the class that it builds.

The classes are imported only when a recipe names them. A component of your own needs no entry here:
write `kind: my.module:MyClass`.
"""

from __future__ import annotations

import importlib
import traceback
from typing import Any

KINDS: dict[str, dict[str, str]] = {
    "stage": {
        "data": "tilth.data.stage:Data",
        "mix": "tilth.data.mix:Mix",
        "augment": "tilth.augment.stage:Augment",
        "gate": "tilth.augment.gate:Gate",
        "pack": "tilth.train.prepack:Pack",
        "mlm": "tilth.train.mlm:Mlm",
        "sft": "tilth.train.sft:Sft",
        "export": "tilth.train.export:Export",
        "dpo": "tilth.train.dpo:Dpo",
        "kto": "tilth.train.kto:Kto",
        "reward": "tilth.train.reward:RewardTraining",
        "ppo": "tilth.train.ppo.stage:Ppo",
        "evaluate": "tilth.evaluate.stage:Evaluate",
        "judge": "tilth.evaluate.judging.stage:JudgeAnswers",
        "harness": "tilth.evaluate.harness:Harness",
        "search": "tilth.search.stage:Search",
        "generate": "tilth.generate.stage:Generate",
        "feedback": "tilth.annotate.stage:Feedback",
    },
    "source": {
        "jsonl": "tilth.data.source:Jsonl",
        "csv": "tilth.data.source:Csv",
        "sheet": "tilth.data.sheet:Sheet",
        "parquet": "tilth.data.source:Parquet",
        "hf": "tilth.data.source:HuggingFace",
        "inline": "tilth.data.source:Inline",
        "ultrafeedback": "tilth.data.collected:UltraFeedback",
        "argilla": "tilth.data.collected:Argilla",
        "label_studio": "tilth.data.collected:LabelStudio",
    },
    "transform": {
        "back_translation": "tilth.augment.back_translation:BackTranslation",
        "contextual": "tilth.augment.contextual:Contextual",
        "sentences": "tilth.augment.sentences:Sentences",
        "paraphrase": "tilth.augment.paraphrase:Paraphrase",
        "counterfactual": "tilth.augment.counterfactual:Counterfactual",
        "eda": "tilth.augment.eda:Eda",
        "length": "tilth.augment.filters:Length",
        "language": "tilth.augment.filters:Language",
        "similarity": "tilth.augment.similarity:Similarity",
        "label": "tilth.augment.label:LabelPreserved",
        "unique": "tilth.augment.unique:Unique",
        "near_duplicates": "tilth.augment.near_duplicates:NearDuplicates",
        "semantic_duplicates": "tilth.augment.semantic_duplicates:SemanticDuplicates",
        "novelty": "tilth.augment.novelty:Novelty",
        "toxicity": "tilth.augment.toxicity:Toxicity",
        "pii": "tilth.augment.pii:Pii",
        "judge_score": "tilth.augment.judge_score:JudgeScore",
        "balance": "tilth.augment.balance:Balance",
        "decontaminate": "tilth.augment.decontaminate:Decontaminate",
    },
    "translator": {
        "bergamot": "tilth.augment.translators:Bergamot",
        "ctranslate2": "tilth.augment.translators:CTranslate2",
        "transformers": "tilth.augment.translators:Transformers",
    },
    "proposer": {
        "masked_lm": "tilth.augment.proposers:MaskedLM",
        "causal_lm": "tilth.augment.proposers:CausalLM",
    },
    "peft": {
        "lora": "tilth.train.peft:Lora",
        "qlora": "tilth.train.peft:QLora",
        "ia3": "tilth.train.peft:Ia3",
        "prefix_tuning": "tilth.train.prompts:PrefixTuning",
        "prompt_tuning": "tilth.train.prompts:PromptTuning",
        "p_tuning": "tilth.train.prompts:PTuning",
        "bottleneck": "tilth.train.bottleneck:Bottleneck",
    },
    "sampling": {
        "proportional": "tilth.train.sampling:Proportional",
        "equal": "tilth.train.sampling:Equal",
        "temperature": "tilth.train.sampling:Temperature",
        "capped": "tilth.train.sampling:Capped",
        "explicit": "tilth.train.sampling:Explicit",
        "annealed": "tilth.train.sampling:Annealed",
    },
    "weighting": {
        "none": "tilth.train.weighting:Unweighted",
        "fixed": "tilth.train.weightings:Fixed",
        "uncertainty": "tilth.train.weightings:Uncertainty",
        "gradnorm": "tilth.train.weightings:GradNorm",
        "excess_loss": "tilth.train.weightings:ExcessLoss",
        "loss_ratio": "tilth.train.weightings:LossRatio",
        "dwa": "tilth.train.weightings:Dwa",
    },
    "conflict": {
        "none": "tilth.train.conflict:Unresolved",
        "pcgrad": "tilth.train.remedies:PcGrad",
        "masking": "tilth.train.remedies:Masking",
        "gradvac": "tilth.train.remedies:GradVac",
        "cagrad": "tilth.train.remedies:CaGrad",
    },
    "method": {
        "self_instruct": "tilth.generate.self_instruct:SelfInstruct",
        "templates": "tilth.generate.templates:Templates",
        "preferences": "tilth.generate.preferences:Preferences",
        "evol_instruct": "tilth.generate.evol_instruct:EvolInstruct",
        "instruction_back_translation": "tilth.generate.instruction_back_translation:InstructionBackTranslation",
        "magpie": "tilth.generate.magpie:Magpie",
        "grid": "tilth.generate.grid:Grid",
        "grounded_qa": "tilth.generate.grounded_qa:GroundedQa",
        "rules": "tilth.generate.rules:Rules",
        "code": "tilth.generate.code:Code",
    },
    "task": {
        "forward": "tilth.evaluate.tasks.forward:Forward",
        "generation": "tilth.evaluate.tasks.generation:Generation",
        "choices": "tilth.evaluate.tasks.choices:Choices",
    },
    "metric": {
        "bleu": "tilth.evaluate.measures.translation:Bleu",
        "chrf": "tilth.evaluate.measures.translation:Chrf",
        "rouge": "tilth.evaluate.measures.summaries:Rouge",
        "meteor": "tilth.evaluate.measures.summaries:Meteor",
        "exact_match": "tilth.evaluate.measures.answers:ExactMatch",
        "exact_answer": "tilth.evaluate.measures.answers:ExactAnswer",
        "squad": "tilth.evaluate.measures.answers:Squad",
        "classification": "tilth.evaluate.measures.classes:Classification",
        "auc": "tilth.evaluate.measures.classes:Auc",
        "auc_ovr": "tilth.evaluate.measures.classes:AucOvr",
        "calibration": "tilth.evaluate.measures.classes:Calibration",
        "entities": "tilth.evaluate.measures.entities:Entities",
        "perplexity": "tilth.evaluate.measures.likelihood:Perplexity",
        "pass_at_k": "tilth.evaluate.measures.programs:PassAtK",
        "similarity": "tilth.evaluate.measures.meaning:Similarity",
        "diversity": "tilth.evaluate.measures.meaning:Diversity",
    },
    "judge": {
        "pairwise": "tilth.generate.judges:Pairwise",
        "aspects": "tilth.generate.judges:Aspects",
        "reward_model": "tilth.generate.judges:RewardModel",
    },
    "advantage": {
        "gae": "tilth.train.ppo.advantages:Gae",
        "grpo": "tilth.train.ppo.advantages:Grpo",
        "rloo": "tilth.train.ppo.advantages:Rloo",
        "reinforce_plus_plus": "tilth.train.ppo.advantages:ReinforcePlusPlus",
    },
    "rollouts": {
        "hf": "tilth.train.ppo.rollouts:HuggingFaceRollouts",
        "vllm": "tilth.train.ppo.rollouts:VllmRollouts",
    },
    "reward": {
        "reward_model": "tilth.train.rewards:RewardModel",
        "function": "tilth.train.rewards:Function",
        "judge": "tilth.train.rewards:Judged",
        "code": "tilth.train.rewards:PassesTests",
        "sum": "tilth.train.rewards:WeightedSum",
    },
    "form": {
        "direct": "tilth.annotate.forms:Direct",
        "pairwise": "tilth.annotate.forms:Pairwise",
    },
    "space": {
        "choice": "tilth.search.space:Choice",
        "uniform": "tilth.search.space:Uniform",
        "loguniform": "tilth.search.space:LogUniform",
        "integers": "tilth.search.space:Integers",
        "simplex": "tilth.search.space:Simplex",
    },
    "searcher": {
        "random": "tilth.search.searchers:Random",
        "grid": "tilth.search.searchers:Grid",
        "tpe": "tilth.search.searchers:Tpe",
        "bohb": "tilth.search.searchers:Bohb",
    },
    "scheduler": {
        "asha": "tilth.search.schedulers:Asha",
        "median": "tilth.search.schedulers:Median",
        "hyperband": "tilth.search.schedulers:Hyperband",
        "pbt": "tilth.search.schedulers:Pbt",
    },
    "runner": {
        "one_by_one": "tilth.search.runners:OneByOne",
        "packed": "tilth.search.runners:Packed",
        "tune": "tilth.search.runners:Tune",
    },
    "generator": {
        "vllm": "tilth.generate.vllm:Vllm",
        "hf": "tilth.generate.hf:HuggingFace",
        "http": "tilth.generate.http:Http",
        "echo": "tilth.generate.echo:Echo",
    },
}


def load_class(family: str, kind: str) -> type[Any]:
    """Import the class behind `kind`; LookupError says why there is none."""
    target = KINDS.get(family, {}).get(kind, kind)
    module, _, name = target.partition(":")
    if not module or not name or module.startswith("."):
        homes = [other for other, kinds in KINDS.items() if kind in kinds]
        raise LookupError(f"no {family} of kind {kind!r}" + (f" (that is a {homes[0]})" if homes else ""))
    loaded = load_object(target, f"{family} {kind!r}")
    if not isinstance(loaded, type):
        raise LookupError(f"{target!r} is not a class")
    return loaded


def load_object(target: str, what: str) -> Any:
    """Import what "module:name" names, for `what`; LookupError says why there is none."""
    module, _, name = target.partition(":")
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LookupError(f"{what} needs module {error.name!r}, which is not installed") from error
    except Exception as error:  # the user's own module, which may do anything while it is imported
        raise LookupError(f"module {module!r} cannot be imported: {_said(error)}") from error
    if not hasattr(home, name):
        raise LookupError(f"module {module!r} has no {name!r}")
    return getattr(home, name)


def _said(error: Exception) -> str:
    """The error and the last line of code that it came through."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def kind_of(family: str, cls: type[Any]) -> str:
    """The shortest name a recipe may use for `cls`: its built-in kind, else "module:Class"."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    return next((kind for kind, path in KINDS.get(family, {}).items() if path == target), target)
