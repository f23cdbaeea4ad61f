"""Code that lies beside a model is never run, not even where somebody answers "y"."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

CODE = """\
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig
class Config(PretrainedConfig):
    model_type = "no-such-architecture"
"""
SCRIPT = """
import sys
from pathlib import Path
from tilth.data.loading import load_tokenizer
from transformers import AutoConfig
for load in (load_tokenizer, lambda folder: AutoConfig.from_pretrained(folder, trust_remote_code=False)):
    try:
        load(Path(sys.argv[1]))
    except Exception as error:
        print("refused", type(error).__name__)
"""


@pytest.mark.long
def test_a_models_own_code_is_not_run(tmp_path):
    model, marker = tmp_path / "model", tmp_path / "marker"
    model.mkdir()
    (model / "configuration.py").write_text(CODE.format(marker=str(marker)))
    config = {"model_type": "no-such-architecture", "auto_map": {"AutoConfig": "configuration.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["configuration.Config", None]}})
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model)], capture_output=True, text=True, input="y\ny\ny\n", timeout=300
    )
    assert done.stdout.count("refused") == 2, done.stdout + done.stderr[-2000:]
    assert not marker.exists()


def test_every_load_says_so(root):
    """Left unsaid, transformers asks on the terminal, and takes a "y" from whatever is piped in."""
    silent = []
    for path in sorted((root / "platform/tilth").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and owner.lower().startswith("auto"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if node.func.attr == "from_pretrained" and said.get("trust_remote_code") != "False":
                    silent.append(f"{path.name}:{node.lineno}")
    assert silent == []
