"""What each worker of the stage ppo does. Needs no Ray: `train(job, StoreLink(…))` trains in this process."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from tilth.data.dataset import Dataset
from tilth.data.loading import Card
from tilth.errors import StageError
from tilth.train import trace
from tilth.train.bests import best_at
from tilth.train.checkpoint import Link, scratch, upload
from tilth.train.deepspeed import without_compiled_collectives
from tilth.train.job import FAILED, RESULT, Job
from tilth.train.ppo import looks
from tilth.train.ppo.held_out import HeldOut
from tilth.train.ppo.learner import Learner, Settings
from tilth.train.ppo.loop import DivergedError, Loop, Plan, save_model
from tilth.train.ppo.optimiser import Optimiser, Stepping
from tilth.train.ppo.policy import Critic, Policy
from tilth.train.ppo.prompts import Prompt, prompts_of
from tilth.train.ppo.ranks import Ranks
from tilth.train.ppo.rollouts import Home
from tilth.train.ppo.scorers import Referee, opened
from tilth.train.ppo.source import Source
from tilth.train.rewards import Reward
from tilth.train.trackers import Scalars
from tilth.train.worker import parameters

if TYPE_CHECKING:
    from tilth.train.ppo.stage import Ppo


def train(job: Job, link: Link) -> None:
    """Train from the newest checkpoint, or from the start, and leave `model/`, the trace and `result.json`.

    A detector that stops training leaves `failed.json` instead.
    """
    start = time.monotonic()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    stage = _stage(job)
    source = Source(job.inputs, stage.model, stage.optimisation.seed)
    tokenizer = source.tokenizer()
    policy = _policy(stage, source)
    ranks = Ranks(link.rank, link.world)
    with ExitStack() as stack:
        folder = scratch()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        generating = stage.rollouts.start(Home(policy, tokenizer, source, stage.max_length, link.world))
        stack.callback(generating.close)
        scorers = opened(stage.scoring, _rewards(stage), job.inputs, _referee(stage, source), link.world)
        stack.callback(scorers.close)
        learner = Learner(
            policy, tokenizer, generating, scorers,
            Settings(stage.algorithm, stage.rollouts, stage.optimisation, stage.tolerance),
            ranks, _optimiser(stage, policy, ranks),
        )  # fmt: skip
        stack.callback(learner.close)
        try:
            _learn(job, link, learner, folder, start)
        except DivergedError as error:
            if link.rank == 0:
                trace.merge(job.out, error.step)
                job.out.write_json(FAILED, {"fingerprint": job.fingerprint, "why": str(error)})


def _learn(job: Job, link: Link, learner: Learner, folder: Path, start: float) -> None:
    """Step after step from the newest checkpoint, and what is left at the end."""
    stage = _stage(job)
    prompts, skipped = _prompts(job, stage.split, learner)
    plan = _plan(stage, len(prompts))
    loop = Loop(learner, prompts, _held_out(job, learner), plan, job.out, link, folder / "good")
    loop.resume()
    if link.rank == 0 and "tensorboard" in stage.trackers:
        loop.scalars = Scalars(job.out, folder, loop.step)
    try:
        loop.run()
    finally:
        if loop.scalars:
            loop.scalars.close()
    seconds = time.monotonic() - start
    _leave(job, loop, {"seconds": seconds, "prompts_too_long": skipped, "packed": learner.batches.packed})


def _stage(job: Job) -> Ppo:
    from tilth.train.ppo.stage import Ppo

    if not isinstance(job.stage, Ppo):
        raise TypeError(f"rewards are learnt from by the stage ppo, not {job.stage.kind}")
    return job.stage


def _policy(stage: Ppo, source: Source) -> Policy:
    """The model with its adapter, if any, and what foretells values, on this worker's device."""
    device = "cuda" if stage.scale.gpus else "cpu"
    critic = stage.algorithm.advantage.critic
    separate = critic is not None and critic.trunk == "separate"
    second = _critic(critic.model or source.config.name, source, device) if critic and separate else None
    policy = Policy(
        source.model(device), valued=critic is not None and not separate, critic=second,
        temperature=stage.rollouts.temperature, half=stage.half, reference=_referee(stage, source) is None,
    )  # fmt: skip
    if stage.scale.gradient_checkpointing:
        policy.recompute()
    return policy


def _critic(name: str, source: Source, device: str) -> Critic:
    """A model of its own that foretells values; StageError where it could not do that for the policy's tokens."""
    other = replace(source, config=source.config.model_copy(update={"name": name}))
    if name != source.config.name and other.tokenizer().get_vocab() != source.tokenizer().get_vocab():
        raise StageError(f"ppo: the critic {name} has other tokens than {source.config.name}; name its kin")
    found = Critic(other.model(device))
    if not found.causal():
        raise StageError(f"ppo: the critic {name} reads what comes after a token; name a causal model")
    return found


def _rewards(stage: Ppo) -> dict[str, Reward]:
    """The reward, and the gold one where it is another and is asked for."""
    gold = stage.gold.reward if stage.validation else None
    return {"reward": stage.reward, **({"gold": gold} if gold else {})}


def _referee(stage: Ppo, source: Source) -> Referee | None:
    """The reference, where it is a model of its own and not in the learner."""
    if stage.model.peft or not stage.scoring.apart:
        return None
    return Referee(source, stage.algorithm, stage.rollouts.temperature, stage.half)


def _optimiser(stage: Ppo, policy: Policy, ranks: Ranks) -> Stepping:
    """DeepSpeed's, where it is asked for."""
    if stage.scale.zero is None:
        return Optimiser(policy, stage.optimisation, ranks)
    if not stage.scale.gpus:
        without_compiled_collectives()
    from tilth.train.ppo.zero import ZeroOptimiser

    return ZeroOptimiser(policy, stage.optimisation, ranks, stage.scale.zero)


def _prompts(job: Job, split: str, learner: Learner) -> tuple[list[Prompt], int]:
    """The prompts of a split that leave room for a completion, and how many do not; StageError where none does."""
    stage = _stage(job)
    room = stage.max_length - stage.rollouts.max_tokens
    rows = Dataset.open(job.data).split(split).rows()
    found, skipped = prompts_of(rows, learner.tokenizer, room)
    if not found:
        raise StageError(
            f"{job.name}: none of the {skipped} prompts of split {split!r} has at most {room} tokens, which "
            f"max_length {stage.max_length} leaves beside a completion; raise max_length"
        )
    return found, skipped


def _held_out(job: Job, learner: Learner) -> HeldOut | None:
    stage = _stage(job)
    if stage.validation is None:
        return None
    found, skipped = _prompts(job, stage.validation.split, learner)
    if len(found) < 2:
        raise StageError(
            f"{job.name}: one prompt alone of split {stage.validation.split!r} fits ({skipped} are too long for "
            f"max_length {stage.max_length}), and a gain has no interval then; raise max_length, or hold out more"
        )
    judge = None if stage.gold.judge is None or learner.ranks.rank else stage.gold.judge.load(job.inputs)
    gold = learner.scorers.gold
    return HeldOut(found[: stage.gold.prompts], gold, stage.gold.shown, stage.optimisation.seed, judge)


def _plan(stage: Ppo, prompts: int) -> Plan:
    optimisation = stage.optimisation
    steps = optimisation.steps or max(1, int(-(-prompts // optimisation.global_batch) * optimisation.epochs))
    return Plan(
        steps, optimisation.global_batch, optimisation.seed, stage.watchers, stage.checkpointing, stage.validation,
        stage.gold.bounded(stage.algorithm.kl), bool(stage.rollouts.staleness),
    )  # fmt: skip


def _leave(job: Job, loop: Loop, measured: dict[str, Any]) -> None:
    """Save the model, then `result.json`: the moment at which training is done."""
    if loop.link.rank:
        return
    stage, folder = _stage(job), scratch()
    kept = _kept(loop)
    if kept == loop.step:
        save_model(loop.learner, folder)
    else:
        shutil.copytree(job.out.fetch(best_at(kept)), folder, dirs_exist_ok=True)
    peft = stage.model.peft.kind if stage.model.peft else None
    base, state = (job.base, job.base_identity) if peft else ("", "")
    Card("language_model", (), base, peft, stage.max_length, base_identity=state).write(folder)
    job.out.remove("model")
    upload(folder, job.out, "model")
    shutil.rmtree(folder)
    trace.merge(job.out, loop.step)
    result = {
        "fingerprint": job.fingerprint, "steps": loop.step, "workers": loop.link.world, "validation_loss": None,
        "parameters": parameters(loop.learner.policy.model), "roll_backs": loop.roll_backs,
        **_gains(loop, kept), **measured,
    }  # fmt: skip
    job.out.write_json(RESULT, result)


def _chooses(loop: Loop) -> bool:
    """Whether the weights that are left are those of the best look."""
    return bool(loop.found) and loop.plan.validation is not None and loop.plan.validation.keeps_best


def _kept(loop: Loop) -> int:
    """The step whose weights are left."""
    if not _chooses(loop):
        return loop.step
    return int(looks.best(loop.found, loop.plan.gold.max_kl)["step"])


def _gains(loop: Loop, kept: int) -> dict[str, Any]:
    """What the weights that are left are better by than those at the start, on held-out prompts."""
    if not loop.found:
        return {}
    first = loop.found[0]
    last = next(look for look in loop.found if look["step"] == kept)
    gold, low, high = looks.gain(first["golds"], last["golds"])
    crossed = looks.crossed(loop.found, loop.plan.gold.max_kl) if _chooses(loop) else (gold, low, high)
    reward = looks.gain(first["rewards"], last["rewards"])[0]
    return {
        "gold": last["gold"], "gold_gain": gold, "gold_gain_low": low, "gold_gain_high": high,
        "gold_gain_crossed": crossed[0], "gold_gain_crossed_low": crossed[1], "gold_gain_crossed_high": crossed[2],
        "reward_gain": reward, "held_out_kl": last["kl"], "best_step": kept, "parting": looks.parting(loop.found),
        **({"win_rate": last["win_rate"]} if "win_rate" in last else {}),
    }  # fmt: skip
