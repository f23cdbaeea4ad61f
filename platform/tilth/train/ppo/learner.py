"""One step of learning from feedback: rollouts, scores, what was said of them, advantages, clipped updates.

Needs neither Ray nor a stage: a policy, a generator, a function that scores, and settings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilth.data.schema import Row
from tilth.errors import StageError
from tilth.train.config import Optimisation
from tilth.train.ppo import maths
from tilth.train.ppo.advantages import Credit
from tilth.train.ppo.batch import masks
from tilth.train.ppo.control import Controller, Moments
from tilth.train.ppo.experience import Experience, Seen, apart, behaviour
from tilth.train.ppo.microbatches import MicroBatches
from tilth.train.ppo.optimiser import Optimiser, Stepping, rate
from tilth.train.ppo.policy import Policy
from tilth.train.ppo.prompts import Prompt, asks
from tilth.train.ppo.ranks import ALONE, Ranks
from tilth.train.ppo.rollouts import Ask, Generating, Rollouts, Sample
from tilth.train.ppo.scorers import Scorers
from tilth.train.ppo.settings import Algorithm
from tilth.train.ppo.updates import Updater, Updates

#: (prompts, completions, rows of the prompts) → a score of each
Score = Callable[[list[str], list[str], list[Row]], list[float]]
Line = dict[str, Any]
T = TypeVar("T")
#: where rollouts are one step old, at every so manieth step so many fresh samples prove that weights arrived
PROVED_EVERY, PROVED_BY = 10, 2
WEIGHTS, LEARNER = "learnt.safetensors", "learner.json"


@dataclass(frozen=True)
class Settings:
    """What a learner goes by."""

    algorithm: Algorithm
    rollouts: Rollouts
    optimisation: Optimisation
    #: mean |log p| difference of learner and generator beyond which they hold different weights
    tolerance: float = 0.05


class Learner:
    """A policy that learns from its own completions, alone or as one rank of several."""

    def __init__(
        self, policy: Policy, tokenizer: Any, generating: Generating, scorers: Scorers, settings: Settings,
        ranks: Ranks = ALONE, optimiser: Stepping | None = None,
    ) -> None:  # fmt: skip
        self.policy, self.tokenizer, self.generating, self.scorers = policy, tokenizer, generating, scorers
        self.settings, self.ranks = settings, ranks
        self.algorithm = settings.algorithm
        kl = self.algorithm.kl
        self.controller = Controller(kl.coefficient, kl.target, kl.horizon)
        self.moments = Moments()
        self.optimiser = optimiser or Optimiser(policy, settings.optimisation, ranks)
        self.batches = MicroBatches.of(policy, tokenizer.pad_token_id, ranks, self.algorithm)
        self.updater = Updater(self.batches, self.optimiser, self.algorithm)
        #: samples drawn ahead, by the step that is to learn from them
        self.ahead: dict[int, list[Sample]] = {}
        #: seconds by what they went to, and bytes handed to the generator, since the last line of the trace
        self.times: dict[str, float] = {}
        self.moved = 0
        self._beside = ThreadPoolExecutor(3, "tilth-beside")

    # one step

    def step(self, number: int, steps: int, prompts: Sequence[Prompt], later: Sequence[Prompt] = ()) -> Line:
        """Learn from a completion or more of each prompt as step `number` (from 0) of `steps`.

        `later` are the prompts of the next step, which are asked now where rollouts may be one step old.
        StageError where the generator does not hold the learner's weights.
        """
        fresh = number not in self.ahead
        if fresh:
            self.sync()
        samples = self._together(self._draw(self._wanted(number, prompts))) if fresh else self.ahead.pop(number)
        drawing = self._drawing(number + 1, later)
        scoring = self._scoring(samples, prompts)
        with self._timed("examine"):
            seen = self.seen(samples)
        experience = self._credited(seen, self._scores(scoring))
        gap = apart(experience, self.settings.tolerance, fresh=fresh)
        with self._timed("learn"), self.policy.learning():
            done = self.updater.learn(experience, number, steps, self.controller.coefficient)
        self._refuse_drift(done.unchanged)
        kl = float(experience.kl.mean())
        line = self._line(experience, done, number, steps)
        line |= {"kl": kl, "kl_coefficient": self.controller.coefficient, **gap}
        self.controller.update(kl, len(samples))
        if drawing is not None:
            self.ahead[number + 1] = self._together(drawing)
        times, moved = {name: round(value, 4) for name, value in self.times.items()}, self.moved
        self.times, self.moved = {}, 0
        return {**line, "moved_bytes": moved, "times": times}

    def sync(self) -> None:
        """Hand the weights as they are now to the generator, where it does not have them yet."""
        with self._timed("sync"):
            self.moved += self.generating.sync()

    def _wanted(self, number: int, prompts: Sequence[Prompt]) -> list[Ask]:
        """This rank's share of what a step asks."""
        seed = self.settings.optimisation.seed
        return self.ranks.share(asks(prompts, self.algorithm.advantage.samples, seed, f"step {number}"))

    def _draw(self, wanted: list[Ask], *, beside: bool = False) -> Future[list[Sample]]:
        """Samples, drawn at once or beside what follows."""
        with self._timed("generate"):
            return self._begun(lambda: self.generating.generate(wanted), beside)

    def _begun(self, work: Callable[[], T], beside: bool) -> Future[T]:
        """Work that is done at once, or in a thread of its own where others compute meanwhile."""
        if beside:
            return self._beside.submit(work)
        done: Future[T] = Future()
        done.set_result(work())
        return done

    def _drawing(self, number: int, prompts: Sequence[Prompt]) -> Future[list[Sample]] | None:
        """Samples for a later step by the weights as they are now: drawn beside the updates, or at once."""
        if not prompts:
            return None
        self.sync()
        wanted = self._wanted(number, prompts)
        if self.generating.concurrent and number % PROVED_EVERY == 2:
            apart(self.seen(self._together(self._draw(wanted[:PROVED_BY]))), self.settings.tolerance)
        return self._draw(wanted, beside=self.generating.concurrent)

    def _together(self, drawn: Future[list[Sample]]) -> list[Sample]:
        """The samples of all ranks, once they are drawn."""
        with self._timed("generate"):
            return self.ranks.together(drawn.result())

    def _scoring(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Future[list[float]]:
        """Scores of this rank's share of the samples."""
        by_row, own = {prompt.row["id"]: prompt for prompt in prompts}, self.ranks.share(samples)
        with self._timed("score"):
            return self._begun(lambda: self.scored(own, by_row, self.scorers.reward), self.scorers.apart)

    def _scores(self, scoring: Future[list[float]]) -> list[float]:
        """The scores of all ranks, once they are there."""
        with self._timed("score"):
            return self.ranks.together(scoring.result())

    def scored(self, samples: Sequence[Sample], prompts: dict[str, Prompt], score: Score) -> list[float]:
        """What a function says of samples, each with the prompt of its row."""
        if not samples:
            return []
        found = [prompts[sample.ask.row] for sample in samples]
        texts = [self.text(sample) for sample in samples]
        scores = score([prompt.text for prompt in found], texts, [prompt.row for prompt in found])
        if len(scores) != len(samples):
            raise StageError(f"ppo: a reward gave {len(scores)} scores for {len(samples)} completions")
        return [float(value) for value in scores]

    def text(self, sample: Sample) -> str:
        """A completion as text, without the mark that ends it."""
        return str(self.tokenizer.decode(list(sample.tokens), skip_special_tokens=True))

    # what is said of samples

    def seen(self, samples: Sequence[Sample]) -> Seen:
        """Log-probabilities, entropies and values of the policy as it is, and what the reference says of samples.

        Each is looked at by one rank, and all know what it found.
        """
        mask = masks(samples)
        found = torch.zeros(4, *mask.shape)
        dealt = list(self.batches.deal(samples, range(len(samples))))
        judging = self._judging(samples, [row for rows, _ in dealt for row in rows])
        for rows, batch in dealt:
            with torch.no_grad():
                said = self.policy(batch, entropy=True)
            reference = None if judging else self.policy.reference_logprobs(batch)
            for number, part in enumerate((said.logprobs, reference, said.entropy, said.values)):
                if part is not None:
                    found[number, rows, : batch.room] = part.float().cpu()
        for row, logs in (judging.result() if judging else {}).items():
            found[1, row, : len(logs)] = torch.tensor(logs)
        old, reference, entropy, values = self.ranks.sum(found, self.policy.device)
        valued = self.algorithm.advantage.critic is not None
        return Seen(
            samples=tuple(samples), mask=mask, behaviour=behaviour(samples, mask), old=old, reference=reference,
            entropy=entropy, values=values if valued else None,
        )  # fmt: skip

    def _judging(self, samples: Sequence[Sample], rows: list[int]) -> Future[dict[int, tuple[float, ...]]] | None:
        """What a reference elsewhere says of some of the samples, by their numbers; None where it is the policy's."""
        ask = self.scorers.reference
        if ask is None:
            return None
        return self._begun(lambda: dict(zip(rows, ask([samples[row] for row in rows]), strict=True)), beside=True)

    def _credited(self, seen: Seen, told: Sequence[float]) -> Experience:
        """With scores, shaped scores, advantages, and weights for tokens that an older policy drew."""
        scores = torch.tensor(told, dtype=torch.float32)
        shaped = self._shaped(scores, seen.samples)
        kl = self.algorithm.kl
        penalty = torch.zeros_like(seen.old)
        if kl.place == "reward":
            penalty = self.controller.coefficient * maths.kl(seen.old, seen.reference, kl.estimator)
        credit = Credit(shaped, penalty, seen.mask, seen.values)
        advantages, returns = self.algorithm.advantage.estimate(credit)
        weights = maths.truncated_weights(seen.old, seen.behaviour, self.settings.rollouts.max_weight)
        worth = {"scores": scores, "shaped": shaped, "advantages": advantages, "returns": returns, "weights": weights}
        return Experience(**vars(seen), **worth)

    def _shaped(self, scores: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Scores by their running deviation, clipped, less what a missing end costs."""
        shaping = self.algorithm.shaping
        if shaping.normalise:
            self.moments.add([value for value in scores.tolist() if math.isfinite(value)])
            scores = scores / self.moments.deviation
        if shaping.clip is not None:
            scores = scores.clamp(-shaping.clip, shaping.clip)
        missing = torch.tensor([0.0 if sample.ended else shaping.missing_end for sample in samples])
        return scores - missing

    def _refuse_drift(self, unchanged: float) -> None:
        """StageError where weights that nothing has changed yet say otherwise while they learn than before."""
        if math.isfinite(unchanged) and unchanged > self.settings.tolerance:
            raise StageError(
                f"ppo: unchanged weights differ by {unchanged:.3g} nats a token from themselves once they learn, "
                f"beyond {self.settings.tolerance}: a layer draws random numbers then, or computes otherwise; set the "
                "model's dropout to 0, or raise watchers.sync where it is rounding"
            )

    def _line(self, experience: Experience, updates: Updates, number: int, steps: int) -> Line:
        """What a step came to, for the trace."""
        samples = experience.samples
        lengths = [len(sample.tokens) for sample in samples]
        line: Line = {
            "step": number + 1, "learning_rate": rate(self.settings.optimisation, number, steps),
            "grad_norm": max(updates.norms, default=0.0, key=lambda norm: math.inf if math.isnan(norm) else norm),
            "tokens": sum(experience.lengths), "samples": len(samples),
            "rows": list(dict.fromkeys(sample.ask.row for sample in samples)),
            "reward": float(experience.scores.mean()), "shaped": float(experience.shaped.mean()),
            "entropy": maths.scalar(maths.masked_mean(experience.entropy, experience.mask)),
            "length": sum(lengths) / len(lengths), "ended": sum(sample.ended for sample in samples) / len(samples),
            "ratio_max": updates.ratio, "updates": updates.steps, **updates.means(),
        }  # fmt: skip
        if experience.values is not None and experience.returns is not None:
            told = (experience.values, experience.returns, experience.mask)
            line["explained_variance"] = maths.explained_variance(*told)
        return line

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.times[name] = self.times.get(name, 0.0) + time.monotonic() - start

    def close(self) -> None:
        """Wait for nothing that is still under way beside."""
        self._beside.shutdown(wait=False, cancel_futures=True)

    # what a resumed run needs

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write all that the next step depends on; every rank calls it, and those that all agree on write for all."""
        self.optimiser.save(folder, writes=writes)
        if not writes:
            return
        weights = {name: weight.detach().contiguous().cpu() for name, weight in self.policy.learnt().items()}
        save_file(weights, folder / WEIGHTS)
        ahead = {step: [asdict(sample) for sample in samples] for step, samples in self.ahead.items()}
        plain = {"controller": asdict(self.controller), "moments": asdict(self.moments), "ahead": ahead}
        (folder / LEARNER).write_text(json.dumps(plain), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote."""
        self.optimiser.load(folder)
        weights = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, weight in self.policy.learnt().items():
                weight.copy_(weights[name])
        self.policy.version += 1
        plain = json.loads((folder / LEARNER).read_text(encoding="utf-8"))
        self.controller, self.moments = Controller(**plain["controller"]), Moments(**plain["moments"])
        self.ahead = {int(step): [Sample.of(item) for item in items] for step, items in plain["ahead"].items()}
