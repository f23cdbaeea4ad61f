"""Sources: columns mapped to rows, files found by path, glob and URI, faults named before anything runs."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from pydantic import ValidationError

from tilth.content import files_identity
from tilth.data.clean import Cleaning
from tilth.data.records import Shaper
from tilth.data.source import Csv, HuggingFace, Inline, Jsonl, Source
from tilth.errors import StorageError


def shaped(source: Source, row_type: str) -> list[dict]:
    shaper = Shaper(source, row_type, Cleaning())
    return [row for piece in source.pieces() for row in shaper.rows(source.records(piece), piece.name)]


# columns and rows


def test_dotted_paths_and_literal_dots():
    row = {"answers": [{"text": "inner"}], "q.id": 7, "meta": {"n": 1}}
    source = Inline(
        rows=(row,), columns={"prompt": "q", "completion": "answers.0.text", "id": "q.id"}, carry=("meta.n",)
    )
    assert shaped(source, "completion")[0]["reason"].startswith("quarantined/missing_column")
    source = Inline(rows=({**row, "q": "why?"},), columns=source.columns | {"prompt": "q"}, carry=("meta.n",))
    [made] = shaped(source, "completion")
    assert (made["id"], made["prompt"], made["completion"]) == ("7", "why?", "inner")
    assert made["meta"] == {"file": "inline", "line": 1, "meta.n": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": "a"}, "missing_column"),
        ({"text": None, "label": "a"}, "null"),
        ({"text": " \n ", "label": "a"}, "empty"),
        ({"text": "x", "label": ""}, "empty"),
        ({"text": 3, "label": "a"}, "wrong_type"),
        ({"text": ["x"], "label": "a"}, "wrong_type"),
        ({"text": "x", "label": 1.5}, "wrong_type"),
        ({"text": "x", "label": True}, "wrong_type"),
        ({"text": "x\ud800", "label": "a"}, "lone_surrogate"),
        ({"text": "x", "label": "\udfff"}, "lone_surrogate"),
        ({"text": "a\x00b", "label": "a"}, "nul"),
    ],
)
def test_what_is_no_row_goes_to_quarantine(tmp_path, row, reason):
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": "a"}\n' + json.dumps(row) + "\n")
    good, bad = shaped(Jsonl(path=str(tmp_path / "rows.jsonl")), "labelled")
    assert good["reason"] is None
    assert bad["reason"].startswith(f"quarantined/{reason}: ")
    assert (bad["meta"]["file"], bad["meta"]["line"], bad.get("text")) == ("rows.jsonl", 2, None)
    assert len(bad["meta"]["excerpt"]) <= 200


def test_an_excerpt_shows_the_values_of_a_record_as_they_were(tmp_path):
    deep: list = []
    for _ in range(300):
        deep = [deep]
    record = {"text": None, "label": True, "turns": [{"role": "user"}], "deep": deep, "long": "x" * 999}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    [bad] = shaped(Jsonl(path=str(tmp_path / "rows.jsonl")), "labelled")
    assert bad["meta"]["excerpt"].startswith('{"text": null, "label": true, "turns": [{"role": "user"}], "deep": [')
    assert len(bad["meta"]["excerpt"]) == 200


def test_whole_numbers_serve_as_labels():
    assert shaped(Inline(rows=({"text": "x", "label": 3},)), "labelled")[0]["label"] == "3"


def test_ids_depend_on_content_and_task_only(tmp_path):
    for name, text in (("a", "same\r\n"), ("b", "  same")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    one, two = (shaped(Jsonl(path=str(tmp_path / f"{name}.jsonl")), "text")[0]["id"] for name in "ab")
    other = shaped(Jsonl(path=str(tmp_path / "a.jsonl"), task="other"), "text")[0]["id"]
    assert one == two != other
    assert len(one) == 16
    assert int(one, 16)


def test_chat_rows():
    turns = [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "hello"}]
    rows = ({"messages": turns}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": "hi"})
    made = shaped(Inline(rows=rows), "chat")
    assert made[0]["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert [row["reason"].split(":")[0] for row in made[1:]] == [
        "quarantined/empty", "quarantined/wrong_type", "quarantined/wrong_type",
    ]  # fmt: skip


def test_words_with_tags():
    [made] = shaped(Inline(rows=({"tokens": ["Ann ", "lives"], "tags": ["PER", 0]},)), "tagged")
    assert (made["tokens"], made["tags"]) == (["Ann", "lives"], ["PER", "0"])
    [short] = shaped(Inline(rows=({"tokens": ["Ann", "lives"], "tags": ["PER"]},)), "tagged")
    assert short["reason"] == "quarantined/tags: there are 1 for 2 tokens"


def test_answers_are_found_where_the_cleaned_context_has_them():
    context = "\r\n Rome was, and Rome is."
    squad = {"question": "What is?", "context": context, "answers": {"text": ["Rome"], "answer_start": [17]}}
    plain = {**squad, "answers": [{"text": "Rome", "start": 3}, {"text": "Rome is", "start": 17}]}
    nothing = {**squad, "answers": []}
    wrong = {**squad, "answers": {"text": ["Oslo"], "answer_start": [0]}}
    made = shaped(Inline(rows=(squad, plain, nothing, wrong)), "qa")
    assert [[(a["text"], a["start"]) for a in row.get("answers") or ()] for row in made] == [
        [("Rome", 14)], [("Rome", 0), ("Rome is", 14)], [], [],
    ]  # fmt: skip
    assert made[0]["context"][14:18] == "Rome"
    assert [row["reason"] for row in made] == [None, None, None, "quarantined/answer: 'Oslo' is not in the context"]


def test_hugging_face_directory_with_class_labels(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "saved"))
    rows = shaped(HuggingFace(path=str(tmp_path / "saved")), "labelled")
    assert [(row["text"], row["label"]) for row in rows] == [("a", "yes"), ("b", "no")]
    with pytest.raises(StorageError, match="has no split 'test'; there are: train"):
        HuggingFace(path=str(tmp_path / "saved"), subset="test").pieces()
    saved = HuggingFace(path=str(tmp_path / "saved"))
    assert (saved.check(), saved.count(), saved.peek()) == ([], 2, ["text", "label"])
    assert HuggingFace(path=str(tmp_path / "saved"), columns={"text": "a.0.text"}).check() == []


def test_class_labels_within_lists_and_mappings_have_their_names(tmp_path):
    import datasets
    from datasets import ClassLabel, List, Value

    tag = ClassLabel(names=["O", "B-PER"])
    features = datasets.Features({"tokens": List(Value("string")), "tags": List(tag), "of": {"a": [tag], "n": tag}})
    row = {"tokens": ["Ann", "lives"], "tags": [1, 0], "of": {"a": [0, None, -1], "n": 1}}
    datasets.Dataset.from_list([row, {**row, "tags": None, "of": None}], features).save_to_disk(str(tmp_path / "saved"))
    source = HuggingFace(path=str(tmp_path / "saved"))
    assert shaped(source, "tagged")[0]["tags"] == ["B-PER", "O"]
    values = [item.value for piece in source.pieces() for item in source.records(piece)]
    assert values[0]["of"] == {"a": ["O", None, None], "n": "B-PER"}
    assert (values[1]["tags"], values[1]["of"]) == (None, None)


@pytest.mark.parametrize(
    ("path", "changes", "says"),
    [
        ("saved", {"subset": "test"}, "subset: the dataset has no split 'test'; there are: train"),
        ("saved", {"columns": {"text": "txt"}}, "columns.text: the source has no column 'txt'; did you mean \"text\"?"),
        ("plain", {}, "holds no saved dataset; name a directory that save_to_disk wrote"),
        ("nowhere", {}, "path: no file matches"),
    ],
)
def test_a_directory_that_holds_no_such_dataset_fails_in_the_check(tmp_path, path, changes, says):
    import datasets

    (tmp_path / "plain").mkdir()
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "saved"))
    [problem] = HuggingFace(path=str(tmp_path / path), **changes).check()
    assert says in str(problem)
    if path != "saved":
        with pytest.raises(StorageError, match="cannot be loaded"):
            HuggingFace(path=str(tmp_path / path)).pieces()


# finding files


def test_names_are_relative_to_the_source(tmp_path):
    for name in ("a/one.jsonl", "b/c/two.jsonl", "b/.hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    by_path = {
        str(tmp_path): ["a/one.jsonl", "b/c/two.jsonl"],
        str(tmp_path / "*/*.jsonl"): ["a/one.jsonl", "b/.hidden.jsonl"],
        str(tmp_path / "**/two.jsonl"): ["b/c/two.jsonl"],
        str(tmp_path / "a/one.jsonl"): ["one.jsonl"],
    }
    for path, names in by_path.items():
        assert [name for _, name in Jsonl(path=path).files()] == names


def test_files_behind_a_uri():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/sources/x/a.csv": b"text\none\n", "/sources/x/b.csv.gz": gzip.compress(b"text\ntwo\n")})
    for path in ("memory://sources/x", "memory://sources/x/*"):
        source = Csv(path=path)
        assert [name for _, name in source.files()] == ["a.csv", "b.csv.gz"]
        assert [row["text"] for row in shaped(source, "text")] == ["one", "two"]


def test_check_names_missing_files_and_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,category\nx,y\n")
    [problem] = Csv(path=str(tmp_path / "*.tsv")).check()
    assert problem.where == "path"
    assert problem.what.startswith(f"no file matches '{tmp_path}/*.tsv'")
    [problem] = Csv(path=str(tmp_path), columns={"label": "categry"}).check()
    assert str(problem) == "columns.label: the source has no column 'categry'; did you mean \"category\"?"
    assert Csv(path=str(tmp_path), columns={"label": "category"}).check() == []


def test_columns_of_the_first_hundred_records_count(tmp_path):
    rows = [{"text": "x", "answers": []}, {"text": "y", "answers": [{"text": "inner"}], "late": 1}]
    (tmp_path / "a_empty.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Jsonl(path=str(tmp_path), columns={"label": "answers.0.text"}, carry=("late",)).check() == []
    [problem] = Jsonl(path=str(tmp_path), carry=("lat",)).check()
    assert problem.where == "carry.lat"


def test_check_needs_no_heavy_imports(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "x"}\n')
    code = (
        "import sys; from tilth.data.source import Jsonl; "
        f"assert Jsonl(path={str(tmp_path / 'a.jsonl.gz')!r}, columns={{'text': 'txt'}}).check(); "
        "print([m for m in ('pyarrow', 'ray', 'torch', 'numpy', 'fsspec', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path):
    named, other = tmp_path / "rows[1].csv", tmp_path / "rows1.csv"
    named.write_text("text\nmeant\n")
    other.write_text("text\nnot meant\n")
    source = Csv(path=str(named))
    assert source.check() == []
    assert [row["text"] for row in shaped(source, "text")] == ["meant"]
    before = files_identity(source.path)
    other.write_text("text\nchanged\n")
    assert files_identity(source.path) == before
    named.write_text("text\nchanged\n")
    assert files_identity(source.path) != before


def test_what_is_read_is_what_is_fingerprinted(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    before = files_identity(str(tmp_path))
    (tmp_path / ".ipynb_checkpoints/rows.jsonl").write_text("{}\n")
    assert [name for _, name in Jsonl(path=str(tmp_path)).files()] == ["rows.jsonl"]
    assert files_identity(str(tmp_path)) == before


def test_a_change_that_hides_behind_the_old_time_and_size_is_seen(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text\nold\n")
    then, before = file.stat(), files_identity(str(file))
    file.write_text("text\nnew\n")
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert files_identity(str(file)) != before


def test_a_store_that_marks_nothing_is_read_to_know_its_content():
    fs = fsspec.filesystem("memory")
    fs.pipe("/marks/a.csv", b"text\nold\n")
    before = files_identity("memory://marks/a.csv")
    fs.pipe("/marks/a.csv", b"text\nnew\n")
    assert files_identity("memory://marks/a.csv") != before


@pytest.mark.parametrize("name", ["ROWS.JSONL.GZ", "rows.jsonl.Gz"])
def test_a_suffix_counts_however_it_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tilth.data.readers.PART", 100)
    lines = [json.dumps({"text": f"row {n} {n * 7919}"}) for n in range(500)]
    (tmp_path / name).write_bytes(gzip.compress("\n".join(lines).encode()))
    source = Jsonl(path=str(tmp_path / name))
    assert source.count() is None
    assert [row["text"] for row in shaped(source, "text")] == [json.loads(line)["text"] for line in lines]


def test_a_path_that_cannot_be_read_is_a_fault_of_the_recipe():
    [problem] = Jsonl(path="x" * 300).check()
    assert (problem.where, problem.what[:35]) == ("path", "cannot be read: File name too long:")


def test_a_protocol_that_is_none_is_named():
    with pytest.raises(StorageError, match=r"cannot open nosuch://x/a\.csv: Protocol not known"):
        Csv(path="nosuch://x/a.csv").files()


@pytest.mark.parametrize(
    "odd", [b"bytes", {"a"}, math.inf, math.nan, {1: "x"}, [{0: "x"}], datetime.date(2020, 1, 1)], ids=repr
)
def test_inline_rows_hold_what_a_file_could_hold(odd):
    with pytest.raises(ValidationError, match="row 1: a value must be text"):
        Inline(rows=({"text": "a"}, {"text": "b", "more": odd}))


# data as published


@pytest.mark.parametrize(("part", "rows"), [("train", 10_003), ("test", 3_080)])
def test_banking77(shared: Path, part, rows):
    made = shaped(Csv(path=str(shared / f"data/banking77/{part}.csv"), columns={"label": "category"}), "labelled")
    assert len(made) == rows
    assert not any(row["reason"] for row in made)
    assert len({row["label"] for row in made}) == 77
    assert any("\n" in row["text"] for row in made) == (part == "train")


def test_gsm8k(shared: Path):
    columns = {"prompt": "question", "completion": "answer"}
    made = shaped(Jsonl(path=str(shared / "data/gsm8k/*.jsonl"), columns=columns), "completion")
    assert Counter(row["meta"]["file"] for row in made) == {"train.jsonl": 7_473, "test.jsonl": 1_319}
    assert all("####" in row["completion"] and row["reason"] is None for row in made)


def test_hh_rlhf_prompts_are_what_the_dialogues_share(shared: Path):
    made = shaped(Jsonl(path=str(shared / "data/hh-rlhf"), implicit_prompt=True), "preference")
    good = [row for row in made if row["reason"] is None]
    assert len(made) == 2_312 + 2_354
    # eight dialogues end before their last answer, two pairs differ in blanks only
    reasons = Counter(row["reason"].partition(":")[0] for row in made if row["reason"])
    assert reasons == {"quarantined/empty": 8, "no_preference": 2}
    assert all(row["prompt"].endswith("Assistant:") for row in good)
