"""Edits of a text in rounds: which words, what a proposer puts there, and one draw for each from the row's seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tilth.augment.base import Sample, Variant
from tilth.augment.likeness import without_repeats
from tilth.augment.proposers import Blank, Proposed, ProposeFunction, Request
from tilth.augment.words import Word, protected, replace, words

if TYPE_CHECKING:
    from tilth.augment.contextual import Contextual, Sampling

# the closed classes of English; a word with an apostrophe (I'm, don't, it's) counts as one
_FUNCTION_WORDS = """
    a about above across after against all am among an and another any are around as at be because been before
    being below between both but by can could did do does doing done down during each either ever every few for from
    had has have having he her here hers herself him himself his how i if in into is it its itself may me might mine
    more most much must my myself of off on once one only onto or other our ours ourselves out over own per rather same
    shall she should since so some such than that the their theirs them themselves then there these they this those
    though through to too toward under until up upon us very was we were what when where whether which while who whom
    whose why will with within would you your yours yourself
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
NEGATIONS = frozenset(
    {"no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "cannot", "hardly"}
)


@dataclass
class Slot:
    """One place of a draft that is edited, by offsets in the sample's text, and what stands there by now."""

    start: int
    end: int
    blank: Blank
    new: str | None = None
    certainty: float = 0.0
    gain: float | None = None


@dataclass
class Draft:
    """One variant in the making."""

    sample: Sample
    rng: random.Random
    slots: list[Slot]
    open: list[int] = field(default_factory=list)

    def render(self) -> Request:
        """The text with the edits made so far; slots in `open` hold what they held at first and are blanks."""
        pieces, end, length, blanks = [], 0, 0, []
        for index, slot in enumerate(self.slots):
            old = self.sample.text[slot.start : slot.end]
            between = self.sample.text[end : slot.start]
            now = old if index in self.open or slot.new is None else _shown(old, slot.new)
            if index in self.open:
                start = length + len(between)
                blanks.append(Blank(start, start + len(old), slot.blank.avoid, slot.blank.capitals))
            pieces += [between, now]
            length += len(between) + len(now)
            end = slot.end
        return Request("".join([*pieces, self.sample.text[end:]]), tuple(blanks), self.sample.label)

    def reopen(self, share: float) -> None:
        """Blank the least certain `share` of the edits."""
        filled = [index for index, slot in enumerate(self.slots) if slot.new is not None]
        filled.sort(key=lambda index: (round(self.slots[index].certainty, 3), index))
        self.open = sorted(filled[: int(len(filled) * share)])


class Editor:
    """Samples → for each, its variants."""

    def __init__(self, config: Contextual, propose: ProposeFunction) -> None:
        self.config = config
        self.propose = propose

    def __call__(self, samples: list[Sample]) -> list[list[Variant]]:
        drafts = [[self._draft(sample) for _ in range(self.config.variants)] for sample in samples]
        flat = [draft for group in drafts for draft in group]
        if self.config.action == "delete":
            expected = self._proposals(flat, 0)
            made = iter([self._without(draft, found) for draft, found in zip(flat, expected, strict=True)])
        else:
            self._fill(flat)
            made = iter([self._variant(draft) for draft in flat])
        return [without_repeats([next(made) for _ in group]) for group in drafts]

    def _draft(self, sample: Sample) -> Draft:
        """Places drawn by the row's seed; for deletion twice as many, of which the most expected go."""
        rng = random.Random(sample.rng.getrandbits(64))
        found = words(sample.text)
        places = self._places(sample, found)
        wanted = self._count(len(found)) * (2 if self.config.action == "delete" else 1)
        chosen = sorted(rng.sample(places, min(wanted, len(places))))
        slots = [self._slot(found, index) for index in chosen]
        return Draft(sample, rng, slots, list(range(len(slots))))

    def _count(self, total: int) -> int:
        return min(self.config.max_edits, max(self.config.min_edits, round(self.config.edits * total)))

    def _places(self, sample: Sample, found: Sequence[Word]) -> list[int]:
        """Indices of the words that may be edited, or before which one may be inserted."""
        kept = protected(sample.text, found, label=sample.label, extra=self.config.protect)
        inserting = self.config.action == "insert"
        if inserting:
            free = [index for index in range(1, len(found)) if not {index - 1, index} <= kept]
        else:
            free = [index for index, word in enumerate(found) if index not in kept and self._is_free(word.text)]
        if not inserting and not self.config.proposer.needs_left:
            return free
        return [index for index in free if index and sample.text[found[index].start - 1] == " "]

    def _is_free(self, word: str) -> bool:
        folded = word.casefold().replace("’", "'")
        if folded in NEGATIONS or folded.endswith("n't"):
            return False
        return self.config.function_words or not (folded in FUNCTION_WORDS or "'" in folded)

    def _slot(self, found: Sequence[Word], index: int) -> Slot:
        word = found[index]
        inserting = self.config.action == "insert"
        near = found[max(0, index - 1) : index + 2]
        avoid = NEGATIONS.union(item.text.casefold() for item in near)
        if not self.config.function_words:
            avoid |= FUNCTION_WORDS
        end = word.start if inserting else word.end
        capitals = not inserting and word.text != word.text.lower()
        return Slot(word.start, end, Blank(word.start, end, avoid, capitals))

    def _proposals(self, drafts: Sequence[Draft], wanted: int) -> list[list[Proposed]]:
        """What is proposed for the open slots of each draft; drafts with none cost nothing."""
        asked = [draft.render() for draft in drafts if draft.open]
        answers = iter(self.propose(asked, wanted) if asked else [])
        return [next(answers) if draft.open else [] for draft in drafts]

    def _fill(self, drafts: Sequence[Draft]) -> None:
        rounds = self.config.sampling.rounds
        for number in range(rounds):
            if number:
                for draft in drafts:
                    draft.reopen((rounds - number) / rounds)
            for draft, found in zip(drafts, self._proposals(drafts, self.config.sampling.top_k), strict=True):
                for index, proposed in zip(draft.open, found, strict=True):
                    _choose(draft.slots[index], proposed, self.config.sampling, draft.rng)

    def _variant(self, draft: Draft) -> Variant:
        draft.open = []
        made = [slot for slot in draft.slots if slot.new is not None]
        if not made:
            return _unchanged(draft)
        return Variant(draft.render().text, meta=_meta(draft.sample, ((s, s.new or "", s.gain) for s in made)))

    def _without(self, draft: Draft, expected: Sequence[Proposed]) -> Variant:
        """The draft without its most expected words, which take the least information away."""
        found = words(draft.sample.text)
        scores = [-math.inf if item.expected is None else round(item.expected, 3) for item in expected]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        gone = sorted(order[: min(self._count(len(found)), len(found) - 1)])
        if not gone:
            return _unchanged(draft)
        index_at = {word.start: index for index, word in enumerate(found)}
        text = replace(draft.sample.text, found, {index_at[draft.slots[i].start]: "" for i in gone})
        edits = ((draft.slots[i], "", expected[i].expected) for i in gone)
        return Variant(text, meta=_meta(draft.sample, edits))


def _choose(slot: Slot, proposed: Proposed, sampling: Sampling, rng: random.Random) -> None:
    """Draw one word: top-k, then temperature, then top-p (Holtzman et al. 2020, arXiv:1904.09751).

    Scores are rounded before they are compared, and the draw is one number from the row's generator, so that float
    noise from another batch does not change the word.
    """
    point = rng.random()
    least = -math.inf if proposed.original is None else proposed.original - sampling.max_loss
    pairs = zip(proposed.words, proposed.scores, strict=True)
    ranked = sorted((-round(score, 3), word) for word, score in pairs if score >= least)
    if not ranked:
        return
    ranked = ranked[: sampling.top_k]
    weights = [math.exp((ranked[0][0] - cost) / sampling.temperature) for cost, _ in ranked]
    nucleus = list(_nucleus(weights, sampling.top_p))
    pick = _pick(nucleus, point)
    cost, slot.new = ranked[pick]
    slot.certainty = ranked[0][0] - cost - math.log(sum(math.exp(ranked[0][0] - other) for other, _ in ranked))
    slot.gain = None if proposed.original is None else -cost - proposed.original


def _nucleus(weights: Sequence[float], top_p: float) -> Iterator[float]:
    """The first weights up to a share `top_p` of them all, at least one."""
    total, held = sum(weights), 0.0
    for weight in weights:
        yield weight
        held += weight
        if held >= top_p * total:
            return


def _pick(weights: Sequence[float], point: float) -> int:
    """The index whose stretch of the summed weights holds `point` (0 to 1)."""
    left = point * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1


def _shown(old: str, new: str) -> str:
    """The new word in the capitals of the old one; an inserted one brings its space."""
    return replace(old, [Word(0, len(old), old)], {0: new}) if old else f"{new} "


def _meta(sample: Sample, edits: Iterable[tuple[Slot, str, float | None]]) -> dict[str, Any]:
    """One entry for each edit: the words, and how much more log-probable the new one is."""
    found = []
    for slot, new, gain in edits:
        old = sample.text[slot.start : slot.end]
        shown = _shown(old, new).strip() if new else ""
        found.append({"old": old, "new": shown, "score": None if gain is None else round(gain, 3)})
    return {"edits": found}


def _unchanged(draft: Draft) -> Variant:
    why = "no proposed word fits" if draft.slots else "no word is free to change"
    return Variant(draft.sample.text, reason=f"unchanged: {why}")
