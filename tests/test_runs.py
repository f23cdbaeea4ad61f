"""Runs: what is reused, what runs again and why; one run of a directory at a time; any storage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import tilth
from object_stores import gcs, put, s3
from tilth import ui
from tilth.content import files_identity
from tilth.errors import RunLocked, StageError, StorageError
from tilth.lock import exclusive
from tilth.paths import remote_files
from tilth.planning import plan_table
from tilth.recipe import Recipe, load
from tilth.runs import Run
from tilth.storage import Store

HERE = Path(__file__).parent


def recipe(*overrides: str) -> Recipe:
    stages = {
        "one": {"kind": "stages:Number", "value": 1},
        "two": {"kind": "stages:Number", "value": 2},
        "sum": {"kind": "stages:Sum", "left": "@one", "right": "@two"},
        "twice": {"kind": "stages:Sum", "left": "@sum", "right": "@sum"},
    }
    return load({"name": "sums", "stages": stages}, overrides)


def states(run: Run, *overrides: str) -> dict[str, str]:
    return {step.name: "reuse" if step.reused else step.why for step in run.plan(recipe(*overrides))}


def test_a_second_run_reuses_everything(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.execute(recipe())["twice"].metrics == {"value": 6}
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("stages/*/*/*")}
    assert run.execute(recipe())["twice"].metrics == {"value": 6}
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("stages/*/*/*")}
    assert set(states(run).values()) == {"reuse"}


def test_a_changed_parameter_runs_exactly_what_depends_on_it_and_says_why(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.execute(recipe())
    assert states(run, "stages.two.value=5") == {
        "one": "reuse",
        "two": "value: 2 → 5",
        "sum": "@two changed",
        "twice": "@sum changed",
    }
    assert run.execute(recipe("stages.two.value=5"))["twice"].metrics == {"value": 12}
    assert set(states(run).values()) == {"reuse"}, "the earlier result is still there"
    assert states(run, "stages.sum.plus=1")["sum"] == "plus: 0 → 1"


def test_execution_is_not_identity(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.execute(recipe())
    assert set(states(run, "stages.one.workers=8", "stages.sum.seconds=0.5").values()) == {"reuse"}


def test_a_data_file_counts_by_content_not_by_path(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("same")
    second.write_text("same")
    run = Run(tmp_path / "run")
    run.execute(recipe(f"stages.one.file={first}"))
    assert set(states(run, f"stages.one.file={second}").values()) == {"reuse"}
    second.write_text("other")
    assert states(run, f"stages.one.file={second}")["one"].startswith("file: ")


def test_a_failed_stage_keeps_what_was_finished_and_is_not_taken_for_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(RuntimeError, match="told to fail"):
        run.execute(recipe("stages.sum.fails=true"))
    expected = "it was begun with this fingerprint and not finished: it resumes"
    assert states(run) == {"one": "reuse", "two": "reuse", "sum": expected, "twice": "it has not run here yet"}
    assert run.execute(recipe())["twice"].metrics == {"value": 6}


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_stage_whose_files_are_gone_or_cut_runs_again_and_says_so(tmp_path: Path, place: str) -> None:
    run = Run(tmp_path if place == "local" else f"memory://damaged/{tmp_path.name}")
    before = run.execute(recipe())
    run.store.sub("stages/one").remove(f"{before['one'].fingerprint[:16]}/value")
    before["sum"].store.write("value", b"")
    before["sum"].store.write("more", b"what a person laid there does not count")
    assert states(run) == {
        "one": "it was finished, but value is missing",
        "two": "reuse",
        "sum": "it was finished, but value has 0 bytes, not 1",
        "twice": "reuse",
    }
    assert run.execute(recipe())["twice"].metrics == {"value": 6}
    assert before["one"].store.read("value") == b"1"
    assert sorted(before["sum"].store.list()) == ["artifact.json", "started", "value"]
    assert set(states(run).values()) == {"reuse"}


def test_killed_while_a_stage_runs_the_next_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe("stages.sum.seconds=60").dump_yaml())
    command = [sys.executable, "-m", "tilth", "run", str(file), "--out", str(tmp_path / "run")]
    running = subprocess.Popen(command, cwd=HERE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/stages/sum/*/started")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"pid {running.pid}" in second.stderr
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert Run(tmp_path / "run").execute(recipe())["twice"].metrics == {"value": 6}


def test_the_exit_codes_and_json_of_the_command_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(recipe().dump_yaml())
    bad.write_text(recipe().dump_yaml().replace("value: 1", "valu: 1").replace("'@two'", "'@tow'"))

    def tilth_(*words: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "tilth", *words, "--json"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()] if "run" in words else (
            json.loads(done.stdout)
        )

    code, answer = tilth_("check", str(bad))
    assert code == 2
    assert {(problem["where"].split(": ")[1], problem["mend"]) for problem in answer["problems"]} >= {
        ("stages.one.valu", 'did you mean "value"?')
    }
    code, answer = tilth_("plan", str(good))
    assert (code, [row["stage"] for row in answer]) == (0, ["one", "two", "sum", "twice"])
    code, events = tilth_("run", str(good), "--out", str(tmp_path / "run"))
    assert code == 0
    assert events[-1]["metrics"]["twice"] == {"value": 6}
    code, events = tilth_(
        "run", str(good), "--out", str(tmp_path / "run"), "stages.sum.plus=1", "stages.sum.fails=true"
    )
    assert code == 1
    code, answer = tilth_("show", str(tmp_path / "run"))
    assert {row["stage"]: row["state"] for row in answer["stages"]}["sum"] == "unfinished"
    assert tilth_("show", str(tmp_path / "nowhere"))[0] == 1


def spoken(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tilth", *words], cwd=HERE, capture_output=True, text=True)


def test_answers_go_to_stdout_whatever_the_recipe_holds(tmp_path: Path) -> None:
    good, out = tmp_path / "good.yaml", str(tmp_path / "run")
    good.write_text(recipe().dump_yaml())
    Run(out).execute(recipe())
    override = "stages.one.note=[/red] [bold]"
    for words in (("plan", override, str(good), "--out", out), ("show", out)):
        if words[0] == "show":
            assert spoken("run", "--out", out, str(good), override).returncode == 0
        done = spoken(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert "[/red]" in done.stdout


def test_tables_break_long_names_and_never_cut_them(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    name, seen = "a_stage_of_a_name_that_nobody_should_have_to_guess", {}
    row = {"stage": name, "kind": "sft", "reused": False, "why": "stages.data.rows was 12, is 24 " * 3, "estimate": {}}
    for columns in ("50", None):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        ui.answer(plan_table([row]))
        seen[columns] = capsys.readouterr().out
    assert name in seen[None]
    assert max(map(len, seen["50"].splitlines())) <= 50
    cells = [line.split("│")[1].strip() for line in seen["50"].splitlines() if line.startswith("│")]
    assert "".join(cells) == name


def test_who_stops_reading_sees_no_traceback(tmp_path: Path) -> None:
    Run(tmp_path).execute(recipe())
    command = [sys.executable, "-m", "tilth", "show", str(tmp_path), "--json"]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as showing:
        assert showing.stdout is not None
        assert showing.stderr is not None
        showing.stdout.close()
        assert showing.stderr.read() == b""


def test_an_error_of_a_stage_is_json_too_and_names_its_place(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(recipe("stages.sum.fails=true").dump_yaml())
    done = spoken("run", str(good), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1]) == {"error": "told to fail", "type": "RuntimeError"}
    assert "stages.py" in done.stderr


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}'])
@pytest.mark.parametrize("file", ["plan.json", "stages/one/*/artifact.json"])
def test_a_damaged_record_is_named(tmp_path: Path, file: str, content: str) -> None:
    run = Run(tmp_path)
    run.execute(recipe())
    (damaged,) = tmp_path.glob(file)
    damaged.write_text(content)
    with pytest.raises(StorageError, match=f"{damaged.name} is not .*; move it away"):
        run.current()
    damaged.unlink()
    assert run.execute(recipe())["twice"].metrics == {"value": 6}


@pytest.mark.parametrize("out", ["", "nosuch://bucket/run"])
def test_a_place_that_cannot_be_is_refused(out: str) -> None:
    with pytest.raises(StorageError, match=r"names no directory|cannot open nosuch"):
        Run(out).current()


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="holds no run"):
        Run(tmp_path / "file").current()


def test_a_plan_against_a_file_is_that_of_a_new_run_and_running_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    run = Run(tmp_path / "file")
    assert set(states(run).values()) == {"it has not run here yet"}
    with pytest.raises(StorageError, match=r"cannot write to .*file: File exists; choose another --out"):
        run.execute(recipe())


@pytest.mark.parametrize("name", ["a::b", "ü ñ[1]*?#%20 '\"x", "file:x"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / name)
    run.execute(recipe())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert set(states(run).values()) == {"reuse"}


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", ""])
def test_a_store_out_of_reach_is_said_without_a_traceback(tmp_path: Path, endpoint: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe().dump_yaml())
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
    known = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment = {**known, **(keys if endpoint else {}), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "tilth", "plan", str(file), "--out", "s3://tilth-nowhere/run"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("StorageError: cannot reach s3://tilth-nowhere/run/stages/")
    assert "Traceback" not in done.stderr


def test_a_user_without_a_name_may_hold_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    store, named = Store.at(tmp_path), f"of {os.getuid()} on"
    with exclusive(store), pytest.raises(RunLocked, match=named), exclusive(store):
        pass


def test_a_lock_in_memory_storage_refuses_a_second_holder_and_is_given_back() -> None:
    store = Store.at("memory://locks/one")
    with exclusive(store), pytest.raises(RunLocked, match=f"pid {os.getpid()}"), exclusive(store):
        pass
    with exclusive(store):
        assert store.exists("LOCK")
    assert not store.exists("LOCK")


def test_a_run_that_lost_its_lease_stops_and_leaves_it_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilth.lock.RENEW_SECONDS", 0.05)
    store = Store.at("memory://locks/lost")

    def overtaken() -> None:
        with exclusive(store):
            for _ in range(200):  # a renewal that was under way may overwrite it once
                store.write_json("LOCK", {"token": "another", "renewed": time.time()})
                time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        overtaken()
    assert store.read_json("LOCK")["token"] == "another"


def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LEASE", 1.0), ("RENEW", 0.2), ("LOOK", 0.05), ("SETTLE", 0.0)):
        monkeypatch.setattr(f"tilth.lock.{name}_SECONDS", seconds)


@pytest.mark.parametrize("ahead", [-1000, 0, 1000])  # of its holder's clock, seen from here
def test_a_dead_holders_lease_is_taken_over(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """The next run waits for that, as it does when it is tried again just after its predecessor was killed."""
    hasty(monkeypatch)
    store = Store.at("memory://locks/dead")
    store.write_json("LOCK", {"token": "dead", "renewed": time.time() + ahead})
    start = time.monotonic()
    with exclusive(store), pytest.raises(RunLocked), exclusive(store):
        assert time.monotonic() - start >= 1.0
    assert not store.exists("LOCK")


@pytest.mark.parametrize("ahead", [-1000, 0, 1000])
def test_a_living_holders_lease_is_not_taken_whatever_its_clock_says(
    monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    hasty(monkeypatch)
    store, over = Store.at("memory://locks/living"), threading.Event()

    def renewing() -> None:
        while not over.wait(0.2):
            store.write_json("LOCK", {"token": "living", "pid": 77, "renewed": time.time() + ahead})

    store.write_json("LOCK", {"token": "living", "renewed": time.time() + ahead})
    holder = threading.Thread(target=renewing)
    holder.start()
    try:
        with pytest.raises(RunLocked, match="in use by pid 77"), exclusive(store):
            pass
    finally:
        over.set()
        holder.join()
    assert store.read_json("LOCK")["token"] == "living"
    store.remove("LOCK")


def test_what_was_written_anew_is_fetched_anew_and_one_copy_of_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the weights of a stage that was deleted and run again with the same fingerprint."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, kept = Store.at("memory://fetched/stage"), tmp_path / f"tilth-{os.getuid()}"
    for data in (b"first", b"again"):
        store.remove("model")
        store.write("model/weights", data)
        assert (store.fetch("model") / "weights").read_bytes() == data
        assert store.fetch("model") == store.fetch("model")
    assert len(list(kept.iterdir())) == 2

    def raced(self: Any, path: str, local: str, **more: Any) -> None:
        loser(self, path, local, **more)
        shutil.copytree(Path(local), kept / store.sub("model")._state())

    loser = MemoryFileSystem.get
    monkeypatch.setattr(MemoryFileSystem, "get", raced)
    store.write("model/weights", b"third")
    assert store.fetch("model").is_dir()
    assert len(list(kept.iterdir())) == 3, "who comes second keeps no copy of its own"


@pytest.mark.parametrize("planted", ["writable", "linked"])
def test_what_another_user_may_have_put_there_is_not_taken_for_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """The name can be foretold, and temporary folders are everyone's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, kept = Store.at("memory://planted/stage"), tmp_path / f"tilth-{os.getuid()}"
    store.write("model/weights", b"ours")
    place = kept if planted == "writable" else tmp_path / "elsewhere"
    (place / store.sub("model")._state()).mkdir(parents=True)
    (place / store.sub("model")._state() / "weights").write_bytes(b"theirs")
    if planted == "writable":
        kept.chmod(0o777)
    else:
        kept.symlink_to(place)
    with pytest.raises(StorageError, match=r"no folder that this user alone can write to.*set TMPDIR"):
        store.fetch("model")
    kept.unlink() if kept.is_symlink() else shutil.rmtree(kept)
    assert (store.fetch("model") / "weights").read_bytes() == b"ours"
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_lease_whose_creation_was_not_confirmed_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the PUT is lost, and the client's second try finds that something is there."""
    sent = MemoryFileSystem.pipe_file

    def twice(self: Any, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        sent(self, path, value, mode=mode, **more)
        if mode == "create":
            sent(self, path, value, mode=mode, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", twice)
    store = Store.at("memory://locks/unconfirmed")
    with exclusive(store):
        assert store.exists("LOCK")
    assert not store.exists("LOCK")


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    store.write("file", b"before")

    def half(handle: Any) -> None:
        handle.write(b"half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        store.write_with("file", half)
    assert store.read("file") == b"before"
    assert store.list() == ["file"]


def test_a_full_disk_is_said_and_leaves_the_earlier_data(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        store = Store.at(small)
        store.write("first", b"x" * 1000)
        with pytest.raises(StorageError, match="No space left"):
            store.write("second", b"x" * 1_000_000)
        assert store.read("first") == b"x" * 1000
        assert store.list() == ["first"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        Run(tmp_path).current()


def test_a_stage_must_return_its_own_artifact(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run\\(\\) must return"):
        Run(tmp_path).execute(Recipe(name="x", stages={"bad": _Stranger()}))


class _Stranger(tilth.Stage):
    def run(self, out, inputs):
        from dataclasses import replace

        return replace(out.artifact(), fingerprint="another")


# --- an object store --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[s3, gcs])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket of a server on loopback."""
    with request.param() as uri:
        yield uri


def test_files_on_an_object_store_that_changed_meanwhile_are_seen(bucket: str) -> None:
    put(bucket, "given/a.txt", b"one")
    both = (f"{bucket}/given", f"{bucket}/given/*.txt")
    seen = [[files_identity(where) for where in both]]
    for name, data in (("a.txt", b"two"), ("b.txt", b"three"), ("a.txt", b"longer")):
        put(bucket, f"given/{name}", data)
        seen.append([files_identity(where) for where in both])
    assert all(directory == pattern for directory, pattern in seen)
    assert len({directory for directory, _ in seen}) == 4
    assert [name for _, name in remote_files(both[0])] == ["a.txt", "b.txt"]


def test_an_object_store_shows_what_others_write(bucket: str) -> None:
    store = Store.at(f"{bucket}/shared")
    put(bucket, "shared/begun", b"1")
    assert store.list() == ["begun"]
    put(bucket, "shared/artifact.json", b'{"value": 1}')
    assert store.exists("artifact.json")
    assert store.read_json("artifact.json") == {"value": 1}
    assert store.sizes() == {"begun": 1, "artifact.json": 12}
    put(bucket, "shared/begun", b"longer")
    with store.open("begun") as handle:
        assert handle.read() == b"longer"
    for weights in (b"first", b"again"):
        put(bucket, "shared/model/weights", weights)
        assert (store.fetch("model") / "weights").read_bytes() == weights


class _Plain(MemoryFileSystem):
    """Takes no option that it does not know."""

    def __init__(self) -> None:
        super().__init__()


def test_a_filesystem_that_knows_nothing_of_listings_holds_a_store() -> None:
    fsspec.register_implementation("tilthplain", _Plain, clobber=True)
    store = Store.at("tilthplain://kept")
    store.write("a", b"1")
    assert (type(store.fs), store.list(), store.read("a")) == (_Plain, ["a"], b"1")


def test_a_run_lives_on_an_object_store(bucket: str) -> None:
    run = Run(f"{bucket}/run")
    assert run.execute(recipe())["twice"].metrics == {"value": 6}
    assert set(states(run).values()) == {"reuse"}
    assert not run.store.exists("LOCK")
    with exclusive(run.store), pytest.raises(RunLocked):
        run.execute(recipe())


def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    nowhere = bucket.replace("test", "nowhere")
    with pytest.raises(StorageError, match=rf"cannot write to {nowhere}/run/LOCK: "):
        Run(f"{nowhere}/run").execute(recipe())


def test_sources_of_every_form_are_read_from_an_object_store(bucket: str) -> None:
    import gzip

    lines = b'{"text": "one"}\n{"text": "two"}\n'
    files = {"a.csv": b"text\none\ntwo\n", "b.jsonl": lines, "c.jsonl.gz": gzip.compress(lines), "d[1].jsonl": lines}
    for name, data in files.items():
        put(bucket, f"raw/{name}", data)
        source = {"kind": name.split(".")[1], "path": f"{bucket}/raw/{name}"}
        data_stage = {"kind": "data", "row": "text", "source": source, "resources": {"workers": 0}}
        done = tilth.run({"name": "s3", "stages": {"data": data_stage}}, f"{bucket}/read")["data"]
        assert (done.counts["inputs"], done.counts["accepted"]) == (2, 2), name


def test_the_ledger_and_its_dataset_live_on_an_object_store(bucket: str, tmp_path: Path) -> None:
    from faulty import Numbered
    from helpers import labelled, write_dataset
    from tilth.data.chain import Chain, cut
    from tilth.data.engine import run_units
    from tilth.data.finish import finish
    from tilth.data.ledger import Ledger
    from tilth.data.transform import Resources

    source = write_dataset(Store.at(tmp_path / "source"), labelled(50))
    store = Store.at(f"{bucket}/augmented")
    ledger = Ledger(store, "test", cut(source, 10))
    run_units(Chain(source.store, "labelled", (Numbered(),)), ledger, Resources(workers=0), "test")
    done = finish(ledger, "labelled")
    assert len(list(done.rows())) == 100
    assert [name for name in store.list() if name != "ledger"] == ["data", "dataset.json"]
    assert len(list(done.local_files())) == 1
