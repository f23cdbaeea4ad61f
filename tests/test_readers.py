"""Files as records: whatever is wrong with one is found, placed and named, and the rest is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.data import readers
from tilth.data.readers import Bad, Record, cut_lines, read_csv, read_jsonl
from tilth.data.source import Jsonl, Parquet, Source

LIMIT = 1 << 20


def records(source: Source) -> list[Record | Bad]:
    return [item for piece in source.pieces() for item in source.records(piece)]


def values(source: Source) -> list[dict]:
    return [item.value for item in records(source) if isinstance(item, Record)]


def jsonl(data: bytes, limit: int = LIMIT) -> list[Record | Bad]:
    return list(read_jsonl(io.BytesIO(data), limit))


def from_csv(data: bytes, limit: int = LIMIT) -> list[Record | Bad]:
    return list(read_csv(io.BytesIO(data), limit))


def outcome(items: list[Record | Bad]) -> list[tuple[int, str]]:
    return [(i.line, "ok" if isinstance(i, Record) else i.reason.partition(":")[0]) for i in items]


# JSON Lines


def test_jsonl_keeps_good_lines_between_bad_ones():
    lines = [b'{"a": 1}', b'{"a": ', b"\xff\xfe", b"", b"[1]", b"3", b'{"a": 2}', b"[" * 100_000, b'{"a": 3}']
    assert outcome(jsonl(b"\n".join(lines))) == [
        (1, "ok"), (2, "malformed_json"), (3, "invalid_utf8"), (5, "not_an_object"), (6, "not_an_object"),
        (7, "ok"), (8, "malformed_json"), (9, "ok"),
    ]  # fmt: skip


def test_jsonl_number_with_too_many_digits_is_malformed():
    assert outcome(jsonl(b'{"a": ' + b"9" * 10_000 + b"}\n")) == [(1, "malformed_json")]


def test_jsonl_byte_order_mark_is_skipped():
    assert jsonl(b'\xef\xbb\xbf{"a": 1}\n')[0].value == {"a": 1}


def test_zero_bytes_are_reported():
    assert outcome(jsonl(b"")) == [(0, "empty_file")]
    assert outcome(from_csv(b"")) == [(0, "empty_file")]


def test_excerpt_is_short_and_printable():
    bad = jsonl(b"\x00\x1b[31m" + b"x" * 9999)[0]
    assert isinstance(bad, Bad)
    assert len(bad.excerpt) <= 200
    assert bad.excerpt.isprintable()


@given(st.lists(st.one_of(st.binary(max_size=40), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2))))
def test_jsonl_accounts_for_every_line_that_is_not_blank(items):
    encoded = [i.replace(b"\n", b" ") if isinstance(i, bytes) else json.dumps(i).encode() for i in items]
    found = jsonl(b"\n".join(encoded))
    if not b"\n".join(encoded):
        assert outcome(found) == [(0, "empty_file")]
        return
    first = {0: encoded[0].removeprefix(b"\xef\xbb\xbf")} if encoded else {}
    wanted = [n for n, data in enumerate(encoded, 1) if first.get(n - 1, data).strip()]
    assert [item.line for item in found] == wanted
    for item, number in ((item, item.line) for item in found):
        if isinstance(items[number - 1], dict):
            assert isinstance(item, Record)
            assert item.value == items[number - 1]


def test_parts_of_a_large_file_hold_every_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PART", 5_000)
    monkeypatch.setattr(readers, "_STEP", 700)
    path = tmp_path / "big.jsonl"
    path.write_text("".join(json.dumps({"n": n, "pad": "x" * (n * 37 % 3000)}) + "\n" for n in range(100)))
    assert len(cut_lines(str(path))) > 10
    found = records(Jsonl(path=str(path)))
    assert [(item.line, item.value["n"]) for item in found] == [(n + 1, n) for n in range(100)]


# CSV


def test_csv_texts_span_lines_and_carry_their_first_line():
    found = from_csv(b'\xef\xbb\xbftext,label\n"one\ntwo ""quoted""\nthree",a\nplain,b\r\n"x, y",c\n')
    assert [(i.line, i.value) for i in found] == [
        (2, {"text": 'one\ntwo "quoted"\nthree', "label": "a"}),
        (5, {"text": "plain", "label": "b"}),
        (6, {"text": "x, y", "label": "c"}),
    ]


def test_csv_wrong_number_of_fields():
    items = from_csv(b"a,b\n1,2\n1\n1,2,3\n\n3,4\n")
    assert outcome(items) == [(2, "ok"), (3, "wrong_fields"), (4, "wrong_fields"), (6, "ok")]


def test_csv_open_quote_costs_only_its_own_line():
    data = b'a,b\n1,2\n"open,3\n' + b"".join(b"%d,x\n" % n for n in range(500)) + b'"q",y\nlast,z\n'
    found = from_csv(data)
    assert Counter(kind for _, kind in outcome(found)) == {"ok": 503, "malformed_csv": 1}
    assert outcome(found)[1] == (3, "malformed_csv")


def test_csv_open_quote_at_the_end():
    assert outcome(from_csv(b'a,b\n1,2\n"open,3\n5,6\n')) == [(2, "ok"), (3, "malformed_csv"), (4, "ok")]


def test_csv_invalid_utf8_and_oversized_lines():
    data = b"a,b\n\xff,2\n" + b"x" * 5000 + b",1\n3,4\n"
    assert outcome(from_csv(data, 2000)) == [(2, "invalid_utf8"), (3, "oversized"), (4, "ok")]


def test_csv_without_a_usable_header_is_one_finding():
    assert outcome(from_csv(b"\xff\xff,b\n1,2\n")) == [(1, "broken_header")]
    assert outcome(from_csv(b"a,a\n1,2\n")) == [(1, "broken_header")]


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")), min_size=2, max_size=2)))
def test_csv_reads_back_whatever_csv_writes(rows):
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["one", "two"], *rows])
    found = from_csv(file.getvalue().encode())
    assert [list(item.value.values()) for item in found] == rows


@given(st.binary(max_size=300), st.integers(8, 64))
def test_csv_never_raises_and_ends(data, limit):
    for item in from_csv(b"a,b\n" + data, limit):
        assert isinstance(item, Record | Bad)


# compression and damage


@pytest.mark.parametrize("suffix", ["gz", "bz2", "zst"])
def test_compressed_files_and_what_is_left_of_truncated_ones(tmp_path, suffix):
    lines = [json.dumps({"text": f"row {n} " + str(hash(n) * 7919 ** (n % 9))}) for n in range(5000)]
    data = "\n".join(lines).encode()
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda d: pa.compress(d, codec="zstd", asbytes=True)}
    whole, cut = tmp_path / f"whole.jsonl.{suffix}", tmp_path / f"cut.jsonl.{suffix}"
    packed = pack[suffix](data)
    whole.write_bytes(packed)
    cut.write_bytes(packed[: len(packed) * 2 // 3])
    assert values(Jsonl(path=str(whole))) == [json.loads(line) for line in lines]
    *before, last = records(Jsonl(path=str(cut)))
    assert isinstance(last, Bad)
    assert last.reason.startswith("broken_file: ")
    assert last.line == len(before) + 1
    assert [item.value for item in before] == [json.loads(line) for line in lines[: len(before)]]


def test_parquet_is_cut_along_row_groups_and_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tilth.data.tables.PIECE_ROWS", 250)
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(1000)]}), tmp_path / "a.parquet", row_group_size=100)
    source = Parquet(path=str(tmp_path))
    assert len(source.pieces()) == 4
    assert [(i.line, i.value["text"]) for i in records(source)] == [(n + 1, f"t{n}") for n in range(1000)]


def test_damaged_parquet(tmp_path):
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(1000)]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-100])
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "d.parquet").write_bytes(data[:-100] + b"\xff" * 92 + data[-8:])  # a footer of no sense
    found = [
        (piece.name, outcome(list(s.records(piece)))) for s in [Parquet(path=str(tmp_path))] for piece in s.pieces()
    ]
    assert [name for name, _ in found] == ["a.parquet", "b.parquet", "c.parquet", "d.parquet"]
    assert [kinds for _, kinds in found[1:]] == [[(1, "broken_file")], [(1, "empty_file")], [(1, "broken_file")]]
    assert Parquet(path=str(tmp_path)).count() is None


def test_parquet_row_with_invalid_utf8_and_oversized_row(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe", b"x" * 5000, b"last"], pa.binary())
    text = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    found = records(Parquet(path=str(tmp_path / "a.parquet"), max_record_bytes=2000))
    assert outcome(found) == [(1, "ok"), (2, "invalid_utf8"), (3, "oversized"), (4, "ok")]


def test_a_parquet_row_is_as_large_as_its_own_values(tmp_path):
    names = pa.array([f"{n:04d}" * 10 for n in range(400)] + ["x" * 5000]).dictionary_encode()
    each = pa.array(range(len(names) + 1))
    nested = pa.ListArray.from_arrays(each, pa.StructArray.from_arrays([names], names=["name"]))
    large = pa.LargeListArray.from_arrays(each.cast("int64"), names)
    pq.write_table(pa.table({"name": names, "within": nested, "large": large}), tmp_path / "a.parquet")
    *good, last = records(Parquet(path=str(tmp_path / "a.parquet"), max_record_bytes=2000))
    expected = [f"{n:04d}" * 10 for n in range(400)]
    assert [item.value for item in good] == [{"name": x, "within": [{"name": x}], "large": [x]} for x in expected]
    assert last.reason.startswith("oversized: 15")


MEASURE = """
import resource, sys
from tilth.data.readers import Bad
from tilth.data.source import Csv, Jsonl
source = (Csv if sys.argv[1].endswith("csv") else Jsonl)(path=sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
list(source.peek())
before = peak()
found = [item for piece in source.pieces() for item in source.records(piece)]
print(sum(isinstance(i, Bad) for i in found), len(found), peak() - before)
"""


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_200_mb_record_is_never_held_in_memory(tmp_path, form):
    path = tmp_path / f"big.{form}"
    good = b'{"text": "good"}\n' if form == "jsonl" else b"good,1\n"
    with path.open("wb") as file:
        file.write(good if form == "jsonl" else b"text,label\n" + good)
        file.write(b'{"text": "' if form == "jsonl" else b'"')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' if form == "jsonl" else b'",1\n')
        file.write(good)
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    bad, total, grown = done.stdout.split()
    assert (int(bad), int(total)) == (1, 3)
    assert float(grown) < 64  # MiB, for a limit of 8


def test_csv_quote_left_open_holds_no_more_than_the_limit():
    rows = b"a,b\n" + b'"never closed,1\n' + b"word,2\n" * 30_000
    tracemalloc.start()
    kinds = Counter(type(item) for item in read_csv(io.BytesIO(rows), 1 << 14))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds == {Record: 30_000, Bad: 1}
    assert peak < 2 << 20
