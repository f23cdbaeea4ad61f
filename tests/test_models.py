"""Models by name: directories, the hub (a real server on this machine that speaks its protocol), and packages."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_hub import COMMIT, Hub, serving
from tilth import models, packages
from tilth.data.loading import Card, base_folder
from tilth.data.transform import Inputs
from tilth.errors import ModelError
from tilth.recipe import load
from tilth.runs import Run
from training import stage_of

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def weights(folder: Path, config: str = "{}") -> Path:
    """A directory that has what a model directory needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return folder


def elsewhere(code: str, cache: Path, **env: str) -> str:
    """What `code` prints in a process of its own, with caches of its own; what it raises, as text."""
    program = f"from tilth import models\ntry:\n    print({code})\nexcept models.ModelError as error:\n    print(error)"
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {"TILTH_CACHE": str(cache / "tilth"), "HF_HOME": str(cache / "hf")}
    done = subprocess.run([sys.executable, "-c", program], env=known | env, text=True, capture_output=True, check=True)
    return done.stdout.strip()


def test_importing_it_is_light():
    code = "import sys, tilth.models; print([m for m in ('torch', 'transformers', 'ray', 'nltk') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


class TestDirectory:
    def test_is_returned_as_it_is(self, tmp_path):
        assert models.resolve(str(weights(tmp_path / "m"))) == tmp_path / "m"

    def test_an_adapter_is_one(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").write_bytes(b"")
        assert models.resolve(str(tmp_path)) == tmp_path

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({"model.safetensors": ""}, "lacks config.json"),
            ({"config.json": "{}"}, "lacks weights in safetensors"),
            ({"config.json": "{}", "pytorch_model.bin": ""}, "save the pickled weights as safetensors"),
            (
                {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "one.safetensors"}}'},
                "lacks one.safetensors",
            ),
            ({"adapter_config.json": "{}"}, "lacks adapter_model.safetensors"),
        ],
    )
    def test_that_lacks_something_is_refused(self, tmp_path, files, said):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(ModelError, match=said):
            models.resolve(str(tmp_path))

    @pytest.mark.parametrize("model", ["/nowhere/model", "./a/b/c", "runs/x/model", "~/no such place"])
    def test_that_is_not_there_is_refused(self, model):
        with pytest.raises(ModelError, match="no such directory"):
            models.resolve(model)

    def test_its_content_is_its_identity(self, tmp_path):
        one, other = weights(tmp_path / "one"), weights(tmp_path / "moved" / "other")
        assert models.identity(str(one)) == models.identity(str(other))
        assert "one" not in models.identity(str(one))

        (other / "trainer_state.json").write_text("{}")
        (other / "training_args.bin").write_bytes(b"x")
        assert models.identity(str(one)) == models.identity(str(other))

        weights(other, config='{"vocab_size": 2}')
        assert models.identity(str(one)) != models.identity(str(other))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = weights(tmp_path / "upstream")
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"raise SystemExit"}
    Hub.files |= {"consolidated.safetensors": b"the same again", "original/model.safetensors": b"and again"}
    with serving() as endpoint:
        yield endpoint


class TestHub:
    def test_is_asked_once_and_then_its_cache_serves(self, hub, tmp_path):
        code = "models.identity('org/tiny'), models.resolve('org/tiny').name, models.identity('org/tiny')"
        expected = f"org/tiny@{COMMIT} {COMMIT} org/tiny@{COMMIT}"
        assert elsewhere(code, tmp_path, HF_ENDPOINT=hub) == expected

        asked = len(Hub.asked)
        assert elsewhere(code, tmp_path, HF_ENDPOINT=hub) == expected
        assert len(Hub.asked) == asked

    def test_gives_neither_pickles_nor_code(self, hub, tmp_path):
        code = "sorted(file.name for file in models.resolve('org/tiny').iterdir())"
        # nor the same weights for other programs
        assert elsewhere(code, tmp_path, HF_ENDPOINT=hub) == "['config.json', 'model.safetensors']"

    def test_that_has_no_safetensors_of_a_model_does_not_serve(self, hub, tmp_path):
        del Hub.files["model.safetensors"]  # the others are for other programs
        assert "has no safetensors of it" in elsewhere("models.resolve('org/tiny')", tmp_path, HF_ENDPOINT=hub)

    def test_that_lacks_the_model_leaves_the_packages(self, hub, tmp_path):
        assert elsewhere(f"models.identity({MINILM!r})", tmp_path, HF_ENDPOINT=hub).startswith(f"{MINILM}@package-")

    def test_out_of_reach_costs_seconds_once(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
            start = time.monotonic()
            first = elsewhere("models.resolve('org/tiny')", tmp_path, **env)
            assert f"the hub at {env['HF_ENDPOINT']} cannot be reached" in first
            assert time.monotonic() - start < 30  # of which a busy machine needs most to start Python
            assert "was out of reach moments ago" in elsewhere("models.resolve('org/tiny')", tmp_path, **env)

    def test_unknown_offline_says_the_way_out(self, tmp_path):
        said = elsewhere("models.resolve('HuggingFaceTB/SmolLM-135M-Instruct')", tmp_path, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE keeps the hub out of use" in said
        assert f"did you mean {SMOLLM2!r}?" in said
        assert "Give a local directory" in said

    def test_a_revision_is_never_served_from_a_package(self, tmp_path):
        said = elsewhere(f"models.identity({MINILM!r}, 'v2')", tmp_path, HF_HUB_OFFLINE="1")
        assert "without revision 'v2' it comes from a package" in said


class TestPlanned:
    """Between a plan and a stage, or from one machine to another, a name comes to mean another state."""

    def snapshot(self, cache: Path, commit: str) -> None:
        """In the hub's cache, as what `main` was when it was fetched last."""
        root = cache / "hf/hub/models--org--tiny"
        weights(root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs/main").write_text(commit)

    def test_a_commit_is_what_is_loaded_not_what_the_name_means_by_now(self, tmp_path):
        self.snapshot(tmp_path, "aaa")
        self.snapshot(tmp_path, "bbb")
        code = "models.identity('org/tiny'), models.planned('org/tiny', 'org/tiny@aaa').name"
        assert elsewhere(code, tmp_path, HF_HUB_OFFLINE="1") == "org/tiny@bbb aaa"

    def test_a_commit_that_is_not_to_be_had_is_named(self, tmp_path):
        self.snapshot(tmp_path, "bbb")
        said = elsewhere("models.planned('org/tiny', 'org/tiny@aaa')", tmp_path, HF_HUB_OFFLINE="1")
        assert said.startswith("model 'org/tiny' at revision 'aaa': it is not in the caches of this machine")

    def test_a_worker_whose_node_lacks_the_commit_fetches_it(self, hub, tmp_path, monkeypatch):
        from tilth.train.launch import environment

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        stage: Any = stage_of("sft", "org/tiny", {})
        code = f"models.planned('org/tiny', 'org/tiny@{COMMIT}')"
        found = elsewhere(code, tmp_path, HF_ENDPOINT=hub, **environment(stage.scale))
        assert found.endswith(f"snapshots/{COMMIT}"), found
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # who runs it wants none of it used
        assert environment(stage.scale)["HF_HUB_OFFLINE"] == "1"

    def test_what_was_fetched_serves_later_runs_offline(self, hub, tmp_path):
        code = f"models.planned('org/tiny', 'org/tiny@{COMMIT}').name, models.identity('org/tiny')"
        expected = f"{COMMIT} org/tiny@{COMMIT}"
        assert elsewhere(code, tmp_path, HF_ENDPOINT=hub) == expected
        assert elsewhere(code, tmp_path, HF_HUB_OFFLINE="1") == expected

    def test_a_package_is_never_taken_for_a_commit_nor_the_other_way_round(self, tmp_path):
        said = elsewhere(f"models.planned({MINILM!r}, '{MINILM}@aaa')", tmp_path, HF_HUB_OFFLINE="1")
        assert f"model {MINILM!r} at revision 'aaa': it is not in the caches" in said

    def test_a_stage_refuses_a_directory_that_changed_since_it_was_planned(self, tmp_path):
        model = weights(tmp_path / "m")
        recipe = load({"name": "x", "stages": {"out": {"kind": "export", "model": str(model)}}})
        [step] = Run(tmp_path / "run").plan(recipe)
        assert Inputs.of({}, step.out.pins).model(str(model)) == model
        weights(model, config='{"vocab_size": 2}')
        with pytest.raises(ModelError, match=r"it was \w+ when it was planned or trained with, and is \w+ here"):
            step.stage.run(step.out, {})

    def test_an_adapter_is_known_by_its_base_too(self, tmp_path):
        base, adapter = weights(tmp_path / "base"), tmp_path / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        first = models.identity(str(adapter))
        weights(base, config='{"vocab_size": 2}')
        assert models.identity(str(adapter)) != first

    def test_an_adapter_of_ours_stands_on_the_base_that_it_was_trained_on(self, tmp_path):
        base = weights(tmp_path / "base")
        card = Card(base=str(base), peft="lora", base_identity=models.identity(str(base)))
        assert base_folder(card) == base
        weights(base, config='{"vocab_size": 2}')
        with pytest.raises(ModelError, match="when it was planned or trained with"):
            base_folder(card)


def wheel(folder: Path) -> packages.Package:
    """A package with one file, where pip is told to look for packages."""
    path = folder / "tilth_test_carrier-1.0-py3-none-any.whl"
    info = "tilth_test_carrier-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tilth_test_carrier/weights", "1 2 3")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tilth-test-carrier\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return packages.Package("tilth-test-carrier", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), 1)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


class TestPackage:
    def test_is_downloaded_not_installed(self, index, tmp_path):
        (file,) = packages.download([wheel(index)], tmp_path / "into", "test")
        assert zipfile.ZipFile(file).read("tilth_test_carrier/weights") == b"1 2 3"

    def test_that_was_altered_is_deleted_and_named(self, index, tmp_path):
        package = wheel(index)
        with zipfile.ZipFile(next(index.iterdir()), "a") as file:
            file.writestr("tilth_test_carrier/more", "4")
        with pytest.raises(ModelError, match=rf"its SHA-256 must be {package.sha256}, it is [0-9a-f]{{64}}"):
            packages.download([package], tmp_path / "into", "test")
        assert not list((tmp_path / "into").iterdir())

    def test_that_is_not_to_be_had_says_what_pip_said(self, index, tmp_path):
        package = packages.Package("tilth-test-carrier", "2.0", "0" * 64, 1)
        with pytest.raises(ModelError, match=r"cannot be downloaded; pip said: ERROR: .*tilth-test-carrier"):
            packages.download([package], tmp_path / "into", "test")


class TestInstall:
    def test_appears_whole_or_not_at_all(self, tmp_path):
        def half(folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            raise ModelError("broke off")

        with pytest.raises(ModelError, match="broke off"):
            packages.install(tmp_path / "model", "pin", half)
        assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]

    def test_is_built_again_for_another_pin_only(self, tmp_path):
        built = []
        for pin in ("one", "one", "two"):
            packages.install(tmp_path / "model", pin, lambda folder, pin=pin: built.append(pin))
        assert built == ["one", "two"]

    def test_two_processes_build_it_once(self, tmp_path):
        code = (
            "import pathlib, sys, time; from tilth import packages\n"
            "def build(new):\n    time.sleep(1); open(sys.argv[1] + '/built', 'a').write('x')\n"
            "packages.install(pathlib.Path(sys.argv[1]) / 'model', 'pin', build)"
        )
        running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
        assert [process.wait() for process in running] == [0, 0, 0]
        assert (tmp_path / "built").read_text() == "x"

    def test_what_a_killed_process_left_is_cleared(self, tmp_path):
        weights(tmp_path / ".model.tmp-dead" / "new")
        packages.install(tmp_path / "model", "pin", lambda folder: None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


class TestCarried:
    def test_minilm_knows_what_is_alike(self):
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = models.resolve(MINILM)
        texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "The stock market fell."]
        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]

    def test_smollm2_answers_and_stops(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = models.resolve(SMOLLM2)
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
        ask = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert "Paris" in tokenizer.decode(answer)
        assert answer[-1] == tokenizer.eos_token_id

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("model", "text", "word"),
        [
            ("Helsinki-NLP/opus-mt-en-fr", "My card has not arrived yet.", "carte"),
            ("Helsinki-NLP/opus-mt-fr-en", "Ma carte n'est pas encore arrivée.", "card"),
        ],
    )
    def test_opus_translates(self, model, text, word):
        from transformers import AutoTokenizer, MarianMTModel

        folder = models.resolve(model)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        made = MarianMTModel.from_pretrained(folder).generate(**tokenizer(text, return_tensors="pt"))
        assert word in tokenizer.decode(made[0], skip_special_tokens=True)


class TestWordnet:
    def test_nltk_reads_it(self):
        models.wordnet_dir()
        from nltk.corpus import wordnet

        assert wordnet.get_version() == "3.0"
        assert sum(1 for _ in wordnet.all_synsets(wordnet.ADV)) == 3621
        assert wordnet.synset("car.n.01").lemma_names() == ["car", "auto", "automobile", "machine", "motorcar"]
        assert wordnet.morphy("arrived", wordnet.VERB) == "arrive"

    def test_no_other_user_could_write_it(self):
        folder = models.wordnet_dir() / "corpora" / "wordnet"
        assert all(path.stat().st_mode & 0o022 == 0 for path in (folder, *folder.iterdir()))
