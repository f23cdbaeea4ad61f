"""What a job is: a recipe, where its run lies, what travels with it, and what it may take.

name: sft
recipe: examples/recipes/packed.yaml
out: s3://bucket/runs/sft
secrets: {HF_TOKEN: env, AWS_SECRET_ACCESS_KEY: /run/secrets/aws}
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from tilth import yaml12
from tilth.config import Component, digest
from tilth.errors import Problem, RecipeError
from tilth.jobs.names import SECRETS, TIME_LIMIT
from tilth.overrides import overridden
from tilth.problems import problems
from tilth.recipe import load

#: how a word of a variable's name ends that says it holds a secret, as KEY, APIKEY, or in full
_SECRET_ENDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS")
_SECRET_WORDS = {"PASS", "PWD", "AUTHORIZATION"}
#: values that are secrets by their form: hub, OpenAI, AWS, GitHub, Slack, Google, PEM, a URL with a password
_SECRET_VALUE = re.compile(
    r"\bhf_\w{20,}|\bsk-[\w-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|\bxox[a-z]-[\w-]{10,}"
    r"|\bAIza[\w-]{30,}|-----BEGIN|://[^/\s:@]+:(?!\d+/)[^\s@]+@"
)
#: Ray settings that run code out of data files (CVE-2026-41486)
_UNSAFE = "RAY_DATA_AUTOLOAD_"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Where = Annotated[str, Field(pattern=r"^(env|/.*)$")]


class Driver(Component):
    """What the job's own process takes; its stages ask for their workers themselves."""

    cpus: float = Field(1.0, ge=0, description="CPU cores.")
    gpus: float = Field(0.0, ge=0, description="GPUs; a driver needs none, unless a stage runs with 0 workers.")
    memory_gib: float | None = Field(None, gt=0, description="Memory in GiB; null: not reserved.")


class JobSpec(Component):
    """One job. Its id follows from its content: submitting the same twice gives one job."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="Begins the job's id; small letters, digits, -."
    )
    recipe: str = Field(min_length=1, description="The recipe, a path below `working_dir`.")
    overrides: tuple[str, ...] = Field((), description="Dotted overrides of the recipe, a.b.c=value.")
    out: str = Field(min_length=1, description="The run directory: a URI that every node reaches, or an absolute path.")
    working_dir: str = Field(".", description="The folder that travels, without what .gitignore and .rayignore name.")
    packages: tuple[str, ...] = Field(
        ("platform/tilth",), description="Python packages that travel too; empty: the image has them."
    )
    env: dict[_Name, str] = Field(
        {}, description="Environment variables of driver and workers. No secrets: job info shows it."
    )
    secrets: dict[_Name, _Where] = Field(
        {},
        description="Secrets by reference: `env` (the cluster's processes have it), or the path of a file there.",
    )
    driver: Driver = Field(Driver(), description="What the driver takes.")
    retries: int = Field(2, ge=0, le=20, description="How often a job that failed is submitted again; it resumes.")
    hours: float | None = Field(None, gt=0, description="Time limit of one attempt in hours; null: none.")

    def check(self) -> list[Problem]:
        return [
            *self._places(),
            *(_secret(f"env.{name}", name) for name, value in self.env.items() if _is_secret(name, value)),
            *(
                Problem(f"env.{name}", "makes Ray run code that lies in data files", "leave it out")
                for name in self.env
                if name.startswith(_UNSAFE)
            ),
            *(_told(f"overrides.{index}") for index, text in enumerate(self.overrides) if _tells(text)),
            *(_told(name) for name in ("recipe", "out") if _SECRET_VALUE.search(getattr(self, name))),
        ]

    def _places(self) -> Iterator[Problem]:
        if "://" not in self.out and not self.out.startswith("/"):
            yield Problem(
                "out",
                f"{self.out!r} would lie in a folder that goes with the job",
                "give a URI such as s3://bucket/run",
            )
        for name, path, wanted in (
            ("working_dir", Path(self.working_dir), "directory"),
            ("recipe", self.recipe_file, "file"),
            *((f"packages.{index}", Path(package), "directory") for index, package in enumerate(self.packages)),
        ):
            if not (path.is_dir() if wanted == "directory" else path.is_file()):
                yield Problem(name, f"there is no {wanted} {path}", f"looked from {Path.cwd()}")
        if Path(self.recipe).is_absolute() or ".." in Path(self.recipe).parts:
            yield Problem(
                "recipe", f"{self.recipe!r} lies outside the folder that travels", "give a path below working_dir"
            )

    @property
    def recipe_file(self) -> Path:
        return Path(self.working_dir) / self.recipe

    @property
    def entrypoint(self) -> str:
        """The one command that every job runs."""
        return shlex.join(["python", "-m", "tilth", "run", self.recipe, *self.overrides, "--out", self.out])

    def environment(self) -> dict[str, str]:
        """Variables that the cluster gives driver and workers: no secret among them, only where each one lies."""
        secrets = [f"{name}={where}" for name, where in self.secrets.items()]
        limit = {} if self.hours is None else {TIME_LIMIT: str(max(1, round(self.hours * 3600)))}  # 0 would be none
        return {**self.env, **({SECRETS: ",".join(secrets)} if secrets else {}), **limit}


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The checked spec of a YAML file, with dotted overrides of its own fields; its recipe is checked too.

    RecipeError with every problem found.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read: {error}")]) from error
    data, _ = yaml12.parse(text, str(path))
    refused = list(overridden(data, overrides))
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise RecipeError([*_named(path, problems(error, data, JobSpec)), *refused]) from error
    found = [*_named(path, spec.check()), *refused]
    if found:
        raise RecipeError(found)
    load(spec.recipe_file, spec.overrides)
    return spec


def _named(path: str | Path, found: Sequence[Problem]) -> list[Problem]:
    return [Problem(f"{path}: {problem.where}", problem.what, problem.mend) for problem in found]


def _is_secret(name: str, value: str) -> bool:
    """By the name's words or the value's form; a path or an empty text is none."""
    words = any(_means_secret(word) for word in name.upper().split("_"))
    return bool(_SECRET_VALUE.search(value)) or (words and bool(value) and not value.startswith("/"))


def _means_secret(word: str) -> bool:
    return word in _SECRET_WORDS or word.endswith(_SECRET_ENDS)


def _tells(override: str) -> bool:
    """Whether an override sets a secret; `api_key_env` names a variable, and what is `key` alone may be a column."""
    path, _, value = override.partition("=")
    return bool(_SECRET_VALUE.search(override)) or _holds(path.strip().rpartition(".")[2], yaml12.scalar(value))


def _holds(name: str, value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds(str(key), item) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds(name, item) for item in value)
    last = name.upper().replace("-", "_").rpartition("_")[2]
    bare = name.lower() == "key"
    return isinstance(value, str) and not bare and _means_secret(last) and bool(value) and not value.startswith("/")


_SHOWN = "looks like a secret, and everyone who may list jobs can read it"


def _secret(where: str, name: str) -> Problem:
    return Problem(
        where,
        _SHOWN,
        f"write `secrets: {{{name}: env}}` where the cluster's processes have it, or name a file that holds it there",
    )


def _told(where: str) -> Problem:
    return Problem(
        where,
        _SHOWN,
        "leave it out, and give it under `secrets:` as the variable from which it is read, such as the one that "
        "api_key_env names, or AWS_SECRET_ACCESS_KEY",
    )


def content_id(spec: JobSpec, files: Mapping[str, str]) -> str:
    """The job's id: its name and a hash of all that decides what it does. `files`: what travels, to its hash.

    What it may take (driver, retries, hours) is no part of it: with more of it, it is still the same job.
    """
    decides = {name: value for name, value in spec.model_dump().items() if name not in ("driver", "retries", "hours")}
    return f"{spec.name}-{digest({'spec': decides, 'files': dict(files)})[:12]}"
