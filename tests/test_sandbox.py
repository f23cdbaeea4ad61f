"""The sandbox: what a model wrote may compute, and nothing else."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from processes import until
from tilth.generate.sandbox import Limits, run_python

QUICK = Limits(seconds=1)


def tried(*lines):
    """A program that makes each attempt and prints what came of it."""
    attempts = "".join(
        f"try:\n    print({line!r}, {line})\nexcept Exception as e:\n    print('no', e)\n" for line in lines
    )
    return f"import ctypes, os, signal, socket, subprocess\n{attempts}"


def test_a_program_gives_its_output():
    outcome = run_python(
        "import sys\nprint(sum(map(int, input().split())), file=sys.stderr)\nprint('ä')", stdin="3 4\n"
    )
    assert (outcome.ok, outcome.stdout, outcome.stderr, outcome.why) == (True, "ä\n", "7\n", None)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def f(:", "failed: SyntaxError: invalid syntax"),
        ("raise ValueError('x')", "failed: ValueError: x"),
        ("import sys; sys.exit(3)", "failed: exit code 3"),
        ("import numpy", "failed: ModuleNotFoundError: No module named 'numpy'"),
        ("print('\\0'); eval('\\0')", "failed: SyntaxError: source code string cannot contain null bytes"),
        ("import ctypes; ctypes.string_at(0)", "killed: SIGSEGV"),
    ],
)
def test_a_program_that_fails_says_why(code, why):
    outcome = run_python(code)
    assert not outcome.ok
    assert outcome.why is not None
    assert outcome.why.startswith(why)


@pytest.mark.parametrize(
    ("code", "tests", "why"),
    [
        ("def double(x): return 2 * x", "assert double(2) == 4", None),
        ("def double(x): return x", "assert double(2) == 4", "failed: AssertionError"),
        ("def double(x): return x\nimport sys\nsys.exit(0)", "assert double(2) == 4", "unfinished"),
        ("print(open('main.py').read(), flush=True)\nimport os\nos._exit(0)", "assert False", "unfinished"),
        ("import os\ndef double(x): os._exit(0)", "assert double(2) == 4", "unfinished"),
        ("import atexit; atexit.register(print, 'bye')\ndef double(x): return 2 * x", "assert double(2) == 4", None),
    ],
)
def test_tests_must_run_to_their_end(code, tests, why):
    outcome = run_python(code, tests=tests)
    assert (outcome.why or "").partition(":")[0] == (why or "").partition(":")[0]
    assert outcome.ok == (why is None)
    assert "tests done" not in outcome.stdout


def test_the_same_program_gives_the_same_bytes():
    code = "print(hash('a'), {'b', 'c', 'd'}, object())\nraise ValueError(object())"
    assert run_python(code) == run_python(code)


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        outcome = run_python(
            tried(f"socket.create_connection(('127.0.0.1', {port}), 2)", "socket.create_connection(('1.1.1.1', 53), 2)")
        )
        socket.create_connection(("127.0.0.1", port), 5).close()  # from outside the jail it answers
    assert outcome.stdout == "no [Errno 101] Network is unreachable\n" * 2


@pytest.mark.parametrize("code", ["while True: pass", "import time\nwhile True: time.sleep(1)"], ids=["busy", "asleep"])
def test_an_endless_program_is_ended(code):
    outcome = run_python(code, limits=QUICK)
    assert outcome.why is not None
    assert outcome.why.startswith("time: ")


def test_memory_is_limited():
    outcome = run_python("bytearray(10 << 30)", limits=Limits(memory_mib=128))
    assert outcome.why == "memory: more than 128 MiB"
    kernel = tried("os.memfd_create('x')", "ctypes.CDLL(None).shmget(0, 4096, 0o1600)")
    assert run_python(kernel).stdout.splitlines()[-1].endswith(" -1")
    assert "no [Errno 1]" in run_python(kernel).stdout


@pytest.mark.parametrize(
    "code",
    [
        "f = open('x', 'wb')\nwhile True: f.write(b'0' * 100_000)",
        "n = 0\nwhile True:\n    n += 1\n    open(f'x{n}', 'wb').write(b'0' * 100_000)",
        "n = 0\nwhile True:\n    n += 1\n    open(f'x{n}', 'wb').close()",
    ],
    ids=["one big file", "many files", "many empty files"],
)
def test_what_it_writes_is_limited(code):
    outcome = run_python(code, limits=Limits(disk_mib=2))
    assert outcome.why is not None
    assert outcome.why.startswith("failed: OSError: [Errno 28] No space left on device")


def test_what_it_prints_is_limited():
    outcome = run_python("while True: print('x' * 1000)", limits=Limits(disk_mib=2))
    assert outcome.why == "output: more than 2 MiB"
    assert len(outcome.stdout) < 100_000


def alive(mark):
    """Processes of the machine that carry the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += [folder.name] if mark.encode() in (folder / "cmdline").read_bytes() else []
        except OSError:
            continue
    return found


def other(mark, code):
    """The statement by which a process becomes another program, which carries the mark."""
    return f"os.execv(sys.executable, ['x', '-S', '-c', {code!r}, {mark!r}])"


def test_a_fork_bomb_is_contained_and_leaves_nothing():
    count = (
        "n = 0\nwhile True:\n    try:\n        if not os.fork(): time.sleep(99)\n    except OSError: break\n    n += 1"
    )
    assert run_python(f"import os, time\n{count}\nprint(n)", limits=Limits(processes=3)).stdout == "2\n"
    mark = secrets.token_hex(8)
    busy = other(mark, "print(1, flush=True)\nwhile True: pass")
    bomb = f"if not os.fork(): {busy}"
    program = f"import os, sys\nwhile True:\n    try:\n        {bomb}\n    except OSError: pass"
    outcome = run_python(program, limits=QUICK)
    assert outcome.why is not None
    assert outcome.why.startswith("time: ")
    assert outcome.stdout.count("1") == 3
    assert until(lambda: not alive(mark), 10), "what is killed may take the kernel a moment"


def test_what_it_starts_ends_with_it():
    mark = secrets.token_hex(8)
    sleeper = other(mark, "import time; print('up', flush=True); time.sleep(600)")
    waits = "while not os.path.getsize(1): time.sleep(.01)"
    outcome = run_python(f"import os, sys, time\nif not os.fork():\n    os.setsid()\n    {sleeper}\n{waits}")
    assert outcome.stdout == "up\n"
    assert until(lambda: not alive(mark), 10), "what is killed may take the kernel a moment"


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    seen = run_python("import os; print(sorted(os.environ.items()))").stdout
    assert "secret" not in seen
    assert str(Path.home()) not in seen


def test_the_machines_files_are_not_there_and_what_is_there_cannot_be_written(tmp_path):
    (tmp_path / "id_rsa").write_text("a secret")
    hidden = (tmp_path / "id_rsa", Path(__file__), Path.home() / ".ssh", Path("/etc/passwd"), Path("/proc/1"))
    code = tried(*(f"os.path.exists({str(path)!r})" for path in hidden))
    assert run_python(code).stdout.count(" False\n") == len(hidden)
    outcome = run_python(tried(*(f"open({path!r}, 'w')" for path in ("/x", "/usr/lib/x", "/dev/x", f"{os.__file__}"))))
    assert outcome.stdout.count("no [Errno 30]") == 4


def test_it_has_no_power_over_other_processes_or_over_the_kernel():
    mine = os.getpid()
    kill = tried(*(f"os.kill({pid}, signal.{name})" for pid in (1, mine) for name in ("SIGKILL", "SIGINT", "SIGTERM")))
    assert run_python(f"{kill}\nprint('still here')").stdout.endswith("still here\n")
    outcome = run_python(
        tried(
            "os.setuid(0)",
            "ctypes.CDLL(None).mount(b'none', b'/box', b'tmpfs', 0, None)",
            "ctypes.CDLL(None).unshare(0x10000000)",
            "ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
            "os.chroot('/box')",
        )
    )
    assert all(line.startswith("no ") or line.endswith(" -1") for line in outcome.stdout.splitlines())
    assert len(outcome.stdout.splitlines()) == 5


def child(*arguments, **options):
    code = "from tilth.generate.sandbox import run_python; print(run_python('print(1)'))"
    return subprocess.run([*arguments, sys.executable, "-c", code], capture_output=True, text=True, **options)


def test_where_the_machine_gives_no_namespaces_nothing_is_run():
    if subprocess.run(["unshare", "-U", "-r", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare(1) to take permissions away")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set -sys_admin "$@"'
    done = child("unshare", "-U", "-r", "sh", "-c", forbid, "sh")
    assert done.returncode == 1
    assert "this machine does not give the sandbox" in done.stderr
    assert "Outcome" not in done.stdout


def test_a_user_without_rights_has_the_sandbox_too():
    python = Path(sys.executable).resolve()
    if os.geteuid() == 0 and not all(folder.stat().st_mode & 1 for folder in (python, *python.parents)):
        pytest.skip("other users cannot reach this Python")
    done = child(user=65534 if os.geteuid() == 0 else None, cwd="/")
    assert "ok=True" in done.stdout, done.stderr


def test_many_at_a_time():
    found = {}

    def run(number):
        found[number] = run_python(f"import threading\nprint({number})").stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {number: f"{number}\n" for number in range(16)}


def mbpp(shared, count=None):
    lines = (shared / "data/code/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


@pytest.mark.long
def test_reference_solutions_pass_and_others_fail(shared):
    rows = mbpp(shared, 12)
    for row in rows:
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        assert run_python(row["code"], tests=tests).ok, row["task_id"]
    for row, wrong in itertools.pairwise(rows):
        assert not run_python(wrong["code"], tests="\n".join(row["test_list"])).ok


@pytest.mark.slow
def test_all_reference_solutions_pass(shared):
    """One of them takes more than five seconds, which is the machine's business."""
    rows = mbpp(shared)
    failed = {}
    for row in rows:
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        if not (outcome := run_python(row["code"], tests=tests)).ok:
            failed[row["task_id"]] = outcome.why
    assert len(rows) == 964
    assert set(failed) <= {"mbpp/123"}
