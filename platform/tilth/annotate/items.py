"""From the rows of a run, or a file of items, to what people are shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilth.annotate.config import Annotation, Items
from tilth.annotate.forms import TIE, Direct, Form, Pairwise
from tilth.data.dataset import MANIFEST, Dataset
from tilth.data.schema import Row, row_seed, value_at
from tilth.errors import RecipeError, StorageError
from tilth.evaluate.tasks.prompting import ASKED, Questions

if TYPE_CHECKING:
    from tilth.runs import Artifact

WORK, KNOWN, ATTENTION = "work", "known", "attention"
#: a known item that was answered and is no longer given to anyone
RETIRED = "retired"
#: attention checks that one person may be given
ATTENTION_CHECKS = 200
#: where a model's answer stands in the rows of its predictions, the first that is there
_ANSWERS = ("meta.answers.0", "meta.completion", "meta.prediction")


@dataclass(frozen=True)
class Subject:
    """One prompt with the answers of one or more models, before it is cut into items."""

    id: str
    prompt: str
    answers: Mapping[str, str]
    root: str = ""
    split: str = "train"
    expected: Any = None


@dataclass(frozen=True)
class Item:
    """What one person is shown at once: a prompt and the texts of as many models as the form wants."""

    id: str
    kind: str
    prompt: str
    answers: tuple[tuple[str, str], ...]
    root: str = ""
    split: str = "train"
    expected: Any = None

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(model for model, _ in self.answers)

    def digest(self) -> str:
        """What it shows, as a hash."""
        return hashlib.sha256(json.dumps([self.prompt, self.answers, self.expected]).encode()).hexdigest()[:32]


def campaign(
    source: str | Path, annotation: Annotation, answered: Callable[[], Collection[str]] = tuple
) -> tuple[Form, list[Item]]:
    """The form and every item of a campaign on a run or a file; RecipeError or StorageError where there is nothing.

    `answered` tells the items that have answers: under a limit those stay drawn, whatever rows have come since.
    """
    subjects = _drawn(_subjects(source, annotation.items), annotation, answered)
    if not subjects:
        raise StorageError(f"{source} holds nothing to judge{_narrowed(annotation.items)}")
    form = annotation.form or (Pairwise() if all(len(item.answers) > 1 for item in subjects) else Direct())
    items = [item for subject in subjects for item in _cut(subject, form)]
    if annotation.checks.known is not None:
        known = [item for subject in from_file(annotation.checks.known) for item in _cut(subject, form)]
        if missing := [item.id for item in known if item.kind != KNOWN]:
            raise RecipeError(f"checks.known: {missing[0]} has no `expected`; a known-answer item needs its answer")
        items += known
    for item in items:
        if item.kind == KNOWN and (wrong := form.known(item.expected, item.models)):
            raise RecipeError(f"item {item.id}: `expected` is {item.expected!r}; it {wrong}")
    if form.answers > 1 and (tied := next((item.id for item in items if TIE in item.models), None)):
        raise RecipeError(f"{tied}: a model is called {TIE!r}, as is the verdict that two answers are equal; rename it")
    if not any(item.kind == WORK for item in items):
        need = "two answers to each prompt" if form.answers == 2 else "an answer"
        raise RecipeError(f"{source} has no item that a {form.kind} form can ask about: it needs {need}")
    return form, [*_unique(items), *_attention(form, annotation)]


def _narrowed(items: Items) -> str:
    return "" if items.split is None else f" in split {items.split!r}"


def _drawn(
    subjects: Iterable[Subject], annotation: Annotation, answered: Callable[[], Collection[str]]
) -> list[Subject]:
    """As many as the limit says, those with answers first, the same ones for the same seed."""
    items = annotation.items
    found = [s for s in subjects if s.answers and (items.split is None or s.split == items.split)]
    if items.limit is None or len(found) <= items.limit:
        return found
    # an item is called after its subject, a colon, and its models, whose names may hold colons themselves
    begun = {name[:at] for name in answered() for at, sign in enumerate(name) if sign == ":"}
    order = sorted(found, key=lambda s: (s.id not in begun, row_seed(annotation.seed, s.id, "annotate")))
    return order[: items.limit]


def _cut(subject: Subject, form: Form) -> Iterator[Item]:
    """Items of a subject: one for each answer, or for each pair of different answers."""
    kind = WORK if subject.expected is None else KNOWN
    answers = list(subject.answers.items())
    for group in combinations(answers, form.answers):
        if len({text for _, text in group}) < form.answers:
            continue  # the same text twice: there is nothing to compare
        name = f"{subject.id}:{'~'.join(model for model, _ in group)}"
        root = subject.root or subject.id
        yield Item(name, kind, subject.prompt, group, root, subject.split, subject.expected)


def _attention(form: Form, annotation: Annotation) -> Iterator[Item]:
    for number in range(ATTENTION_CHECKS if annotation.checks.attention_every else 0):
        prompt, answers, expected = form.attention(number)
        yield Item(f"attention/{number}", ATTENTION, prompt, tuple(answers.items()), expected=expected)


def _unique(items: Iterable[Item]) -> list[Item]:
    seen: dict[str, Item] = {}
    for item in items:
        name, number = item.id, 1
        while name in seen:
            number += 1
            name = f"{item.id}#{number}"
        seen[name] = replace(item, id=name)
    return list(seen.values())


def _subjects(source: str | Path, items: Items) -> list[Subject]:
    path = Path(source)
    if path.is_file():
        return list(from_file(path))
    from tilth.runs import Run

    artifacts = Run(source).current()
    artifact = _chosen(artifacts, items)
    if names := artifact.store.list("predictions"):
        return list(_evaluated(artifact, items, names))
    return [subject for row in Dataset.open(artifact).rows() if (subject := of_row(row)) is not None]


def _chosen(artifacts: Mapping[str, Artifact], items: Items) -> Artifact:
    fits = {name: found for name, found in artifacts.items() if _shows(found)}
    if items.stage is not None and items.stage not in fits:
        there = ", ".join(fits) or "none yet"
        raise RecipeError(f"items.stage: {items.stage!r} holds no answers to judge; stages that do: {there}")
    if not fits:
        raise StorageError("the run holds no answers yet: no evaluation with predictions and no dataset is finished")
    if items.stage is not None:
        return fits[items.stage]
    # a judge leaves predictions too, but what it says is no answer of a model
    evaluated = [found for found in fits.values() if found.store.list("predictions") and "judges" not in found.detail]
    return (evaluated or list(fits.values()))[-1]


def _shows(artifact: Artifact) -> bool:
    return bool(artifact.store.list("predictions")) or artifact.store.exists(MANIFEST)


def _evaluated(artifact: Artifact, items: Items, names: list[str]) -> Iterator[Subject]:
    """The rows with all models' answers; RecipeError where one has none to a row that another has answered."""
    if unknown := [name for name in items.models if name not in names]:
        raise RecipeError(f"items.models: {artifact.stage} has no model {unknown[0]!r}; it has {', '.join(names)}")
    chosen = items.models or tuple(names)
    rows = {name: {row["id"]: row for row in Dataset.open(artifact.store.sub(f"predictions/{name}")).rows()}
            for name in chosen}  # fmt: skip
    prompt = _asked(artifact)
    every = {row_id: row for name in reversed(chosen) for row_id, row in rows[name].items()}
    for row_id, row in every.items():
        said = {name: _said(rows[name].get(row_id), items.answer) for name in chosen}
        answers = {name: text for name, text in said.items() if text is not None}
        if silent := [name for name in chosen if answers and name not in answers]:
            raise RecipeError(
                f"items.answer: {silent[0]} of {artifact.stage} has no answer to row {row_id} where others have one; "
                "set it to a path at which all have one, or items.models to those that do"
            )
        if answers:
            yield Subject(row_id, prompt(row), answers, row["root"], row["split"])


def _asked(artifact: Artifact) -> Callable[[Row], str]:
    """What models were asked about a row, where that is known; without the examples that they were shown first."""
    if (told := artifact.store.read_json(ASKED)) is None:
        return prompt_of
    questions = Questions(**{**told, "shots": ()})
    return lambda row: _shown(questions.conversation(row))


def _said(row: Row | None, path: str | None) -> str | None:
    """What a model answered to a row; an empty answer is one too, for who is silent must not go unjudged."""
    for place in (path,) if path else _ANSWERS:
        value = _at(row or {}, place)
        if isinstance(value, str):
            return value.strip()  # the blanks that begin a continuation are nothing to judge
    return None


def _at(row: Mapping[str, Any], path: str) -> Any:
    head, _, last = path.rpartition(".")
    if not last.isdigit():
        return value_at(dict(row), path)
    found = value_at(dict(row), head)
    return found[int(last)] if isinstance(found, list) and int(last) < len(found) else None


def prompt_of(row: Mapping[str, Any]) -> str:
    """What was asked in a row: its prompt, the turns before the last answer, its question, or its text."""
    if row.get("messages"):
        turns = list(row["messages"])
        turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        return _shown(turns)
    for name in ("prompt", "question", "text"):
        if isinstance(row.get(name), str):
            context = f"{row['context']}\n\n" if name == "question" and row.get("context") else ""
            return f"{context}{row[name]}"
    return ""


def _shown(turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation; who speaks is named where it is more than one turn."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"**{turn['role']}**\n\n{turn['content']}" for turn in turns)


def of_row(row: Mapping[str, Any]) -> Subject | None:
    """A dataset's row as a subject; None for rows that hold no text of anybody to judge."""
    answers: dict[str, str] = {}
    if isinstance(row.get("answers"), Mapping):
        answers = dict(row["answers"])
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        answers = {"chosen": row["chosen"], "rejected": row["rejected"]}
    elif row.get("completion") is not None:
        answers = {str(row.get("model") or "completion"): row["completion"]}
    elif row.get("messages") and row["messages"][-1]["role"] == "assistant":
        answers = {str(row.get("model") or "assistant"): row["messages"][-1]["content"]}
    elif row.get("text") is not None:
        answers = {str(row.get("model") or "text"): row["text"]}
    if not answers:
        return None
    prompt = "" if set(answers.values()) == {row.get("text")} else prompt_of(row)
    name = str(row.get("id") or hashlib.sha256(json.dumps([prompt, answers]).encode()).hexdigest()[:16])
    split = str(row.get("split") or "train")
    return Subject(name, prompt, answers, str(row.get("root") or name), split, row.get("expected"))


def from_file(path: str | Path) -> Iterator[Subject]:
    """The subjects of a JSON Lines file; StorageError names the line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # a text may hold other breaks, such as U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            subject = of_row(row)
            json.dumps(row, ensure_ascii=False).encode()  # half of a character can neither be kept nor shown
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise StorageError(f"{path}:{number}: is no item: {error}; write {_EXAMPLE}") from error
        if subject is None:
            raise StorageError(f"{path}:{number}: has nothing to judge; write {_EXAMPLE}")
        for name, text in (("prompt", row.get("prompt") or ""), *subject.answers.items()):
            if not isinstance(text, str):
                raise StorageError(f"{path}:{number}: {name} is no text: {text!r}; write {_EXAMPLE}")
        yield subject


_EXAMPLE = '{"prompt": "…", "answers": {"model": "…"}}, a completion or a preference pair'
