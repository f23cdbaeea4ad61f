"""Jobs: what is refused before anything is sent, and submitting, following, stopping and resuming over real HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests

from job_server import JobApi
from tilth.cli import main
from tilth.errors import ClusterError, RecipeError
from tilth.jobs.spec import JobSpec, load_spec

RECIPE = """\
name: small
stages:
  data:
    kind: data
    row: labelled
    source: {kind: inline, rows: [{text: one, label: a}, {text: two, label: b}]}
    resources: {workers: 0}
"""
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    server = JobApi(tmp_path_factory.mktemp("jobs"), TOKEN)
    yield server
    server.close()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe and a spec, worked in; the token lies in a file of the user's."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / ".rayignore").write_text("run\ntoken\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards, whatever is set meanwhile
        monkeypatch.delenv(name)
    return tmp_path


def write_spec(project, **fields):
    given = {"name": "small", "recipe": "recipe.yaml", "out": str(project / "run"), "packages": []} | fields
    path = project / "spec.yaml"
    path.write_text(json.dumps(given))
    return str(path)


def found(project, **fields):
    with pytest.raises(RecipeError) as raised:
        load_spec(write_spec(project, **fields))
    return str(raised.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"out": "runs/x"}, "goes with the job; give a URI"),
        ({"recipe": "../recipe.yaml"}, "outside the folder that travels"),
        ({"packages": ["nowhere"]}, "no directory nowhere"),
        ({"retry": 1}, 'did you mean "retries"'),
        ({"env": {"HF_TOKEN": "abc"}}, "secrets: {HF_TOKEN: env}"),
        ({"env": {"MODEL": "hf_" + "a" * 34}}, "looks like a secret"),
        ({"env": {"DATABASE": "postgres://me:pass@host/db"}}, "looks like a secret"),
        ({"overrides": ["stages.x.key=sk-" + "a" * 40]}, "looks like a secret"),
        ({"env": {"OPENAI_APIKEY": "hunter2hunter2"}}, "env.OPENAI_APIKEY: looks like a secret"),
        ({"env": {"DB_PASS": "hunter2"}}, "env.DB_PASS: looks like a secret"),
        ({"overrides": ["stages.x.api_key=hunter2hunter2"]}, "overrides.0: looks like a secret"),
        ({"overrides": ["stages.x={kind: y, generator: {token: hunter2}}"]}, "overrides.0: looks like a secret"),
        ({"out": "s3://user:pw@bucket/run"}, "out: looks like a secret"),
        ({"out": "s3://user:p/w@bucket/run"}, "out: looks like a secret"),
        ({"env": {"RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE": "1"}}, "run code that lies in data files"),
        ({"secrets": {"HF_TOKEN": "hf_value"}}, "secrets.HF_TOKEN"),
        ({"overrides": ["stages.data.rows=x"]}, "stages.data.rows"),
    ],
)
def test_what_cannot_work_or_would_show_a_secret_is_refused_before_anything_is_sent(project, fields, said):
    assert said in found(project, **fields)


def test_what_is_no_secret_passes(project):
    harmless = {"TOKENIZERS_PARALLELISM": "false", "SSH_KEY": "/run/keys/id", "HF_ENDPOINT": "https://mirror/x"}
    spec = load_spec(write_spec(project, env=harmless, secrets={"HF_TOKEN": "env", "X": "/run/x"}), ["hours=0.5"])
    assert spec.environment() == harmless | {"TILTH_SECRETS": "HF_TOKEN=env,X=/run/x", "TILTH_TIME_LIMIT": "1800"}
    assert spec.entrypoint == f"python -m tilth run recipe.yaml --out {project / 'run'}"


def test_no_limit_is_so_short_that_it_is_none(project):
    assert load_spec(write_spec(project, hours=0.0001)).environment()["TILTH_TIME_LIMIT"] == "1"


@pytest.mark.parametrize(
    "override",
    ["x.generator.api_key_env=OPENAI_API_KEY", "x.sampling.max_tokens=64", "x.columns={key: id}", "x.token=null",
     "x.base_url=http://host:8000/v1@2", "x.key=name"],
)  # fmt: skip
def test_an_override_that_only_names_or_counts_is_no_secret(project, override):
    spec = JobSpec(name="small", recipe="recipe.yaml", out="s3://bucket/run", packages=(), overrides=(override,))
    assert spec.check() == []


def test_an_upload_that_ray_would_refuse_names_its_largest_files(project, monkeypatch):
    from tilth.jobs.upload import Upload

    (project / "weights.bin").write_bytes(b"x" * 5000)
    (project / "notes.txt").write_bytes(b"x" * 300)
    (project / "kept.log").write_bytes(b"x" * 9000)
    (project / ".gitignore").write_text("*.log\n")
    whole = Upload.of(project)
    assert {path.name for path in whole.files} == {
        "weights.bin",
        "notes.txt",
        "recipe.yaml",
        ".gitignore",
        ".rayignore",
    }
    assert whole.problem(10_000) is None
    said = str(whole.problem(4000))
    assert said.index("weights.bin (4.9 KiB)") < said.index("notes.txt (300 bytes)")
    assert ".rayignore" in said
    (project / ".rayignore").write_text("weights.bin\n")
    assert Upload.of(project).problem(4000) is None
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # as Ray then sends it
    assert "kept.log (8.8 KiB)" in str(Upload.of(project).problem(4000))


def test_what_kubernetes_makes_secrets_of_does_not_travel_with_a_job_from_here(project, root):
    """The README has people write HF_TOKEN and the like into secrets.env, in the folder that they submit from."""
    from tilth.jobs.upload import Upload

    assert "--from-env-file=secrets.env" in (root / "cluster/README.md").read_text()
    for name in (".gitignore", ".rayignore"):
        (project / name).write_bytes((root / name).read_bytes())
    (project / "secrets.env").write_text("HF_TOKEN=x")
    names = {path.name for path in Upload.of(project).files}
    assert "recipe.yaml" in names
    assert "secrets.env" not in names


def test_submit_runs_the_recipe_there_and_a_second_submit_attaches(api, project, root, capfd):
    spec = write_spec(project, packages=[str(root / "platform/tilth")])
    assert main(["submit", spec, "--address", api.address]) == 0
    first = capfd.readouterr()
    assert (project / "run" / "report.html").exists()
    before, uploaded = set(api.jobs), len(api.puts)
    assert main(["submit", spec, "retries=5", "--address", api.address]) == 0
    second = capfd.readouterr()
    assert set(api.jobs) == before
    assert len(api.puts) == uploaded
    assert "nothing is submitted twice" in second.err
    assert "data: done" in first.out
    assert "data: done" in second.out


def test_what_was_done_some_time_ago_runs_again_and_resume_does_not_wait_for_that(api, project):
    from tilth.jobs.follow import LATELY_SECONDS, Request, to_the_end

    jobs, entry = server(api), 'python -c "print(1)"'
    request = Request("daily", {"entrypoint": entry, "metadata": {"tilth": "daily"}}, retries=0)

    def tried():
        return [job_id for job_id in api.jobs if job_id.startswith("daily")]

    for _ in range(2):
        assert to_the_end(jobs, request, str) == 0
        assert tried() == ["daily"], "the answer to the first may have been lost"
    api.jobs["daily"]["ended"] -= LATELY_SECONDS
    assert to_the_end(jobs, request, str) == 0
    assert tried() == ["daily", "daily-2"]
    assert main(["jobs", "resume", "daily", "--address", api.address]) == 0
    assert tried() == ["daily", "daily-2", "daily-3"]
    api.jobs["daily-3"]["process"] = subprocess.Popen(["sleep", "60"])
    try:
        assert main(["jobs", "resume", "daily", "--address", api.address]) == 1
    finally:
        api.jobs["daily-3"]["process"].kill()
    assert tried() == ["daily", "daily-2", "daily-3"]
    del api.jobs["daily-2"]  # as who deletes jobs does
    assert main(["jobs", "resume", "daily", "--address", api.address]) == 0
    assert tried() == ["daily", "daily-3", "daily-4"]


def test_what_python_compiles_meanwhile_makes_no_new_job(project):
    from tilth.jobs.commands import requested

    package = project / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    spec = load_spec(write_spec(project, packages=[str(package)]))
    before = requested(spec)
    for folder in (project, package):
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert requested(spec) == before
    assert before.arguments["runtime_env"]["excludes"] == ["__pycache__"]
    (package / "__init__.py").write_text("changed = True\n")
    assert requested(spec).id != before.id


def server(api):
    from tilth.jobs.server import JobServer

    return JobServer(api.address)


def test_the_log_is_whole_and_once_though_the_line_is_cut(api, project, capsys):
    from tilth.jobs.follow import follow

    jobs = server(api)
    code = "import time\nfor i in range(12): print('line', i, flush=True); time.sleep(0.25)"
    jobs.submit("talker", entrypoint=f'python -c "{code}"')
    said: list[str] = []
    cuts = [threading.Timer(at, api.hang_up) for at in (0.8, 2.0)]
    away = [threading.Timer(at, setattr, (api, "away", on)) for at, on in ((2.1, True), (3.0, False))]
    for timer in cuts + away:
        timer.start()
    job = follow(jobs, "talker", said.append)
    assert job.status == "SUCCEEDED"
    assert "".join(said) == "".join(f"line {i}\n" for i in range(12))
    assert "connected again" in capsys.readouterr().err


def test_a_head_whose_tables_are_out_of_reach_for_a_moment_is_not_given_up(api, project, capsys):
    """Its dashboard answers 500 while the GCS is started anew; the job runs on all the same."""
    from tilth.jobs.follow import follow

    jobs = server(api)
    jobs.submit("patient", entrypoint='python -c "import time; time.sleep(2)"')
    api.away = 500
    threading.Timer(1.5, setattr, (api, "away", False)).start()
    assert follow(jobs, "patient", str).status == "SUCCEEDED"
    assert "connection lost (the head at" in capsys.readouterr().err


def test_what_fails_is_submitted_again_up_to_its_retries(api, project):
    from tilth.jobs.follow import Request, exit_code, follow, to_the_end

    jobs, mark = server(api), project / "mark"
    code = f"import pathlib, sys; p = pathlib.Path('{mark}'); n = len(p.read_text()) if p.exists() else 0; "
    code += "p.write_text('x' * (n + 1)); sys.exit(0 if n == 2 else 9)"
    request = Request("flaky", {"entrypoint": f'python -c "{code}"', "metadata": {"tilth": "flaky"}}, retries=1)
    assert to_the_end(jobs, request, str) == 9
    assert to_the_end(jobs, request, str) == 0
    assert [job_id for job_id in api.jobs if job_id.startswith("flaky")] == ["flaky", "flaky-2", "flaky-3"]
    jobs.submit("bad-recipe", entrypoint='python -c "raise SystemExit(2)"')
    assert exit_code(follow(jobs, "bad-recipe", str)) == 2
    request = Request("worse", {"entrypoint": 'python -c "raise SystemExit(2)"', "metadata": {}}, retries=3)
    assert to_the_end(jobs, request, str) == 2
    assert "worse-2" not in api.jobs


def test_what_a_new_head_has_never_heard_of_is_submitted_again_as_a_retry(project, tmp_path_factory, capsys):
    from tilth.jobs.follow import Request, to_the_end

    heads = JobApi(tmp_path_factory.mktemp("heads"), TOKEN)
    mark = project / "begun"
    code = f"import pathlib, time; p = pathlib.Path('{mark}'); n = p.exists(); p.touch(); time.sleep(0 if n else 60)"
    travels = {"working_dir": str(project)}
    arguments = {"entrypoint": f'python -c "{code}"', "runtime_env": travels, "metadata": {"tilth": "kept"}}

    def lost():
        while not mark.exists():
            time.sleep(0.05)
        heads.away = True
        heads.replaced()
        time.sleep(1)
        heads.away = False

    try:
        losing = threading.Thread(target=lost)
        losing.start()
        assert to_the_end(server(heads), Request("kept", arguments, retries=1), str) == 0
        losing.join()
        assert list(heads.jobs) == ["kept"]
        assert len(heads.puts) == 2, "what travels is sent to the new one too"
        assert (
            "knows no job 'kept'; `tilth jobs list` names them; submitting it again, 1 more" in capsys.readouterr().err
        )
        mark.unlink()
        losing = threading.Thread(target=lost)
        losing.start()
        heads.jobs["kept"]["ended"] = 0
        with pytest.raises(ClusterError, match="knows no job 'kept-2'"):
            to_the_end(server(heads), Request("kept", arguments, retries=0), str)
        losing.join()
    finally:
        heads.close()


def test_a_head_that_is_away_when_a_job_is_to_begin_is_waited_for(api, project, monkeypatch):
    from tilth.jobs import follow

    monkeypatch.setattr("tilth.jobs.server.LONGEST_PAUSE", 0.0)  # the patience of one request
    monkeypatch.setattr(follow, "FIRST_PAUSE", 0.2)
    jobs = server(api)
    api.away = True
    threading.Timer(1.0, setattr, (api, "away", False)).start()
    request = follow.Request("late", {"entrypoint": 'python -c "print(1)"', "metadata": {"tilth": "late"}}, retries=0)
    assert follow.to_the_end(jobs, request, str) == 0


def test_ctrl_c_before_a_head_has_answered_says_how_to_stop_what_it_may_have_begun(api, project, capsys, monkeypatch):
    spec = write_spec(project, recipe="recipe.yaml", out=str(project / "left"))

    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("requests.Session.send", _after_version(cut))
    assert main(["submit", spec, "--address", api.address]) == 130
    said = capsys.readouterr().err
    assert "detached; if small-" in said
    assert "was submitted, or tried again, it goes on. Follow it: tilth jobs logs small-" in said
    assert f"tilth jobs stop small-{said.partition('tilth jobs stop small-')[2][:12]} --address {api.address}" in said


def _after_version(cut):
    """Requests as they are sent, until one is not for the server's version."""
    send = requests.Session.send

    def sent(self, request, **options):
        return (send if request.url.endswith("/api/version") else cut)(self, request, **options)

    return sent


def test_a_token_is_asked_for_and_a_wrong_one_refused(api, project, monkeypatch):
    (project / "token").chmod(0o644)
    assert server(api).jobs() is not None
    assert (project / "token").stat().st_mode & 0o077 == 0
    (project / "token").write_text("wrong")
    with pytest.raises(ClusterError, match="is not the cluster's"):
        server(api)
    (project / "token").unlink()
    with pytest.raises(ClusterError, match="none is held here"):
        server(api)


def test_an_address_where_no_server_is_says_what_to_do(project, capsys):
    assert main(["jobs", "list", "--address", "http://127.0.0.1:9"]) == 1
    assert "no job server answers at http://127.0.0.1:9" in capsys.readouterr().err
    assert main(["jobs", "list", "--address", "ray://127.0.0.1:9"]) == 1
    assert "give http://HOST:8265" in capsys.readouterr().err


def test_ctrl_c_detaches_and_the_job_is_stopped_and_resumed_by_name(api, project, capsys):
    jobs = server(api)
    jobs.submit("sleeper", entrypoint='python -c "import time; print(1, flush=True); time.sleep(60)"',
                metadata={"tilth": "sleeper", "entrypoint_num_cpus": "1.0"})  # fmt: skip
    command = [sys.executable, "-m", "tilth", "jobs", "logs", "sleeper", "--address", api.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heeding)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "detached; sleeper goes on" in said
    assert f"tilth jobs stop sleeper --address {api.address}" in said
    assert api.details("sleeper")["status"] == "RUNNING"
    address = ["--address", api.address]
    assert main(["jobs", "stop", "sleeper", *address]) == 0
    assert main(["jobs", "logs", "sleeper", *address]) == 130
    resumed = threading.Thread(target=lambda: main(["jobs", "resume", "sleeper", *address]))
    resumed.start()
    while "sleeper-2" not in api.jobs:
        time.sleep(0.1)
    api.jobs["sleeper-2"]["process"].kill()
    resumed.join(30)
    assert api.jobs["sleeper-2"]["entrypoint"] == api.jobs["sleeper"]["entrypoint"]
    assert api.jobs["sleeper-2"]["entrypoint_num_cpus"] == 1.0
    kept = {"working_dir": "gcs://_ray_pkg_gone.zip", "py_modules": []}
    api.jobs["sleeper-2"]["runtime_env"] = kept
    capsys.readouterr()
    assert main(["jobs", "resume", "sleeper", *address]) == 1
    said = capsys.readouterr().err
    assert "no longer holds its gcs://_ray_pkg_gone.zip" in said
    assert "tilth submit SPEC" in said
    assert "sleeper-3" not in api.jobs
    assert main(["jobs", "--json", *address]) == 0
    states = {job["id"]: job["status"] for job in json.loads(capsys.readouterr().out)}
    assert (states["sleeper"], states["sleeper-2"]) == ("STOPPED", "FAILED")
    assert main(["jobs", "logs", "nobody", *address]) == 1
    assert "knows no job 'nobody'" in capsys.readouterr().err


def _heeding():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_job(project, **environment):
    command = [sys.executable, "-m", "tilth", "run", "recipe.yaml", "--out", "run"]
    given = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, timeout=120, preexec_fn=_heeding)


def test_a_job_takes_its_secrets_from_where_the_spec_says(project):
    done = run_job(project, TILTH_SECRETS="HF_TOKEN=env", HF_TOKEN="")
    assert done.returncode == 1
    assert "secret HF_TOKEN is not in the environment" in done.stderr
    done = run_job(project, TILTH_SECRETS=f"A={project / 'absent'}")
    assert "secret A cannot be read on this node" in done.stderr
    (project / "held").write_text("value\n")
    code = "from tilth.jobs.inside import take_secrets; import os; take_secrets(); print(repr(os.environ['A']))"
    environment = {**os.environ, "TILTH_SECRETS": f"A={project / 'held'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "'value'\n"


def test_a_job_ends_at_its_time_limit_with_a_code_of_its_own(project):
    code = (
        "import time\nfrom tilth.errors import TimeLimitError\nfrom tilth.jobs.inside import conditions\n"
        "try:\n    with conditions(): time.sleep(30)\n"
        "except TimeLimitError as error: print(error); raise SystemExit(error.exit_code)"
    )
    environment = {**os.environ, "TILTH_TIME_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, preexec_fn=_heeding
    )
    assert done.returncode == 124
    assert "hours is over; what is finished stays" in done.stdout
