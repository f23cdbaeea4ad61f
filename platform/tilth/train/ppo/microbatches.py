"""Which samples a learner looks at together: as many as a budget of tokens allows, shared out among all learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilth.errors import StageError
from tilth.train.independence import independent
from tilth.train.ppo.batch import Batch, fitted
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.ranks import Ranks
from tilth.train.ppo.rollouts import Sample
from tilth.train.ppo.settings import Algorithm


@dataclass(frozen=True)
class MicroBatches:
    """This learner's micro-batches, on the policy's device."""

    policy: Policy
    pad: int
    ranks: Ranks
    #: places of a micro-batch, padding included
    budget: int
    packed: bool

    @staticmethod
    def of(policy: Policy, pad: int, ranks: Ranks, algorithm: Algorithm) -> MicroBatches:
        """Packed as the algorithm wishes; StageError where it must be and a model does not keep samples apart."""
        apart = (independent(model, half=policy.half) for model in policy.readers())
        packed = algorithm.packing is not False and all(apart)
        # all learners have to count alike, and one on another device may round otherwise
        packed = all(ranks.together([packed]))
        if algorithm.packing is True and not packed:
            raise StageError(
                "algorithm.packing: a sample gets other logits beside others in a row than alone, for the model's "
                "architecture or adapter does not keep them apart; set packing to auto or false"
            )
        return MicroBatches(policy, pad, ranks, algorithm.tokens_at_once, packed)

    def deal(self, samples: Sequence[Sample], rows: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """Of `samples` those numbered `rows` that are this learner's, some at a time: their numbers, and the batch."""
        lengths = [sample.length for sample in samples]
        for some in filter(None, dealt(rows, lengths, self.budget, self.ranks, packed=self.packed)):
            taken = [samples[row] for row in some]
            yield some, Batch.of(taken, self.pad, self.policy.device, packed=self.packed)


def dealt(
    rows: Sequence[int], lengths: Sequence[int], budget: int, ranks: Ranks, *, packed: bool = False
) -> list[list[int]]:
    """This rank's micro-batches of `rows`: at most `budget` places, padding included.

    Samples of like length, each in a row of its own; or `packed`, as many as find room in the rows of the budget.

    Every rank has as many micro-batches as any other, for what they do in step with each other. `lengths` are those
    of all samples; a sample over the budget is a micro-batch by itself.
    """
    order = sorted(rows, key=lambda row: (-lengths[row], row))
    cut = _packed if packed else _cut
    hands = [cut(order[rank :: ranks.world], lengths, budget) for rank in range(ranks.world)]
    return _split(hands[ranks.rank], max(map(len, hands)))


def _cut(order: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, as many at a time as the longest of them allows."""
    found = []
    while order:
        size = max(1, budget // lengths[order[0]])
        found.append(order[:size])
        order = order[size:]
    return found


def _packed(order: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The longest first, and whatever else finds room in rows of its width."""
    found = []
    while order:
        width = lengths[order[0]]
        taken = {row for members in fitted(order, lengths, width, max(1, budget // width)) for row in members}
        found.append([row for row in order if row in taken])
        order = [row for row in order if row not in taken]
    return found


def _split(pieces: list[list[int]], count: int) -> list[list[int]]:
    """As many pieces as asked for, the largest divided; where single rows are too few, some are empty."""
    pieces = list(pieces)
    while len(pieces) < count:
        largest = max(range(len(pieces)), key=lambda at: len(pieces[at]), default=None)
        if largest is None or len(pieces[largest]) < 2:
            pieces.append([])
            continue
        whole = pieces[largest]
        pieces[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return pieces
