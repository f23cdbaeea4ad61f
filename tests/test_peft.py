"""Adapters and partial fine-tuning: what they change, what they refuse, and that they are found again as they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from tilth.data.loading import adapted, load_pretrained
from tilth.errors import ModelError, StageError
from tilth.storage import Store
from tilth.train.adapters import factors, plain_lora
from tilth.train.bottleneck import Bottleneck
from tilth.train.config import ModelConfig, Optimisation, Scale
from tilth.train.freeze import Freeze
from tilth.train.launch import CHECKPOINTS
from tilth.train.memory import activation_bytes, footprint
from tilth.train.peft import Ia3, Lora, Peft
from tilth.train.thaw import freeze
from tilth.train.worker import train
from tilth.weights import Weights, in_folder
from tiny import model_folder
from training import Dying, dataset, job_of, questions, run_stage, stage_of, trace

OBJECTIVES = {"bert": "masked_lm", "t5": "seq2seq"}
IDS = torch.arange(4, 40).reshape(2, 18)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        extra = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        said: torch.Tensor = model.eval()(input_ids=IDS, **extra).logits
    return said


def stirred(model: Any) -> Any:
    """The model with every trainable weight moved, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


# bottleneck adapters


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bert", "t5"])
@pytest.mark.parametrize(("placement", "each"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_begin_as_nothing_and_are_found_again(tmp_path: Path, kind: str, placement: Any, each: int) -> None:
    objective = OBJECTIVES.get(kind, "language_model")
    folder = model_folder(tmp_path / kind, kind)
    before = logits(load_pretrained(folder, objective).model)
    config = Bottleneck(placement=placement, width=4).build(objective)
    model = get_peft_model(load_pretrained(folder, objective).model, config)
    assert_close(logits(model), before, rtol=0, atol=0)
    blocks = 6 if kind == "t5" else 3
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == blocks * each * 4  # two layers of weights and biases
    assert all("bottleneck_layers" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == blocks * each * (16 * 4 + 4 + 4 * 16 + 16)
    after = logits(stirred(model))
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert_close(logits(model), before)
    model.save_pretrained(tmp_path / "saved")
    assert {file.suffix for file in (tmp_path / "saved").glob("adapter_*")} == {".safetensors", ".json"}
    assert_close(logits(adapted(load_pretrained(folder, objective).model, tmp_path / "saved")), after)


def test_a_bottleneck_is_what_houlsby_describes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    model = stirred(
        get_peft_model(load_pretrained(folder, "language_model").model, Bottleneck().build("language_model"))
    )
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    down, _, _, up = layer.bottleneck_layers["default"]
    inner = torch.randn(3, 32)
    hidden = inner @ layer.base_layer.weight.T
    expected = hidden + torch.nn.functional.gelu(hidden @ down.weight.T + down.bias) @ up.weight.T + up.bias
    with torch.inference_mode():
        assert_close(layer(inner), expected)


def test_an_unknown_architecture_needs_targets(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    odd = Bottleneck(targets=r".*up_proj", width=4).build("language_model")
    model = get_peft_model(load_pretrained(folder, "language_model").model, odd)
    assert sum(name.endswith("up_proj") for name, _ in model.named_modules()) == 3


@pytest.mark.parametrize("method", [{"bottleneck": {"width": 4}}, {"prefix_tuning": {"length": 3}}])
def test_nothing_stands_on_what_cannot_be_merged(tmp_path: Path, method: dict[str, Any]) -> None:
    base = str(model_folder(tmp_path / "bert", "bert"))
    dataset(tmp_path, questions(4))
    run_stage(tmp_path, stage_of("sft", {"name": base, **method}, {"steps": 1, "global_batch": 4}))
    below = str(Store.at(tmp_path).sub("train").fetch("model"))
    dataset(tmp_path / "next", questions(4))
    with pytest.raises(ModelError, match=r"is no change of weights, .* take lora or ia3"):
        run_stage(tmp_path / "next", stage_of("sft", {"name": below, "lora": {}}, {"steps": 1}))


# LoRA and its variants


@pytest.mark.parametrize("scaling", ["rank", "rank_stabilized"])
def test_pissa_is_saved_as_a_plain_adapter(tmp_path: Path, scaling: Any) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    settings = Lora(rank=4, alpha=4, init="pissa", scaling=scaling, rank_pattern={"q_proj": 2})
    model = get_peft_model(load_pretrained(folder, "language_model").model, settings.build("language_model"))
    start = factors(model)
    assert_close(logits(model), logits(load_pretrained(folder, "language_model").model))
    after = logits(stirred(model))
    model.save_pretrained(tmp_path / "saved")
    plain_lora(tmp_path / "saved", start)
    plain = PeftModel.from_pretrained(load_pretrained(folder, "language_model").model, tmp_path / "saved")
    assert_close(logits(plain), after, rtol=1e-4, atol=1e-4)


def test_patterns_choose_ranks_and_targets() -> None:
    config = Lora(targets=("q_proj", "v_proj"), rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3}, bias="all")
    made = config.build("language_model", ("head",))
    assert made.target_modules == {"q_proj", "v_proj"}
    assert (made.rank_pattern, made.alpha_pattern, made.bias) == ({"v_proj": 2}, {"v_proj": 3}, "all")
    assert made.modules_to_save == ["head"]


# what is refused before anything starts


@pytest.mark.parametrize(
    ("model", "scale", "says"),
    [
        ({"prefix_tuning": {}}, {"gradient_checkpointing": True}, "gradient checkpointing .* take prompt_tuning"),
        ({"p_tuning": {}}, {"workers": 2, "deepspeed": {"stage": 3}}, "p_tuning cannot be saved .* use stage 2"),
        ({"qlora": {}}, {}, "need GPUs, and scale.gpus is 0; set scale.gpus: 1, or take lora"),
        ({"qlora": {}}, {"workers": 1, "gpus": 1, "deepspeed": {"stage": 3}}, "cannot be partitioned"),
        ({"lora": {"variant": "dora", "init": "pissa"}}, {}, "dora cannot start from pissa"),
        ({"lora": {}, "freeze": {"embeddings": True}}, {}, "leave freeze or peft out"),
        ({"freeze": {}}, {}, "freezes nothing"),
        ({"freeze": {"names": ["x"], "thaw_steps": 2}}, {}, "no frozen blocks"),
        (
            {"freeze": {"blocks": [0, 2], "thaw_steps": 2}},
            {"workers": 2, "deepspeed": {"stage": 2}},
            "set scale.deepspeed: null",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_check(model: dict[str, Any], scale: dict[str, Any], says: str) -> None:
    stage = stage_of("sft", {"name": "x", **model}, {}, scale={"workers": 0, **scale})
    found = [*stage.check(), *(problem for _, child in stage.children() for problem in child.check())]
    assert len(found) == 1
    assert re.search(says, str(found[0]))


def test_a_prompt_cannot_be_learnt_for_masked_words(tmp_path: Path) -> None:
    base = str(model_folder(tmp_path / "bert", "bert"))
    dataset(tmp_path, questions(4))
    stage = stage_of("mlm", {"name": base, "prompt_tuning": {"length": 2}}, {"steps": 1})
    with pytest.raises(StageError, match="prompt_tuning cannot be trained for masked_lm"):
        run_stage(tmp_path, stage)


# partial fine-tuning


def frozen(folder: Path, kind: str, settings: Freeze) -> set[str]:
    model = load_pretrained(folder, OBJECTIVES.get(kind, "language_model")).model
    freeze(model, settings)
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_blocks_embeddings_and_names_stay_as_they_are(tmp_path: Path) -> None:
    llama, t5 = model_folder(tmp_path / "llama", "llama"), model_folder(tmp_path / "t5", "t5")
    kept = frozen(llama, "llama", Freeze(blocks=(0, -1)))
    assert {name.split(".")[2] for name in kept} == {"0", "1"}
    assert frozen(llama, "llama", Freeze(embeddings=True)) == {"model.embed_tokens.weight"}
    assert frozen(llama, "llama", Freeze(names=(r"q_proj", r"model\.norm"))) == {
        *(f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3)), "model.norm.weight",
    }  # fmt: skip
    assert {name.split(".block.")[0] for name in frozen(t5, "t5", Freeze(blocks=(2, 3)))} == {"encoder", "decoder"}
    with pytest.raises(ModelError, match=r"holds none of the model's 3 blocks"):
        frozen(llama, "llama", Freeze(blocks=(3, 9)))
    with pytest.raises(ModelError, match="nothing is left to train"):
        frozen(llama, "llama", Freeze(names=(".",)))


def changed(root: Path, base: Path) -> set[str]:
    """Names of the weights in the model under `root` that are not as in `base`."""
    now = load_pretrained(Store.at(root).sub("train").fetch("model"), "masked_lm").model.state_dict()
    before = load_pretrained(base, "masked_lm").model.state_dict()
    return {name for name, value in now.items() if not torch.equal(value, before[name])}


def test_blocks_are_thawed_from_the_top(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "bert", "bert")
    settings = {"blocks": [0, 3], "embeddings": True, "thaw_steps": 2}
    reached = []
    for steps in (2, 3, 5):
        root = tmp_path / str(steps)
        dataset(root, questions(8))
        optimisation = {"steps": steps, "global_batch": 4, "weight_decay": 0.1}
        run_stage(root, stage_of("mlm", {"name": str(base), "freeze": settings}, optimisation))
        reached.append({name.split(".")[3] for name in changed(root, base) if ".layer." in name})
    assert reached == [set(), {"2"}, {"2", "1"}]


@pytest.mark.parametrize(
    "model",
    [
        {"freeze": {"blocks": [0, 3], "thaw_steps": 2}},
        {"p_tuning": {"length": 3, "units": 8}},
        {"prefix_tuning": {"length": 3, "projection": 8}},
        {"bottleneck": {"width": 4}},
        {"lora": {"init": "pissa", "rank": 4}},
    ],
    ids=lambda model: next(iter(model)),
)
def test_a_stopped_run_goes_on_as_it_would_have(tmp_path: Path, model: dict[str, Any]) -> None:
    base = str(model_folder(tmp_path / "bert", "bert"))
    stage = stage_of("sft", {"name": base, **model}, {"steps": 5, "global_batch": 4}, checkpointing={"every_steps": 3})
    traces = []
    for name in ("whole", "stopped"):
        root = tmp_path / name
        dataset(root, questions(8))
        if name == "stopped":
            job = job_of(root, stage)
            with pytest.raises(KeyboardInterrupt):
                train(job, Dying(job.out.sub(f"{CHECKPOINTS}/{job.fingerprint[:16]}")))
        run_stage(root, stage)
        traces.append(trace(root))
    assert traces[1] == traces[0]


def test_every_kind_is_a_light_config_of_a_family() -> None:
    made = Peft.model_validate({"kind": "prompt_tuning", "length": 3, "text": "classify this:"})
    config = made.build("classification", (), "folder")
    assert (config.num_virtual_tokens, config.prompt_tuning_init_text) == (3, "classify this:")
    assert config.tokenizer_name_or_path == "folder"


# what is said before the start


def stored(folder: Path) -> Weights:
    found = in_folder(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
@pytest.mark.parametrize(
    "method",
    [Bottleneck(placement="houlsby", width=4), Bottleneck(placement="pfeiffer", width=4), Ia3()],
    ids=["houlsby", "pfeiffer", "ia3"],
)
def test_what_is_trained_is_counted_by_shapes(tmp_path: Path, kind: str, method: Any) -> None:
    folder = model_folder(tmp_path / kind, kind)
    objective = OBJECTIVES.get(kind, "language_model")
    model = get_peft_model(load_pretrained(folder, objective).model, method.build(objective))
    assert method.parameters(stored(folder).shapes) == model.get_nb_trainable_parameters()[0]


def test_what_is_frozen_takes_no_gradients(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "llama", "llama")
    settings = Freeze(blocks=(0, 2), embeddings=True, names=(r"layers\.2\.mlp",))
    model = load_pretrained(folder, "language_model").model
    freeze(model, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = footprint(stored(folder), ModelConfig(name="x", freeze=settings), Optimisation(), Scale())
    assert (held.trained, held.total) == (trained, sum(p.numel() for p in model.parameters()))
    assert (held.weights, held.gradients, held.optimizer) == (4 * held.total, 4 * trained, 8 * trained)


def test_activations_follow_tokens_width_and_checkpointing() -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 100}
    plain = activation_bytes(shape, 10, Optimisation(), Scale(), "classification")
    assert plain == 10 * 4 * 16 * 17 * 3
    assert activation_bytes(shape, 10, Optimisation(), Scale(), "language_model") == plain + 10 * 8 * 100
    less = activation_bytes(shape, 10, Optimisation(), Scale(gradient_checkpointing=True), "classification")
    assert less == 10 * 4 * 16 * (17 + 3)


def test_counts_and_memory_are_said_before_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(model_folder(tmp_path / "bert", "bert"))
    dataset(tmp_path, questions(4))
    made = run_stage(tmp_path, stage_of("sft", {"name": base, "freeze": {"blocks": [0, 3]}}, {"steps": 1}))
    said = next(line for line in capsys.readouterr().err.splitlines() if "memory about" in line)
    assert said.startswith("train: freeze: about ")
    assert "are trained" in said
    assert made.detail["parameters"]["trainable"] < made.detail["parameters"]["total"]
