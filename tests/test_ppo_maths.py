"""The arithmetic of policy gradients against plain loops over numbers."""

from __future__ import annotations

import math
import random
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tilth.errors import StageError
from tilth.train.ppo import maths
from tilth.train.ppo.advantages import Credit, Gae, Grpo, ReinforcePlusPlus, Rloo
from tilth.train.ppo.batch import Batch
from tilth.train.ppo.control import Controller, Moments
from tilth.train.ppo.microbatches import MicroBatches, dealt
from tilth.train.ppo.policy import Critic, Policy
from tilth.train.ppo.ranks import ALONE, Ranks
from tilth.train.ppo.rollouts import Ask, Sample
from tiny import model_folder

LENGTHS = (3, 1, 5)
ROOM = 5


def table(seed: int) -> list[list[float]]:
    """Numbers for completions of LENGTHS."""
    rng = random.Random(seed)
    return [[rng.uniform(-2, 2) for _ in range(length)] for length in LENGTHS]


def padded(rows: list[list[float]], side: str, fill: float = 0.0) -> torch.Tensor:
    """The rows as one tensor, padded on a side."""
    holes = [[fill] * (ROOM - len(row)) for row in rows]
    return torch.tensor([h + r if side == "left" else r + h for h, r in zip(holes, rows, strict=True)])


def unpadded(tensor: torch.Tensor, side: str) -> list[list[float]]:
    return [
        row[ROOM - length :] if side == "left" else row[:length]
        for row, length in zip(tensor.tolist(), LENGTHS, strict=True)
    ]


def mask(side: str) -> torch.Tensor:
    return padded([[1.0] * length for length in LENGTHS], side)


def close(found: Any, wanted: Any) -> bool:
    return all(f == pytest.approx(w, rel=1e-4, abs=1e-5) for f, w in zip(found, wanted, strict=True))


def loop_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Advantages as the paper's sum: every later surprise, discounted."""
    after = [*values[1:], 0.0]
    surprises = [r + gamma * b - v for r, b, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * surprises[k] for k in range(t, len(surprises))) for t in range(len(surprises))
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_gae(side: str, gamma: float, lam: float) -> None:
    rewards, values = table(1), table(2)
    advantages, returns = maths.gae(padded(rewards, side, 9.0), padded(values, side, -7.0), mask(side), gamma, lam)
    wanted = [loop_gae(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    for row, (a, back) in enumerate(zip(unpadded(advantages, side), unpadded(returns, side), strict=True)):
        assert close(a, wanted[row])
        assert close(back, [x + v for x, v in zip(wanted[row], values[row], strict=True)])
    assert not ((1 - mask(side)) * advantages).any()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators(estimator: str) -> None:
    ours, theirs = table(3), table(4)
    formula = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}[estimator]
    found = maths.kl(padded(ours, "right"), padded(theirs, "right"), estimator)  # type: ignore[arg-type]
    for row, line in enumerate(unpadded(found, "right")):
        assert close(line, [formula(a - b) for a, b in zip(ours[row], theirs[row], strict=True)])


def test_estimators_agree_with_the_true_divergence() -> None:
    """Under tokens drawn from p, the means of k1 and k3 are KL(p, q)."""
    torch.manual_seed(0)
    p, q = torch.randn(5).log_softmax(0), torch.randn(5).log_softmax(0)
    true = (p.exp() * (p - q)).sum().item()
    for estimator in ("k1", "k3"):
        assert (p.exp() * maths.kl(p, q, estimator)).sum().item() == pytest.approx(true, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["left", "right"])
def test_whitening_and_means_do_not_see_padding(side: str) -> None:
    rows = table(5)
    flat = [value for row in rows for value in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    values = padded(rows, side, math.nan)
    assert maths.masked_mean(values, mask(side)) == pytest.approx(mean, rel=1e-5)
    for centred in (True, False):
        found = unpadded(maths.whitened(values, mask(side), centred=centred), side)
        for row, line in enumerate(found):
            assert close(line, [(v - mean) / deviation + (0 if centred else mean) for v in rows[row]])


def test_clipped_losses() -> None:
    new, old, gains, weights = table(6), table(7), table(8), table(9)
    loss = maths.policy_loss(*(padded(t, "right") for t in (new, old, gains)), 0.2, 0.3, padded(weights, "right"))
    values = maths.value_loss(*(padded(t, "right") for t in (new, old, gains)), 0.2)
    for row in range(len(LENGTHS)):
        wanted, squares = [], []
        for n, o, a, w in zip(new[row], old[row], gains[row], weights[row], strict=True):
            ratio = math.exp(n - o)
            wanted.append(w * -min(a * ratio, a * min(max(ratio, 0.8), 1.3)))
            near = o + min(max(n - o, -0.2), 0.2)
            squares.append(max((n - a) ** 2, (near - a) ** 2) / 2)
        assert close(unpadded(loss, "right")[row], wanted)
        assert close(unpadded(values, "right")[row], squares)


def test_truncated_weights_have_no_gradient() -> None:
    ours = torch.tensor([[0.0, -1.0, 2.0]], requires_grad=True)
    found = maths.truncated_weights(ours, torch.zeros(1, 3), 2.0)
    assert close(found[0].tolist(), [1.0, math.exp(-1), 2.0])
    assert not found.requires_grad


def test_every_advantage_is_that_of_its_paper() -> None:
    penalty, values = table(10), table(11)
    scores = [1.5, -0.5, 0.25]
    rewards = [[-p for p in row[:-1]] + [score - row[-1]] for row, score in zip(penalty, scores, strict=True)]
    credit = Credit(torch.tensor(scores), padded(penalty, "right", 5.0), mask("right"), padded(values, "right", 5.0))
    gae, returns = Gae(lam=0.9, whiten=False).estimate(credit)
    assert returns is not None
    for row, line in enumerate(unpadded(gae, "right")):
        assert close(line, loop_gae(rewards[row], values[row], 1.0, 0.9))
    totals = [sum(row) for row in rewards]
    mean = sum(totals) / 3
    deviation = math.sqrt(sum((t - mean) ** 2 for t in totals) / 2)
    rloo, _ = Rloo(size=3).estimate(credit)
    grpo, _ = Grpo(size=3).estimate(credit)
    doctor, _ = Grpo(size=3, scale="none").estimate(credit)
    for row, length in enumerate(LENGTHS):
        others = [t for place, t in enumerate(totals) if place != row]
        assert close(rloo[row, :length].tolist(), [totals[row] - sum(others) / 2] * length)
        assert close(grpo[row, :length].tolist(), [(totals[row] - mean) / (deviation + 1e-4)] * length)
        assert close(doctor[row, :length].tolist(), [totals[row] - mean] * length)
        assert not rloo[row, length:].any()
    plain, _ = ReinforcePlusPlus().estimate(credit)
    still = [[sum(row[at:]) for at in range(len(row))] for row in rewards]
    flat = [value for row in still for value in row]
    middle = sum(flat) / len(flat)
    spread = math.sqrt(sum((value - middle) ** 2 for value in flat) / len(flat))
    for row, line in enumerate(unpadded(plain, "right")):
        assert close(line, [(value - middle) / spread for value in still[row]])


def test_the_controller_is_zieglers() -> None:
    steered, fixed = Controller(0.1, target=4.0, horizon=100), Controller(0.1)
    for kl, factor in ((4.4, 1 + 0.1 * 10 / 100), (40.0, 1 + 0.2 * 10 / 100), (0.0, 1 - 0.2 * 10 / 100)):
        before = steered.coefficient
        steered.update(kl, 10)
        assert steered.coefficient == pytest.approx(before * factor)
        fixed.update(kl, 10)
    assert fixed.coefficient == 0.1


def test_a_price_that_is_raised_again_and_again_comes_to_an_end() -> None:
    for given, most in ((0.05, 5.0), (0.0, 1.0)):
        price = Controller(given)
        for _ in range(30):
            price.raise_by(2.0)
        assert price.coefficient == most
        kept = Controller(**asdict(price))
        kept.raise_by(2.0)
        assert kept.coefficient == most, "also after it was taken up again"


def test_running_moments_are_those_of_all_values() -> None:
    values = [value for row in table(12) for value in row]
    moments = Moments()
    for start in range(0, len(values), 4):
        moments.add(values[start : start + 4])
    mean = sum(values) / len(values)
    assert moments.mean == pytest.approx(mean)
    assert moments.deviation == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)))


def drawn(*lengths: tuple[int, int]) -> list[Sample]:
    """Samples of so many tokens of prompt and of completion."""
    rng = random.Random(0)
    return [
        Sample(Ask("r", tuple(rng.choices(range(4, 200), k=p)), 0), tuple(rng.choices(range(4, 200), k=c)), (), True)
        for p, c in lengths
    ]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_said_of_samples_side_by_side_or_packed_is_what_is_said_of_each_alone(
    kind: str, packed: bool, tmp_path: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder(tmp_path / kind, kind))
    samples = drawn((2, 3), (9, 1), (5, 4), (1, 1))
    policy = Policy(model, valued=True, temperature=0.7)
    torch.nn.init.normal_(policy.value_head.weight)  # type: ignore[union-attr]
    batch = Batch.of(samples, 0, packed=packed)
    assert batch.tokens.shape == ((3, 10) if packed else (4, 10))
    said = policy(batch, entropy=True)
    again = policy.reference_logprobs(batch)
    assert torch.allclose(again, said.logprobs, atol=1e-4)
    states = []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    for row, sample in enumerate(samples):
        whole = torch.tensor([[*sample.ask.prompt, *sample.tokens]])
        with torch.no_grad():
            logits = model(input_ids=whole).logits[0]
        for at, token in enumerate(sample.tokens):
            place = len(sample.ask.prompt) + at - 1
            shares = (logits[place].double() / 0.7).softmax(0)
            assert said.logprobs[row, at].item() == pytest.approx(shares[token].log().item(), abs=1e-4)
            assert said.entropy[row, at].item() == pytest.approx(-(shares * shares.log()).sum().item(), abs=1e-4)
            value = policy.value_head(states[-1][0, place]).item()  # type: ignore[misc]
            assert said.values[row, at].item() == pytest.approx(value, abs=1e-4)
        assert not said.logprobs[row, len(sample.tokens) :].any()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_is_dealt_once_and_all_ranks_have_as_many_batches(world: int) -> None:
    lengths = [random.Random(i).randint(1, 40) for i in range(13)]
    hands = [dealt(range(1, 13), lengths, 60, Ranks(rank, world)) for rank in range(world)]
    assert sorted(row for hand in hands for batch in hand for row in batch) == list(range(1, 13))
    assert len({len(hand) for hand in hands}) == 1
    for hand in hands:
        for batch in hand:
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 60


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_is_dealt_once_into_packs_that_keep_to_the_budget(world: int) -> None:
    samples = drawn(*((random.Random(i).randint(1, 20), random.Random(-i).randint(1, 20)) for i in range(1, 40)))
    lengths = [sample.length for sample in samples]
    hands = [dealt(range(39), lengths, 120, Ranks(rank, world), packed=True) for rank in range(world)]
    assert sorted(row for hand in hands for batch in hand for row in batch) == list(range(39))
    assert len({len(hand) for hand in hands}) == 1
    places = 0
    for hand in hands:
        for batch in filter(None, hand):
            laid = Batch.of([samples[row] for row in batch], 0, packed=True)
            assert laid.tokens.numel() <= 120
            assert laid.attention is None
            assert int(laid.mask.sum()) == sum(len(samples[row].tokens) for row in batch)
            places += laid.tokens.numel()
    if world == 1:
        padded = [Batch.of([samples[row] for row in some], 0) for some in dealt(range(39), lengths, 120, ALONE)]
        assert sum(lengths) <= places < sum(batch.tokens.numel() for batch in padded)


class Leaky(torch.nn.Module):
    """A model that lets a sample see those before it in its row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, attention_mask: Any = None, position_ids: Any = None, **given: Any) -> Any:
        return self.model(attention_mask=torch.ones_like(given["input_ids"]), **given)


def test_samples_are_packed_where_a_model_keeps_them_apart_and_else_only_by_mistake(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    from tilth.train.ppo.settings import Algorithm

    def packed(policy: Policy, packing: Any) -> bool:
        return MicroBatches.of(policy, 0, ALONE, Algorithm(packing=packing)).packed

    model = AutoModelForCausalLM.from_pretrained(model_folder(tmp_path / "llama", "llama"))
    assert packed(Policy(model), "auto")
    assert packed(Policy(model), True)
    assert not packed(Policy(model), False)
    leaky = Leaky(model)
    assert not packed(Policy(leaky, reference=False), "auto")
    with pytest.raises(StageError, match="does not keep them apart"):
        packed(Policy(leaky, reference=False), True)
    # the critic reads the same rows
    critic = Critic(model)
    critic.model = leaky
    assert not packed(Policy(model, critic=critic), "auto")
