"""HCM-GRPO: a screener answers, its answers are graded, and what it does better than its own average becomes likelier.

One loop, read downwards: main, build, train, train_step, evaluate, save. Hard cases (hard_cases.py) choose the records;
with ``hard_cases = false`` the same command is plain GRPO. Formulas: objective.py; names of settings as in TRL.
Each prompt is computed once for its whole group, when writing (rollout.py) and when learning (shared_prefix.py).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.checkpoint import (
    DIFFICULTY,
    HARD_CASES,
    MODEL,
    REVIEW,
    SAMPLES,
    RunDirectory,
    TrainerState,
    restore,
)
from trainer.config import Refused, TrainingConfig, require
from trainer.contract.dimensions import Split
from trainer.contract.exports import ExportRefused
from trainer.contract.prompts import PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import Grade, RewardWeights, ScoreVariant, chance_levels
from trainer.data import PromptBatch, encode_prompts, make_example, open_export, read_split
from trainer.hard_cases import HardCaseConfig, HardCaseMode, HardCases, ReviewReason
from trainer.images import ImageStore
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
    refuse_divergence,
    set_learning_rate,
    training_screener_dtype,
)
from trainer.progress import Progress, StopBetweenSteps
from trainer.report import write_report
from trainer.rewards import exact_by_dimension, grade_completions, mean_figures, sample_row
from trainer.rollout import Sampling, Written, generate
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs


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
    """The frozen start model, where beta asks for it."""
    images: ImageStore
    train_records: dict[str, Record]
    validation_records: list[Record]
    optimizer: torch.optim.Optimizer
    hard_cases: HardCases
    directory: RunDirectory
    state: TrainerState
    budget: Budget
    progress: Progress


def main(config: GRPOConfig) -> None:
    """Train, and leave the model in ``run_dir/model``. A stop saves a checkpoint and raises KeyboardInterrupt."""
    run = build(config)
    mining_pass(run)
    train(run)
    save(run)
    finish(run)


def build(config: GRPOConfig) -> Run:
    """Read export and model, or the last checkpoint where the run is resumed. Refused says what is wrong."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    directory = RunDirectory(config)
    manifest = open_export(config.export_dir)
    records = read_split(config.export_dir, Split.TRAIN, config.dimensions, config.polarity)
    checkpoint = directory.latest_checkpoint() if config.resume else None
    dtype = training_screener_dtype(config)
    screener = load_screener(checkpoint / MODEL if checkpoint else config.model_dir, config.device, dtype)
    reference = None
    if config.beta:
        start = load_screener(config.model_dir, config.device, dtype) if checkpoint else screener
        reference = replace(start, model=copy.deepcopy(start.model).requires_grad_(False))
    if config.gradient_checkpointing:
        screener.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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
        progress=Progress("hcm-grpo" if config.hard_cases else "grpo"),
    )
    if not checkpoint:
        check_start(run)
    directory.begin(config, "grpo", manifest.version_id, state)
    return run


def mining_pass(run: Run) -> None:
    """Answer records once before the first step, so that hard ones are known from the start (`pass_generations`).

    Once per run: a checkpoint follows it. Its completions count as rollouts like all others.
    """
    mining = run.hard_cases.config
    if not mining.pass_generations or mining.mode is HardCaseMode.OFF or run.state.extra.get("mined"):
        return
    records = list(run.train_records.values())
    if mining.pass_records:
        records = records[:: max(1, len(records) // mining.pass_records)][: mining.pass_records]
    size = run.config.prompts_per_step
    began = time.monotonic()
    with StopBetweenSteps() as stop:
        for at in range(0, len(records), size):
            some = records[at : at + size]
            # Far above any step's: no two calls of a run draw alike.
            seed = run.config.seed * 1_000_003 + (1 << 40) + at
            for record, group in zip(some, write_groups(run, some, seed, mining.pass_generations), strict=True):
                texts = [one.text for one in group]
                run.hard_cases.observe(record.id, grade_completions(record, texts, run.config.reward))
            done = min(at + size, len(records))
            left = (time.monotonic() - began) / done * (len(records) - done)
            run.progress.show(done / len(records), left, mined=done, hard=run.hard_cases.counts()["hard"])
            if stop.requested:
                run.progress.say("mining pass: stopped; it would begin again")
                raise KeyboardInterrupt
    run.hard_cases.begin_stage()
    run.state.extra["mined"] = True
    counts = run.hard_cases.counts()
    run.directory.log(0, {"mining_pass": len(records), "rollouts": run.hard_cases.rollouts, "records": counts})
    run.directory.log_rows(HARD_CASES, 0, run.hard_cases.take_decisions())
    run.progress.say(
        f"mining pass: {run.hard_cases.rollouts} rollouts, {counts['hard']} of {len(records)} records hard"
    )
    save_checkpoint(run)


def train(run: Run) -> None:
    """Steps until the budget is spent; a checkpoint now and then, and when the run is stopped."""
    config, state = run.config, run.state
    with StopBetweenSteps() as stop:
        while not run.budget.over:
            figures = train_step(run)
            state.step += 1
            run.budget.done_steps = state.step
            state.seconds = run.budget.seconds
            if config.evaluate_every and state.step % config.evaluate_every == 0:
                figures |= evaluate(run)
            run.directory.log(state.step, figures)
            run.directory.log_rows(HARD_CASES, state.step, run.hard_cases.take_decisions())
            run.progress.show(
                run.budget.fraction,
                run.budget.seconds_left,
                **{name: figures[name] for name in ("reward", "exact", "parsable", "zero_advantage")},
                hard=figures["records"]["hard"],
            )
            if stop.requested or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                save_checkpoint(run)
            if stop.requested:
                finish(run)
                raise KeyboardInterrupt
    run.directory.log(state.step, evaluate(run))


def train_step(run: Run) -> dict[str, Any]:
    """Draw records, answer each in a group, grade, remember, and learn from the groups whose rewards differ."""
    config = run.config
    began = time.monotonic()
    draws = run.hard_cases.draw_batch(config.prompts_per_step)
    records = [run.train_records[draw.record_id] for draw in draws]
    groups = write_groups(run, records, seed=config.seed * 1_000_003 + run.state.step)
    grades = [
        grade_completions(record, [one.text for one in group], config.reward)
        for record, group in zip(records, groups, strict=True)
    ]
    for record, earned in zip(records, grades, strict=True):
        run.hard_cases.observe(record.id, earned)
    rewards_NG = torch.tensor([[grade.reward for grade in earned] for earned in grades])
    signal_N = groups_with_signal(rewards_NG)
    rate = set_learning_rate(run.optimizer, run.budget.fraction, config)
    learnt: dict[str, Any] = {}
    if live := signal_N.nonzero()[:, 0].tolist():
        advantages_NG = group_advantages(rewards_NG, config.scale_rewards)
        learnt = learn(run, [records[n] for n in live], [groups[n] for n in live], advantages_NG[live])
    flat = [(record, grade) for record, earned in zip(records, grades, strict=True) for grade in earned]
    seconds = time.monotonic() - began
    return {
        **mean_figures([grade for _, grade in flat]),
        "exact_by_dimension": exact_by_dimension([record for record, _ in flat], [grade for _, grade in flat]),
        "reward_std": float(rewards_NG.std(1).mean()),
        "zero_advantage": 1 - float(signal_N.float().mean()),
        **_writing_figures([one for group in groups for one in group], seconds),
        **learnt,
        "learning_rate": rate,
        "replays": sum(draw.replay for draw in draws),
        "epoch": run.hard_cases.epoch,
        "rollouts": run.hard_cases.rollouts,
        "records": run.hard_cases.counts(),
        "seconds": seconds,
    }


def write_groups(run: Run, records: list[Record], seed: int, generations: int = 0) -> list[list[Written]]:
    """A group of sampled completions for each record, of `num_generations` unless another number is given."""
    config = run.config
    sampling = Sampling(
        max_new_tokens=config.max_completion_length, temperature=config.temperature, top_p=config.top_p, seed=seed
    )
    prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
    run.screener.model.eval()
    with computing(run.screener, config):
        return generate(
            run.screener,
            prompts,
            [run.images.of(record) for record in records],
            sampling,
            generations or config.num_generations,
        )


def learn(run: Run, records: list[Record], groups: list[list[Written]], advantages_NG: Tensor) -> dict[str, Any]:
    """`num_iterations` updates from groups whose rewards differ; groups left out count in the mean as zeros.

    With beta above 0 they are left out of the KL too: the batch is then what moves the model, and what is held back.
    """
    config = run.config
    # Checkpointed layers recompute only in training mode; these models have no dropout, so it changes nothing else.
    run.screener.model.train(config.gradient_checkpointing)
    whole = {
        "rows": config.prompts_per_step * config.num_generations,
        "tokens": sum(len(one.token_ids) for group in groups for one in group),
    }
    pieces = list(_pieces(run, records, groups, advantages_NG.to(run.screener.device)))
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
                totals["kl"] += float((kl_RC.detach() * mask_RC).sum()) / whole["tokens"]
            loss = aggregate(
                per_token_RC, mask_RC, config.loss_type, max_completion_length=config.max_completion_length, **whole
            )
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["clipped"] += float((clipped_RC * mask_RC).sum()) / whole["tokens"]
        step, last_good = run.state.step + 1, run.directory.latest_checkpoint()
        refuse_divergence("loss", totals["loss"], step, last_good)
        figures = totals | {"grad_norm": clip_and_step(run.optimizer, config.clip)}
        refuse_divergence("gradient", figures["grad_norm"], step, last_good)
    return figures | {"logprob_gap": _logprob_gap(groups, old_logprobs)}


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
        reference_RC = None
        if run.reference is not None:
            with torch.no_grad(), computing(run.reference, run.config):
                reference_RC = completion_logprobs(run.reference, packed, run.config.temperature).logprobs
        yield _Piece(packed, advantages_NG[some].flatten(), reference_RC)


def _encode(run: Run, records: list[Record]) -> PromptBatch:
    prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
    return encode_prompts(run.screener, prompts, [run.images.of(record) for record in records])


def evaluate(run: Run) -> dict[str, Any]:
    """Greedy answers to validation records, as figures for metrics.jsonl; some of them are kept in samples.jsonl.

    Nothing without validation records.
    """
    config = run.config
    if not run.validation_records:
        return {}
    run.screener.model.eval()
    sampling = Sampling(max_new_tokens=config.max_completion_length)
    grades: list[Grade] = []
    samples: list[dict[str, Any]] = []
    every = max(1, len(run.validation_records) // max(1, config.sample_completions))
    with run.budget.paused(), computing(run.screener, config):
        for at in range(0, len(run.validation_records), 64):
            records = run.validation_records[at : at + 64]
            prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
            written = generate(run.screener, prompts, [run.images.of(record) for record in records], sampling)
            for record, (one,) in zip(records, written, strict=True):
                if len(grades) % every == 0 and len(samples) < config.sample_completions:
                    samples.append(sample_row(record, one.text, config.reward))
                grades += grade_completions(record, [one.text], config.reward)
    run.directory.log_rows(SAMPLES, run.state.step, samples)
    by_dimension = exact_by_dimension(run.validation_records, grades)
    return {"validation": {**mean_figures(grades), "exact_by_dimension": by_dimension, "records": len(grades)}}


def save(run: Run) -> None:
    """The final model, and the labels the platform should look at again."""
    path = run.directory.save_model(run.screener, run.config.stored_dtype)
    parked, suspects = write_findings(run)
    run.progress.say(
        f"saved {path}; {suspects} suspect labels and {parked - suspects} other parked records in "
        f"{run.directory.path / REVIEW}"
    )


def save_checkpoint(run: Run) -> None:
    """Weights, optimizer, and the state of the hard cases."""
    run.state.extra["hard_cases"] = run.hard_cases.state_dict()
    run.directory.save_checkpoint(run.screener, run.optimizer, run.state)
    write_findings(run)


def write_findings(run: Run) -> tuple[int, int]:
    """difficulty.jsonl and review.jsonl as they are by now; how many records are parked, and how many of them suspect.

    review.jsonl is for the platform: one row per parked record, with why it is one.
    """
    rows = run.hard_cases.for_review()
    run.directory.write_rows(REVIEW, [asdict(row) for row in rows])
    run.directory.write_rows(DIFFICULTY, run.hard_cases.difficulties())
    return len(rows), sum(row.reason is ReviewReason.SUSPECT_LABEL for row in rows)


def finish(run: Run) -> None:
    """Trackers and the report, when the run ends or is stopped."""
    run.directory.close()
    if run.config.report:
        run.progress.say(write_report(run.directory.path))


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
