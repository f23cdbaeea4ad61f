"""Personal data kept out of added rows, or masked in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tilth.augment.base import Candidate, Filter, Verdict, VerdictsFunction
from tilth.data.texts import parts_of, rewritten
from tilth.data.transform import Inputs
from tilth.errors import StageError

if TYPE_CHECKING:
    from tilth.augment.engines.presidio import Span
    from tilth.data.transform import Fitted

    Found = dict[str, list[Span]]


class Pii(Filter):
    """Drops or masks added English rows with personal data, as Microsoft's Presidio finds it.

    Cards, IBANs, addresses and numbers are patterns, most with a checksum. Names are what spaCy's small model takes
    for people, which is often wrong and knows nothing of fame: it names someone in 0.6 % of banking77's questions,
    where nobody is named, and in 4.7 % of the harmless questions of hh-rlhf; of those 21, nine name no person
    ("Tahini"), twelve a character or a well-known one. A number without a word such as "call" beside it scores 0.4.

    Masked is also what a row carries of it in `meta`, such as the instruction or the answer that it was made from.

    Recorded: `meta.pii`, how often each entity was found. Reason: `pii`, with the same counts and never the text that
    was found; a dropped row itself still stands among the rejected rows.
    """

    version: ClassVar[int] = 2  # what is masked in a row is masked in its meta

    entities: tuple[str, ...] = Field(
        ("PERSON", "EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "CRYPTO"),
        min_length=1,
        description="What counts, by Presidio's names; also LOCATION, URL, DATE_TIME, US_BANK_NUMBER, …",
    )
    min_score: float = Field(0.4, ge=0.0, le=1.0, description="Least confidence of a find.")
    mode: Literal["drop", "mask"] = Field("drop", description="mask: <EMAIL_ADDRESS> in its place, and the row stays.")

    def load_verdicts(self, inputs: Inputs, fitted: Fitted) -> VerdictsFunction:
        from tilth.augment.engines.presidio import finder

        find = finder()
        if unknown := set(self.entities) - set(find.entities):
            raise StageError(f"pii: cannot find {', '.join(sorted(unknown))}; there are {', '.join(find.entities)}")

        def judge(candidates: list[Candidate]) -> list[Verdict]:
            texts = list(dict.fromkeys(part for item in candidates for part in parts_of(item.row, self.field)))
            found = dict(zip(texts, find.find(texts, self.entities, self.min_score), strict=True))
            return [self._verdict(item, found) for item in candidates]

        return judge

    def _verdict(self, candidate: Candidate, found: Found) -> Verdict:
        row = candidate.row
        counts = Counter(span.entity for part in parts_of(row, self.field) for span in found[part])
        if not counts:
            return Verdict()
        meta = {"pii": dict(sorted(counts.items()))}
        if self.mode == "mask":
            changes = rewritten(row, self.field, lambda part: masked(part, found[part]))
            texts = parts_of(row, self.field)
            names = {part[span.start : span.stop]: span.entity for part in texts for span in found[part]}
            return Verdict(meta={**unnamed(row["meta"], names), **meta}, changes=changes)
        return Verdict("pii: " + ", ".join(f"{number} {entity}" for entity, number in sorted(counts.items())), meta)


def masked(text: str, spans: list[Span]) -> str:
    """The text with each find replaced by the name of its entity; spans must not overlap."""
    for span in sorted(spans, key=lambda item: -item.start):
        text = f"{text[: span.start]}<{span.entity}>{text[span.stop :]}"
    return text


#: what the platform itself notes of a row: what it cost, and where it stood
OWN = frozenset({"usage", "file", "line"})


def unnamed(meta: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What a row carries, with each text that was found in the row replaced by the name of its entity, at any depth."""
    # the longest first: a name within a name would leave the rest of it
    found = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names, key=len, reverse=True)))

    def without(value: Any) -> Any:
        if isinstance(value, str):
            return found.sub(lambda match: f"<{names[match[0]]}>", value)
        if isinstance(value, list | tuple):
            return [without(item) for item in value]
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items()}
        return f"<{names[str(value)]}>" if str(value) in names else value

    return {key: item if key in OWN else without(item) for key, item in meta.items()}
