"""From a source's records to rows: columns mapped, types checked, texts cleaned, an id from the content.

A record that is no row of ours is quarantined: its payload is null, its id comes from file and line, and its
meta carries file, line and how it begins. Types are not guessed: text must be text. The one exception is a
whole number as label or id, which is taken as its decimal digits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tilth.data.clean import Cleaning, clean_text, clean_value, map_texts, said
from tilth.data.readers import EXCERPT, Bad, Item, Record
from tilth.data.schema import PAYLOADS, Row, original
from tilth.data.source import Source

ABSENT = object()
#: items of a list or mapping in an excerpt
SHOWN = 20
#: who speaks in a chat, as chat templates know them
ROLES = ("system", "developer", "user", "assistant", "tool")
_AS_DIGITS = ("label", "id")
_TURN = re.compile(r"\n\n(?:Assistant|A|Bot|AI):\s?")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Unfit(Exception):  # noqa: N818 - says why one record is no row; it never leaves this module
    pass


@dataclass(frozen=True)
class Shaper:
    """Turns the records of one source into rows. `split` is the source's own, None where it is not split yet."""

    source: Source
    row_type: str
    clean: Cleaning
    split: str | None = None

    def rows(self, items: Iterator[Item], file: str) -> Iterator[Row]:
        """One row for each record or finding, in order."""
        for item in items:
            if isinstance(item, Bad):
                yield self.bad(item, file)
                continue
            try:
                yield self._row(item, file)
            except _Unfit as error:
                yield self.bad(Bad(item.line, str(error), _begin(item.value)), file)

    def bad(self, bad: Bad, file: str) -> Row:
        """The row that stands for what could not be read."""
        meta = {"file": file, "line": bad.line, **({"excerpt": bad.excerpt} if bad.excerpt else {})}
        row = original(content_id("bad", self.split, file, bad.line), "", {}, meta)
        return {**row, "split": self.split, "task": self.source.task, "reason": f"quarantined/{bad.reason}"}

    def _row(self, record: Record, file: str) -> Row:
        payload = {name: self._value(record.value, name) for name in self._columns()}
        if self.source.implicit_prompt:
            payload = _with_prompt(payload)
        for name, value in payload.items():
            texts = [value] if isinstance(value, str) else [said(item) for item in value]
            if not any(text.strip() for text in texts) and name != "answers":  # a question may have no answer
                raise _Unfit(f"empty: {name}")
        payload = _fitted(payload)
        meta: dict[str, Any] = {"file": file, "line": record.line}
        for name in self.source.carried:
            if (kept := look(record.value, name)) is not ABSENT:
                meta[name] = _carried(kept)
        row_id = self._given_id(record.value) or content_id(self.source.task, payload)
        row = original(row_id, "", payload, meta)
        return {**row, "split": self.split, "task": self.source.task, "reason": _no_use(payload)}

    def _columns(self) -> tuple[str, ...]:
        names = PAYLOADS[self.row_type]
        return tuple(name for name in names if name != "prompt") if self.source.implicit_prompt else names

    def _value(self, record: Mapping[str, Any], name: str) -> Any:
        theirs = self.source.columns.get(name, name)
        value = look(record, theirs)
        if value is ABSENT:
            raise _Unfit(f"missing_column: no {theirs!r} in the record")
        if value is None:
            raise _Unfit(f"null: {name}")
        return clean_value(_checked(value, name), self.clean)

    def _given_id(self, record: Mapping[str, Any]) -> str | None:
        """The id of a record whose column is mapped; content-derived ids need none."""
        if "id" not in self.source.columns:
            return None
        value = look(record, self.source.columns["id"])
        given = "" if value is ABSENT or value is None else clean_text(_checked(value, "id"), self.clean)
        if not given:
            raise _Unfit("missing_id: the record has no id although one is mapped")
        return given


def _no_use(payload: Mapping[str, Any]) -> str | None:
    """Why a row that is well formed still teaches nothing."""
    same = "chosen" in payload and payload["chosen"] == payload["rejected"]
    return "no_preference: chosen and rejected are the same" if same else None


def content_id(*parts: Any) -> str:
    """16 hex digits that depend on the content alone, wherever and whenever it is read."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def look(record: Any, path: str) -> Any:
    """The value at a dotted path; a key that holds dots itself comes first."""
    if isinstance(record, Mapping) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if isinstance(record, list) and head.isdigit() and int(head) < len(record):
        inner = record[int(head)]
    elif dot and isinstance(record, Mapping) and head in record:
        inner = record[head]
    else:
        return ABSENT
    return look(inner, rest) if dot else inner


def _checked(value: Any, name: str) -> Any:
    """The value if it has the declared type and can be stored; _Unfit otherwise."""
    if name in _AS_DIGITS and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name in _LISTS:
        value = _LISTS[name](value)
    elif not isinstance(value, str):
        raise _Unfit(f"wrong_type: {name} is {type(value).__name__} where text is declared")
    return map_texts(value, lambda text: _storable(text, name))


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise _Unfit(f"wrong_type: messages is {type(value).__name__} where a list of turns is declared")
    turns = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise _Unfit("wrong_type: each of messages must be {role: text, content: text}")
        if role not in ROLES:
            raise _Unfit(f"role: {role[:EXCERPT]!r} is none of {', '.join(ROLES)}")
        turns.append({"role": role, "content": content})
    return turns


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise _Unfit(f"wrong_type: {type(value).__name__} where a list of words or tags is declared")
    return [str(item) for item in value]


def _answers(value: Any) -> list[dict[str, Any]]:
    """A list of {text, start}, or as SQuAD has it {text: […], answer_start: […]}."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        starts = value.get("answer_start")
        starts = starts if isinstance(starts, list) else []
        value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=False)]
    if not isinstance(value, list):
        raise _Unfit(f"wrong_type: answers is {type(value).__name__} where a list is declared")
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("text"), str) or type(item.get("start")) is not int:
            raise _Unfit("wrong_type: each of answers must be {text: text, start: number of a character}")
    return [{"text": item["text"], "start": item["start"]} for item in value]


_LISTS = {"messages": _messages, "tokens": _words, "tags": _words, "answers": _answers}


def _fitted(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload with its parts held against each other: a tag for each word, each answer where its context has it."""
    if "tags" in payload and len(payload["tags"]) != len(payload["tokens"]):
        raise _Unfit(f"tags: there are {len(payload['tags'])} for {len(payload['tokens'])} tokens")
    if "answers" not in payload:
        return payload
    placed = []
    for answer in payload["answers"]:
        if (found := place_answer(answer, payload["context"])) is None:
            raise _Unfit(f"answer: {answer['text'][:EXCERPT]!r} is not in the context")
        placed.append(found)
    return {**payload, "answers": placed}


def place_answer(answer: Mapping[str, Any], context: str) -> dict[str, Any] | None:
    """The answer where the context has it, nearest to where it was: its text may have moved. None where it has not."""
    found = [match.start() for match in re.finditer(f"(?={re.escape(answer['text'])})", context)]
    if not found or not answer["text"]:
        return None
    return {**answer, "start": min(found, key=lambda at: abs(at - answer["start"]))}


def _storable(text: str, name: str) -> str:
    if found := _SURROGATE.search(text):
        raise _Unfit(f"lone_surrogate: {name} holds U+{ord(found.group()):04X}, which is no character")
    if "\x00" in text:
        raise _Unfit(f"nul: {name} holds a NUL character")
    return text


def _carried(value: Any) -> Any:
    """A value as meta can store it: plain JSON, lone surrogates as question marks, no number for NaN."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"), parse_constant=lambda name: None)


def _begin(record: Mapping[str, Any]) -> str:
    return json.dumps(_short(record), default=str)[:EXCERPT]


def _short(value: Any, depth: int = 3) -> Any:
    """A value as an excerpt shows it: texts cut, lists and mappings no deeper and no longer than one can read."""
    if isinstance(value, str):
        return value[:EXCERPT]
    if isinstance(value, list | tuple):
        return [_short(item, depth - 1) for item in value[:SHOWN]] if depth else "…"
    if isinstance(value, Mapping):
        return {key: _short(item, depth - 1) for key, item in list(value.items())[:SHOWN]} if depth else "…"
    return value


def _with_prompt(payload: dict[str, Any]) -> dict[str, Any]:
    """Split what two dialogues share off as the prompt, at the start of the last turn that they differ in."""
    chosen, rejected = payload["chosen"], payload["rejected"]
    length = next(
        (index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    turns = list(_TURN.finditer(chosen, 0, length))
    cut = turns[-1].end() if turns else chosen.rfind(" ", 0, length) + 1
    if cut == 0:
        raise _Unfit("no_shared_prompt: chosen and rejected begin differently")
    return {"prompt": chosen[:cut].strip(), "chosen": chosen[cut:].strip(), "rejected": rejected[cut:].strip()}
