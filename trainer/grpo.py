"""HCM-GRPO: a screener answers, its answers are graded, and what it does better than its own average becomes likelier.

One loop, read downwards: main, build, train, train_step, evaluate, save. Hard cases (hard_cases.py) choose the records;
with ``hard_cases = false`` the same command is plain GRPO. Formulas: objective.py; names of settings as in TRL.
Each prompt is computed once for its whole group, when writing (rollout.py) and when learning (shared_prefix.py).
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.checkpoint import RunDirectory, TrainerState, restore
from trainer.config import Refused, TrainingConfig, require
from trainer.contract.dimensions import Split
from trainer.contract.exports import ExportRefused, read_manifest
from trainer.contract.prompts import PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import Grade, RewardWeights, ScoreVariant, chance_levels
from trainer.data import PromptBatch, encode_prompts, make_example, read_split
from trainer.distributed import ALONE, Ranks, joined_ranks
from trainer.hard_cases import HardCaseConfig, HardCaseMode, HardCases
from trainer.images import ImageStore
from trainer.lora import adapter_disabled
from trainer.memory import announce, estimate, load_of, naming_what_to_lower
from trainer.model import Screener, load_screener
from trainer.objective import (
    LossType,
    ScaleRewards,
    aggregate,
    clipped_objective,
    group_advantages,
    groups_with_signal,
    kl_estimate,
)
from trainer.optimization import (
    Budget,
    clip_and_step,
    computing,
    make_optimizer,
    set_learning_rate,
    training_screener_dtype,
)
from trainer.preparation import check_first_batch, prepare, refresh, split, start_directory
from trainer.progress import Progress, StopBetweenSteps, told_pace
from trainer.rewards import grade_completions, mean_figures
from trainer.rollout import Sampling, Written, generate
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs

SUSPECTS = "suspects.jsonl"


class StartRefused(Refused):
    """The start model cannot learn from reward yet; the message says what was measured."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainingConfig):
    """What a GRPO run is. Defaults are ours unless a field names TRL; none is the paper's."""

    learning_rate: float = 5e-5
    """Peak rate of AdamW. A higher one was unstable on the tiny model (measured, ours)."""
    prompts_per_step: int = 8
    """Records per step; each is answered `num_generations` times."""
    num_generations: int = 8
    """Completions per prompt, the group an answer is compared with (TRL's default)."""
    num_iterations: int = 1
    """Updates per batch of completions (TRL's default); with one, the ratio is 1 and nothing is clipped."""
    temperature: float = 1.0
    """Of sampling, and of the log-probabilities that are optimized."""
    top_p: float = 1.0
    """Draw among the likeliest words that together have this probability."""
    max_completion_length: int = 256
    """Longest completion in tokens (TRL's default)."""
    epsilon: float = 0.2
    """The ratio is clipped at 1 − epsilon (TRL's default)."""
    epsilon_high: float | None = None
    """The ratio is clipped at 1 + epsilon_high; None takes epsilon (TRL's default)."""
    beta: float = 0.0
    """Weight of the KL to the frozen start model, which is then held in memory too (TRL's default: 0, none)."""
    loss_type: LossType = LossType.GRPO
    """How per-token losses become one number."""
    scale_rewards: ScaleRewards = ScaleRewards.GROUP
    """What advantages are divided by."""
    reward: RewardWeights = field(default_factory=RewardWeights)
    """What a completion earns."""
    hard_cases: bool = True
    """Mine hard cases; false is plain GRPO."""
    mining: HardCaseConfig = field(default_factory=HardCaseConfig)
    """The rules of hard-case mining."""
    groups_per_forward: int = 8
    """Groups in one training forward; fewer need less memory and give the same gradient."""
    start_gate: Literal["refuse", "warn", "off"] = "refuse"
    """What to do about a start model that writes too few readable answers to learn from."""
    start_parsable: float = 0.5
    """The least share of readable completions at the start. GRPO amplifies what is there; it starts nothing."""
    start_records: int = 32
    """Records answered to find out."""
    evaluate_every: int = 0
    """Steps between evaluations on validation records; 0 evaluates at the end only."""
    evaluate_records: int = 256
    """Validation records of an evaluation during the run; 0 skips them. The evaluate command does it in full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompts_per_step", "num_iterations", "max_completion_length", "groups_per_forward"):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, got {getattr(self, name)}")
        require(self.num_generations >= 2, f"num_generations: expected 2 or more, got {self.num_generations}")
        require(self.temperature > 0, f"temperature: expected more than 0, got {self.temperature:g}")
        require(0 < self.top_p <= 1, f"top_p: expected more than 0 and at most 1, got {self.top_p:g}")
        require(0 < self.epsilon < 1, f"epsilon: expected a fraction between 0 and 1, got {self.epsilon:g}")
        require((self.epsilon_high or 1) > 0, f"epsilon_high: expected more than 0, got {self.epsilon_high}")
        require(self.beta >= 0, f"beta: expected 0 or more, got {self.beta:g}")
        for name in ("evaluate_every", "evaluate_records", "start_records"):
            require(getattr(self, name) >= 0, f"{name}: expected 0 or more, got {getattr(self, name)}")


@dataclass(kw_only=True)
class Run:
    """Everything a run holds."""

    config: GRPOConfig
    screener: Screener
    reference: Screener | None
    """The frozen start model, where beta asks for it and there is no adapter to switch off instead."""
    images: ImageStore
    train_records: dict[str, Record]
    validation_records: list[Record]
    optimizer: torch.optim.Optimizer
    hard_cases: HardCases
    directory: RunDirectory
    state: TrainerState
    budget: Budget
    progress: Progress
    ranks: Ranks
    writer: Screener
    """What writes completions: the screener, or a whole copy of it where it is split among processes."""
    checked: bool = False
    """Whether the first batch was compared with repeated prompts."""
    told_pace: bool = False
    """Whether this sitting has said how long a step takes."""


def main(config: GRPOConfig) -> None:
    """Train, and leave the model in ``run_dir/model``. A stop saves a checkpoint and raises KeyboardInterrupt."""
    with joined_ranks(config) as ranks:
        run = build(config, ranks)
        train(run)
        save(run)


def build(config: GRPOConfig, ranks: Ranks = ALONE) -> Run:
    """Read export and model, or the last checkpoint where the run is resumed. Refused says what is wrong."""
    require(
        config.prompts_per_step >= ranks.count,
        f"prompts_per_step: expected at least one for each of {ranks.count} processes, got {config.prompts_per_step}",
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    directory = RunDirectory(config, ranks)
    manifest = read_manifest(config.export_dir)
    records = read_split(config.export_dir, Split.TRAIN, config.dimensions, config.polarity)
    checkpoint = directory.latest_checkpoint() if config.resume else None
    dtype = training_screener_dtype(config)
    screener = load_screener(start_directory(config, checkpoint), config.device, dtype)
    reference = None
    if config.beta and not config.lora.r:
        start = load_screener(config.model_dir, config.device, dtype) if checkpoint else screener
        reference = replace(start, model=copy.deepcopy(start.model).requires_grad_(False))
        split(reference, config)
    screener = prepare(screener, config, ranks, checkpoint, dropout=False)
    writer = split(screener, config)
    optimizer = make_optimizer(screener, config)
    mining = config.mining if config.hard_cases else replace(config.mining, mode=HardCaseMode.OFF)
    hard_cases = HardCases({record.id: record.answer for record in records}, mining, config.seed)
    state = TrainerState()
    if checkpoint:
        state = restore(checkpoint, optimizer, screener.device)
        hard_cases.load_state_dict(state.extra["hard_cases"])
    run = Run(
        config=config,
        screener=screener,
        reference=reference,
        images=ImageStore(screener, config.export_dir, config.image_max_side, config.image_cache_mb << 20),
        train_records={record.id: record for record in records},
        validation_records=_validation_records(config),
        optimizer=optimizer,
        hard_cases=hard_cases,
        directory=directory,
        state=state,
        budget=Budget(config.steps, config.minutes, done_steps=state.step, spent_before=state.seconds),
        progress=Progress("hcm-grpo" if config.hard_cases else "grpo", shown=ranks.main),
        ranks=ranks,
        writer=writer,
    )
    announce_memory(run)
    if not checkpoint:
        check_start(run)
    directory.begin(config, "grpo", manifest.version_id, state)
    return run


def announce_memory(run: Run) -> None:
    """Say what a step will need, from the shapes of the first records and the longest completions."""
    config = run.config
    records = list(run.train_records.values())[: config.groups_per_forward]
    asked = [make_example(record, PromptKind.ASK).prompt for record in records]
    prompts = encode_prompts(run.screener, asked, [run.images.of(record) for record in records])
    longest = config.num_generations * config.max_completion_length
    share = -(-config.prompts_per_step // run.ranks.count)
    load = load_of(
        run.screener,
        prompts,
        len(records) * longest,
        len(records) * longest,
        share * (int(prompts.lengths.max()) + longest),
    )
    copies = (run.reference is not None) + (run.writer is not run.screener)
    found = estimate(run.screener, config, load, processes=run.ranks.count, copies=copies)
    for line in announce(run.screener, found, _lower(config)):
        run.progress.say(line)


def _lower(config: GRPOConfig) -> str:
    """What to set where a step does not fit."""
    if config.groups_per_forward > 1:
        return f"lower groups_per_forward (now {config.groups_per_forward})"
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing=true"
    return "lower image_max_side or max_completion_length, or train an adapter (lora.r=16)"


def train(run: Run) -> None:
    """Steps until the budget is spent; a checkpoint now and then, and when the run is stopped."""
    config, state = run.config, run.state
    with StopBetweenSteps() as stop:
        while not run.ranks.any(run.budget.over):
            figures = train_step(run)
            if not run.told_pace:
                run.told_pace = True
                run.progress.say(told_pace(figures["seconds"], run.budget))
            state.step += 1
            run.budget.done_steps = state.step
            state.seconds = run.budget.seconds
            if config.evaluate_every and state.step % config.evaluate_every == 0:
                figures |= evaluate(run)
            run.directory.log(state.step, figures)
            run.progress.show(
                run.budget.fraction,
                run.budget.seconds_left,
                **{name: figures[name] for name in ("reward", "exact", "parsable", "zero_advantage")},
                hard=figures["records"]["hard"],
            )
            stopped = run.ranks.any(stop.requested)
            if stopped or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                save_checkpoint(run)
            if stopped:
                raise KeyboardInterrupt
    run.directory.log(state.step, evaluate(run))


def train_step(run: Run) -> dict[str, Any]:
    """Draw records, answer each in a group, grade, remember, and learn from the groups whose rewards differ."""
    config = run.config
    began = time.monotonic()
    draws = run.hard_cases.draw_batch(config.prompts_per_step)
    records = [run.train_records[draw.record_id] for draw in draws]
    writing = f"writing completions in step {run.state.step + 1}"
    fewer = f"lower prompts_per_step (now {config.prompts_per_step}) or max_completion_length"
    with naming_what_to_lower(writing, fewer, run.directory):
        groups = write_groups(run, records, seed=config.seed * 1_000_003 + run.state.step)
    grades = [
        grade_completions(record, [one.text for one in group], config.reward)
        for record, group in zip(records, groups, strict=True)
    ]
    for record, earned in zip(records, grades, strict=True):
        run.hard_cases.observe(record.id, earned)
    rewards_NG = torch.tensor([[grade.reward for grade in earned] for earned in grades])
    signal_N = groups_with_signal(rewards_NG)
    rate = set_learning_rate(run.optimizer, run.ranks.first(run.budget.fraction), config)
    learnt: dict[str, Any] = {}
    if live := signal_N.nonzero()[:, 0].tolist():
        advantages_NG = group_advantages(rewards_NG, config.scale_rewards)
        mine = [place for place, n in enumerate(live) if n % run.ranks.count == run.ranks.rank]
        with naming_what_to_lower(f"learning in step {run.state.step + 1}", _lower(config), run.directory):
            learnt = learn(run, [records[n] for n in live], [groups[n] for n in live], advantages_NG[live], mine)
    seconds = time.monotonic() - began
    return {
        **mean_figures([grade for earned in grades for grade in earned]),
        "reward_std": float(rewards_NG.std(1).mean()),
        "zero_advantage": 1 - float(signal_N.float().mean()),
        **_writing_figures([one for group in groups for one in group], seconds),
        **learnt,
        "learning_rate": rate,
        "replays": sum(draw.replay for draw in draws),
        "epoch": run.hard_cases.epoch,
        "records": run.hard_cases.counts(),
        "seconds": seconds,
    }


def write_groups(run: Run, records: list[Record], seed: int) -> list[list[Written]]:
    """A group of sampled completions for each record; each process writes its share, and all have all of them."""
    config = run.config
    sampling = Sampling(
        max_new_tokens=config.max_completion_length, temperature=config.temperature, top_p=config.top_p, seed=seed
    )
    places = run.ranks.share(range(len(records)))
    prompts = [make_example(records[place], PromptKind.ASK).prompt for place in places]
    images = [run.images.of(records[place]) for place in places]
    run.writer.model.eval()
    with computing(run.writer, config):
        written = generate(run.writer, prompts, images, sampling, config.num_generations, places) if places else []
    return run.ranks.interleave(written)


def learn(
    run: Run,
    records: list[Record],
    groups: list[list[Written]],
    advantages_NG: Tensor,
    mine: list[int] | None = None,
) -> dict[str, Any]:
    """`num_iterations` updates from groups whose rewards differ; groups left out count in the mean as zeros.

    With beta above 0 they are left out of the KL too: the batch is then what moves the model, and what is held back.
    `mine`: the groups this process learns from, those it has written (default: all); the processes' gradients add up.
    """
    config = run.config
    # Checkpointed layers recompute only in training mode; these models have no dropout, so it changes nothing else.
    run.screener.model.train(config.gradient_checkpointing)
    whole = {
        "rows": config.prompts_per_step * config.num_generations,
        "tokens": sum(len(one.token_ids) for group in groups for one in group),
    }
    mine = list(range(len(records))) if mine is None else mine
    advantages_NG = advantages_NG.to(run.screener.device)
    own = -(-len(mine) // config.groups_per_forward)
    # Split weights want equally many passes in every process, and average what is to be added up.
    rounds, scale = (run.ranks.most(own), run.ranks.count) if config.fsdp else (own, 1)
    pieces = list(_pieces(run, [records[n] for n in mine], [groups[n] for n in mine], advantages_NG[mine]))
    for _ in range(rounds - own):
        pieces.extend(_pieces(run, records[:1], groups[:1], advantages_NG[:1]))
    if config.self_check and not run.checked and pieces:
        check_first_batch(run.screener, config, pieces[0].groups)
        run.checked = True
    old_logprobs: list[Tensor] = []
    figures: dict[str, float] = {}
    for iteration in range(config.num_iterations):
        totals = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
        for place, piece in enumerate(pieces):
            with computing(run.screener, config):
                scored = completion_logprobs(run.screener, piece.groups, config.temperature)
            mask_RC = scored.mask.float()
            if iteration == 0:
                # Nothing has changed since the completions were written: these are the old log-probabilities.
                old_logprobs.append(scored.logprobs.detach())
            per_token_RC, clipped_RC = clipped_objective(
                scored.logprobs,
                old_logprobs[place],
                piece.advantages_R,
                epsilon=config.epsilon,
                epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            )
            if piece.reference_logprobs_RC is not None:
                kl_RC = kl_estimate(scored.logprobs, piece.reference_logprobs_RC)
                per_token_RC = per_token_RC + config.beta * kl_RC
                totals["kl"] += float((kl_RC.detach() * mask_RC).sum()) / whole["tokens"] * (place < own)
            loss = aggregate(
                per_token_RC, mask_RC, config.loss_type, max_completion_length=config.max_completion_length, **whole
            )
            (loss * (scale if place < own else 0)).backward()  # type: ignore[no-untyped-call]
            if place >= own:
                continue  # a pass that other processes wait for
            totals["loss"] += float(loss.detach())
            totals["clipped"] += float((clipped_RC * mask_RC).sum()) / whole["tokens"]
        run.ranks.add_gradients(parameter for group in run.optimizer.param_groups for parameter in group["params"])
        figures = dict(zip(totals, run.ranks.sum(list(totals.values())), strict=True))
        figures |= {"grad_norm": clip_and_step(run.optimizer, config.clip)}
    refresh(run.writer, run.screener)
    gap = _logprob_gap([groups[n] for n in mine], old_logprobs[:own])
    return figures | {"logprob_gap": max(run.ranks.gather(gap))}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Groups that go through one training forward."""

    groups: PrefixGroups
    advantages_R: Tensor
    reference_logprobs_RC: Tensor | None


def _pieces(run: Run, records: list[Record], groups: list[list[Written]], advantages_NG: Tensor) -> Iterator[_Piece]:
    size = run.config.groups_per_forward
    for at in range(0, len(groups), size):
        some = slice(at, at + size)
        packed = PrefixGroups(
            _encode(run, records[some]), [[Branch([], one.token_ids) for one in group] for group in groups[some]]
        )
        yield _Piece(packed, advantages_NG[some].flatten(), _reference_logprobs(run, packed))


@torch.no_grad()
def _reference_logprobs(run: Run, packed: PrefixGroups) -> Tensor | None:
    """(R, C) under the start model: a frozen copy, or the same weights without the adapter; None where beta is 0."""
    if not run.config.beta:
        return None
    adapted = run.reference is None
    reference = run.reference or run.screener
    with computing(reference, run.config), adapter_disabled(reference.model) if adapted else contextlib.nullcontext():
        return completion_logprobs(reference, packed, run.config.temperature).logprobs


def _encode(run: Run, records: list[Record]) -> PromptBatch:
    prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
    return encode_prompts(run.screener, prompts, [run.images.of(record) for record in records])


def evaluate(run: Run) -> dict[str, Any]:
    """Greedy answers to validation records, as figures for metrics.jsonl; none without validation records."""
    config = run.config
    if not run.validation_records:
        return {}
    run.writer.model.eval()
    sampling = Sampling(max_new_tokens=config.max_completion_length)
    mine = run.ranks.share(run.validation_records)
    grades: list[Grade] = []
    with run.budget.paused(), computing(run.writer, config):
        for at in range(0, len(mine), 64):
            records = mine[at : at + 64]
            prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
            written = generate(run.writer, prompts, [run.images.of(record) for record in records], sampling)
            for record, (one,) in zip(records, written, strict=True):
                grades += grade_completions(record, [one.text], config.reward)
        grades = run.ranks.interleave(grades)
    return {"validation": {**mean_figures(grades), "records": len(grades)}}


def save(run: Run) -> None:
    """The final model, and the labels the platform should look at again."""
    path = run.directory.save_model(run.screener, run.config.stored_dtype)
    suspects = write_suspects(run)
    run.progress.say(f"saved {path}; {suspects} suspect labels in {run.directory.path / SUSPECTS}")


def save_checkpoint(run: Run) -> None:
    """Weights, optimizer, and the state of the hard cases."""
    run.state.extra["hard_cases"] = run.hard_cases.state_dict()
    run.directory.save_checkpoint(run.screener, run.optimizer, run.state)
    write_suspects(run)


def write_suspects(run: Run) -> int:
    """suspects.jsonl: one row per suspect label so far; how many."""
    suspects = run.hard_cases.suspects()
    rows = "".join(json.dumps(asdict(suspect), ensure_ascii=False) + "\n" for suspect in suspects)
    if run.ranks.main:
        (run.directory.path / SUSPECTS).write_text(rows, encoding="utf-8")
    return len(suspects)


def check_start(run: Run) -> None:
    """Answer some records before the first step. StartRefused (or a warning) when too few answers are readable.

    Answers that are right no more often than when dealt out at random are warned of: the model does not look at the
    images yet, and such starts collapsed (measured on a tiny model, ours).
    """
    config = run.config
    records = list(run.train_records.values())
    records = records[:: max(1, len(records) // max(1, config.start_records))][: config.start_records]
    if config.start_gate == "off" or not records:
        return
    grades: list[list[Grade]] = []
    for at in range(0, len(records), config.prompts_per_step):
        some = records[at : at + config.prompts_per_step]
        for record, group in zip(some, write_groups(run, some, seed=config.seed), strict=True):
            grades.append(grade_completions(record, [one.text for one in group], config.reward))
    flat = [(grade, record) for record, earned in zip(records, grades, strict=True) for grade in earned]
    found = mean_figures([grade for grade, _ in flat])
    if found["parsable"] < config.start_parsable:
        message = (
            f"model_dir: {config.model_dir} writes {found['parsable']:.0%} readable answers, expected at least "
            f"{config.start_parsable:.0%} (start_parsable): train it with sft first, or set start_gate=warn"
        )
        if config.start_gate == "refuse":
            raise StartRefused(message)
        run.progress.say(f"warning: {message}")
    chance = chance_levels(
        ScoreVariant.EXACT,
        [grade.answer for grade, _ in flat],
        [record.answer for _, record in flat],
        [len(record.candidates) for _, record in flat],
    )
    if found["exact"] <= chance.permuted:
        run.progress.say(
            f"warning: the start model is exact on {found['exact']:.1%} of answers, and on {chance.permuted:.1%} when "
            "the same answers are dealt out at random: it does not seem to look at the images yet"
        )


def _validation_records(config: GRPOConfig) -> list[Record]:
    """A spread of validation records; none where the export has none in these dimensions."""
    if not config.evaluate_records:
        return []
    try:
        records = read_split(config.export_dir, Split.VALIDATION, config.dimensions, config.polarity)
    except ExportRefused:
        return []
    return records[:: max(1, len(records) // config.evaluate_records)][: config.evaluate_records]


def _writing_figures(written: list[Written], seconds: float) -> dict[str, float]:
    tokens = sum(len(one.token_ids) for one in written)
    return {
        "completion_tokens": tokens / len(written),
        "truncated": sum(not one.finished for one in written) / len(written),
        # Of sampled words −log p is on average the entropy (exactly so for top_p 1).
        "entropy": -sum(sum(one.logprobs) for one in written) / tokens,
        "tokens_per_second": tokens / seconds,
    }


def _logprob_gap(groups: list[list[Written]], scored: list[Tensor]) -> float:
    """Largest difference between the log-probabilities of writing and of learning: large means one of them is wrong."""
    rows = iter([one for group in groups for one in group])
    gap = 0.0
    for logprobs_RC in scored:
        for logprobs_C in logprobs_RC.cpu():
            one = next(rows)
            gap = max(gap, float((logprobs_C[: len(one.logprobs)] - torch.tensor(one.logprobs)).abs().max()))
    return gap
