"""SFT, the cold start: teach a model to write the rationale and the answer that stand for a record.

Read downwards: main -> build -> train -> train_step -> evaluate -> save. All questions about one sample share its
images: one packed row per sample (shared_prefix.py). Any mix of the three prompts is taught, since the trained model
is to serve all three. A model without weights begins here, if wanted with its vision tower warmed up first.
Not here: sampling and reward (grpo.py), scoring by generation (evaluate.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from trainer.augmentation import mirror_images, mirror_rationale, permute_candidates
from trainer.checkpoint import SAMPLES, RunDirectory, TrainerState, saved_if_it_fails
from trainer.config import TrainingConfig, require
from trainer.contract.dimensions import Split
from trainer.contract.exports import ExportRefused
from trainer.contract.prompts import PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import RewardWeights
from trainer.data import (
    Example,
    completion_ids,
    encode_prompts,
    group_by_sample,
    make_example,
    question_ids,
    read_split,
)
from trainer.distributed import ALONE, Ranks, joined_ranks
from trainer.images import ImageStore, ImageTensor
from trainer.memory import announce, estimate, load_of, naming_what_to_lower
from trainer.model import Screener, has_weights, load_screener, new_screener
from trainer.optimization import (
    Budget,
    clip_and_step,
    computing,
    refuse_divergence,
    set_learning_rate,
    training_screener_dtype,
)
from trainer.pace import forward_seconds, learning_seconds, told_estimate
from trainer.preparation import check_first_batch, make_ready, open_run, start_directory
from trainer.progress import Progress, StopBetweenSteps, told_pace
from trainer.rewards import sample_row
from trainer.rollout import Sampling, generate
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs
from trainer.vision_warmup import VisionWarmupConfig, warm_up


@dataclass(frozen=True, kw_only=True)
class PromptMix:
    """How often each prompt is taught, in proportion. A record without a rationale is always asked."""

    ask: float = 1.0
    """Reasoning and answer from the images."""
    explain: float = 0.0
    """The reasoning to a given answer."""
    resolve: float = 0.0
    """The answer from the images and a given reasoning."""

    def __post_init__(self) -> None:
        weights = (self.ask, self.explain, self.resolve)
        require(min(weights) >= 0 and sum(weights) > 0, "prompt_mix: expected weights of 0 or more, one of them more")

    def draw(self, rng: random.Random) -> PromptKind:
        """One kind by weight."""
        return rng.choices(list(PromptKind), weights=(self.ask, self.explain, self.resolve))[0]


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Settings of SFT. Defaults are ours: the paper's are not known to us."""

    prompt_mix: PromptMix = field(default_factory=PromptMix)
    """Which prompts are taught how often."""
    batch_samples: int = 8
    """Samples per optimizer step; each brings its records in all dimensions."""
    accumulate: int = 1
    """Pieces a batch is computed in, one after the other, to save memory; the gradient is the same."""
    answer_only: bool = False
    """Records without a rationale teach their answer alone; otherwise they are left out."""
    permute: bool = False
    """Show candidates in another order each time, where the rationale can be relabelled with certainty."""
    mirror: bool = False
    """Show half the samples mirrored, where left and right in their rationales are certainly sides: they are exchanged.
    Not for pictures with lettering, which is wrong in a mirror."""
    vision_warmup: VisionWarmupConfig = field(default_factory=VisionWarmupConfig)
    """A first phase for the vision tower alone."""
    evaluate_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    evaluate_samples: int = 64
    """Validation samples to use, from the front; 0 leaves evaluation out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_samples > 0, f"batch_samples: expected 1 or more, got {self.batch_samples}")
        require(
            1 <= self.accumulate <= self.batch_samples,
            f"accumulate: expected 1 to batch_samples ({self.batch_samples}), got {self.accumulate}",
        )
        require(
            not (self.vision_warmup.wanted and (self.lora.r or self.fsdp)),
            "vision_warmup: expected neither lora.r nor fsdp beside it: warm the tower up in a run of its own",
        )
        require(self.evaluate_every >= 0, f"evaluate_every: expected 0 or more, got {self.evaluate_every}")
        require(self.evaluate_samples >= 0, f"evaluate_samples: expected 0 or more, got {self.evaluate_samples}")


@dataclass
class Run:
    """Everything a step needs."""

    config: SFTConfig
    directory: RunDirectory
    screener: Screener
    optimizer: torch.optim.Optimizer
    store: ImageStore
    train_samples: list[list[Record]]
    validation_samples: list[list[Record]]
    state: TrainerState
    progress: Progress = field(default_factory=lambda: Progress("sft"))
    ranks: Ranks = ALONE
    told_pace: bool = False
    """Whether this sitting has said what a step needs and how long it takes."""
    checked: bool = False
    """Whether the first batch was compared with repeated prompts."""


def main(config: SFTConfig) -> None:
    """One run, from settings to a model directory. Raises Refused, ExportRefused or RecordRefused."""
    with joined_ranks(config) as ranks:
        run = build(config, ranks)
        warm_up_vision(run)
        train(run)
        save(run)
        run.progress.say(run.directory.finish())


def build(config: SFTConfig, ranks: Ranks = ALONE) -> Run:
    """Read the export, load or begin the model, and put the run where its last checkpoint left it."""
    opened = open_run(config, "sft", ranks, shared="batch_samples")
    progress = Progress("sft", shown=ranks.main)
    train_samples = _samples(config, Split.TRAIN, progress)
    validation = _validation_samples(config, progress)
    ready = make_ready(opened, _screener(config, opened.checkpoint, train_samples), config, ranks)
    opened.begin(config, ready.state)
    return Run(
        config=config,
        directory=opened.directory,
        screener=ready.screener,
        optimizer=ready.optimizer,
        store=ready.images,
        train_samples=train_samples,
        validation_samples=validation,
        state=ready.state,
        progress=progress,
        ranks=ranks,
    )


def warm_up_vision(run: Run) -> None:
    """The vision tower's own phase, once; a checkpoint after it, so that it is never repeated."""
    if not run.config.vision_warmup.wanted or run.state.step or run.state.extra.get("vision_warmed"):
        return
    shown = Progress("vision warm-up", shown=run.ranks.main)
    with StopBetweenSteps() as stop:

        def on_step(budget: Budget, figures: dict[str, float]) -> bool:
            shown.show(budget.fraction, budget.seconds_left, **figures)
            if budget.done_steps % 20 == 0:
                run.directory.log(0, {"phase": "vision_warmup", "warmup_step": budget.done_steps, **figures})
            return stop.requested

        warm_up(
            run.screener,
            run.train_samples,
            run.store,
            run.config.vision_warmup,
            seed=run.config.seed,
            mirrored=run.config.mirror,
            on_step=on_step,
        )
    if run.ranks.any(stop.requested):
        # Its throw-away heads and their optimizer are not kept: what is left of it could not go on.
        shown.say("vision warm-up: stopped; it begins again with --set resume=true")
        raise KeyboardInterrupt
    run.ranks.same_weights(run.screener.model)
    run.state.extra["vision_warmed"] = True
    save_checkpoint(run)


def train(run: Run) -> None:
    """Steps until the budget is spent. A stop saves a checkpoint and raises KeyboardInterrupt."""
    config, state = run.config, run.state
    budget = Budget(config.steps, config.minutes, done_steps=state.step, spent_before=state.seconds)
    with StopBetweenSteps() as stop:
        while not run.ranks.any(budget.over or stop.requested):
            rate = set_learning_rate(run.optimizer, run.ranks.first(budget.fraction), config)
            batch = next_batch(run)
            if not run.told_pace:
                with budget.paused():
                    announce_step(run, batch, budget)
            began = time.monotonic()
            with naming_what_to_lower(f"learning in step {state.step + 1}", _lower(config), run.directory):
                figures = train_step(run, batch)
            if not run.told_pace:
                run.told_pace = True
                run.progress.say(told_pace(time.monotonic() - began, budget))
            state.step = budget.done_steps = state.step + 1
            state.seconds = budget.seconds
            run.directory.log(state.step, {**figures, "learning_rate": rate, "seconds": round(state.seconds, 3)})
            run.progress.show(budget.fraction, budget.seconds_left, step=state.step, **figures)
            with budget.paused():
                if config.evaluate_every and state.step % config.evaluate_every == 0:
                    with saved_if_it_fails(config, lambda: save_checkpoint(run)):
                        evaluate(run)
                if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                    save_checkpoint(run)
    if not run.ranks.any(budget.over):
        where = save_checkpoint(run)
        run.progress.say(run.directory.finish())
        run.progress.say(f"sft: stopped after step {state.step}; go on from {where} with --set resume=true")
        raise KeyboardInterrupt


def announce_step(run: Run, batch: Sequence[Shown], budget: Budget) -> None:
    """Say what a step will need and how long it will take, from the first batch."""
    piece = batch[: -(-len(batch) // run.config.accumulate)]
    groups = _groups(run.screener, piece, [_branches(run.screener, shown) for shown in piece])
    branches = [branch for of_sample in groups.branches for branch in of_sample]
    said = sum(len(branch.completion) for branch in branches)
    load = load_of(run.screener, groups.prompts, said + sum(len(branch.question) for branch in branches), said)
    found = estimate(run.screener, run.config, load, processes=run.ranks.count)
    for line in announce(run.screener, found, _lower(run.config)):
        run.progress.say(f"sft: {line}")
    with naming_what_to_lower("timing a forward pass", _lower(run.config), run.directory):
        forward = forward_seconds(run.screener, run.config, groups)
    passes = -(-len(batch) // len(piece))
    run.progress.say(f"sft: {told_estimate(passes * learning_seconds(forward, run.config), 0.0, budget)}")


def _lower(config: SFTConfig) -> str:
    """What to set where a step does not fit."""
    if config.accumulate < config.batch_samples:
        return f"raise accumulate (now {config.accumulate}, up to batch_samples)"
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing=true"
    return "lower image_max_side, or train an adapter (lora.r=16)"


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample as one step shows it: its images, and an example per record."""

    images: list[ImageTensor]
    examples: list[Example]


def train_step(run: Run, batch: Sequence[Shown]) -> dict[str, float]:
    """One optimizer step: the mean negative log-probability of all target tokens of the batch, and its figures."""
    run.screener.model.train()
    branches = [_branches(run.screener, shown) for shown in batch]
    (tokens,) = run.ranks.sum([sum(len(branch.completion) for of_sample in branches for branch in of_sample)])
    total = 0.0
    size = -(-len(batch) // run.config.accumulate)
    # Weights that are split want equally many passes in every process, and average what is to be added up.
    rounds = run.ranks.most(-(-len(batch) // size)) if run.config.fsdp else -(-len(batch) // size)
    scale = run.ranks.count if run.config.fsdp else 1
    for number in range(rounds):
        piece = slice(number * size, (number + 1) * size)
        counts = bool(batch[piece])
        groups = _groups(run.screener, batch[piece] or batch[:1], branches[piece] or branches[:1])
        if run.config.self_check and not run.checked:
            check_first_batch(run.screener, run.config, groups)
            run.checked = True
        with computing(run.screener, run.config):
            said = completion_logprobs(run.screener, groups)
        loss = -said.logprobs.sum() / tokens * counts
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    (total,) = run.ranks.sum([total])
    step, last_good = run.state.step + 1, run.directory.latest_checkpoint()
    refuse_divergence("loss", total, step, last_good)
    run.ranks.add_gradients(parameter for group in run.optimizer.param_groups for parameter in group["params"])
    norm = clip_and_step(run.optimizer, run.config.clip)
    refuse_divergence("gradient", norm, step, last_good)
    return {"loss": total, "grad_norm": norm, "tokens": tokens}


def next_batch(run: Run) -> list[Shown]:
    """The samples of the coming step, this process's share of them. Order and augmentation follow from seed and step,
    so a resumed run sees the same. Every sample is shown once before any is shown again.
    """
    count, size = len(run.train_samples), run.config.batch_samples
    shown = []
    for number in run.ranks.share(range(run.state.step * size, (run.state.step + 1) * size)):
        order = _order(count, run.config.seed, number // count)
        rng = random.Random(f"{run.config.seed}/{number}")  # noqa: S311 - a draw, not a secret
        shown.append(_show(run, run.train_samples[order[number % count]], rng))
    return shown


def evaluate(run: Run) -> dict[str, float]:
    """On validation samples under the ask prompt: the loss, and how often greedy decoding would write the target.

    The second is a lower bound of exact match: another rationale may lead to the same answer.
    """
    if not run.validation_samples:
        return {}
    fewer = f"lower evaluate_samples (now {run.config.evaluate_samples}) or batch_samples"
    with naming_what_to_lower("evaluating", fewer, run.directory):
        figures = _validate(run)
        run.directory.log(run.state.step, figures)
        keep_samples(run)
    run.progress.say(f"sft: step {run.state.step}  " + "  ".join(f"{n} {v:.4f}" for n, v in figures.items()))
    return figures


@torch.no_grad()
def _validate(run: Run) -> dict[str, float]:
    run.screener.model.eval()
    loss = tokens = written = records = 0.0
    mine, size = run.ranks.share(run.validation_samples), run.config.batch_samples
    rounds = run.ranks.most(-(-len(mine) // size)) if run.config.fsdp else -(-len(mine) // size)
    for number in range(rounds):
        samples = mine[number * size : (number + 1) * size]
        batch = [
            Shown(run.store.of(sample[0]), [make_example(record, PromptKind.ASK) for record in sample])
            for sample in samples or run.validation_samples[:1]
        ]
        branches = [_branches(run.screener, shown) for shown in batch]
        with computing(run.screener, run.config):
            said = completion_logprobs(run.screener, _groups(run.screener, batch, branches))
        if not samples:
            continue  # a pass that other processes wait for
        loss -= float(said.logprobs.sum())
        tokens += int(said.mask.sum())
        written += int((said.greedy | ~said.mask).all(dim=1).sum())
        records += len(said.mask)
    loss, tokens, written, records = run.ranks.sum([loss, tokens, written, records])
    return {"validation_loss": loss / tokens, "validation_written": written / records}


def keep_samples(run: Run) -> None:
    """What the model writes by itself about a few validation records, spread over them, into samples.jsonl.

    The first process alone writes them; split weights cannot, and leave none.
    """
    records = [record for sample in run.validation_samples for record in sample]
    if not run.config.sample_completions or run.config.fsdp or not run.ranks.main:
        return
    some = records[:: max(1, len(records) // run.config.sample_completions)][: run.config.sample_completions]
    longest = max(len(completion_ids(run.screener, make_example(record, PromptKind.ASK).target)) for record in some)
    with computing(run.screener, run.config):
        written = generate(
            run.screener,
            [make_example(record, PromptKind.ASK).prompt for record in some],
            [run.store.of(record) for record in some],
            Sampling(max_new_tokens=2 * longest),
        )
    rows = [sample_row(record, one.text, RewardWeights()) for record, (one,) in zip(some, written, strict=True)]
    run.directory.log_rows(SAMPLES, run.state.step, rows)


def save(run: Run) -> None:
    """Write the finished model as a plain directory, and then say how good it is: whatever stops the last evaluation,
    nothing of the run is lost.
    """
    where = run.directory.save_model(run.screener, run.config.stored_dtype)
    run.progress.say(f"sft: {run.state.step} steps in {run.state.seconds:.0f} s; the model is in {where}")
    evaluate(run)


def save_checkpoint(run: Run) -> Path:
    """Weights, optimizer, and where the run stands."""
    return run.directory.save_checkpoint(run.screener, run.optimizer, run.state)


def _samples(config: SFTConfig, split: Split, progress: Progress) -> list[list[Record]]:
    records = read_split(config.export_dir, split, config.dimensions, config.polarity)
    usable = records if config.answer_only else [record for record in records if record.rationale.strip()]
    if not usable:
        raise ExportRefused(
            f"{config.export_dir}: no {split} record has a rationale; set answer_only=true to teach answers alone"
        )
    if left_out := len(records) - len(usable):
        progress.say(f"sft: {left_out} {split} records without a rationale are left out")
    return group_by_sample(usable)


def _validation_samples(config: SFTConfig, progress: Progress) -> list[list[Record]]:
    """Samples to evaluate on, from the front; none where the export has none that can be used: training needs none."""
    if not config.evaluate_samples:
        return []
    try:
        return _samples(config, Split.VALIDATION, progress)[: config.evaluate_samples]
    except ExportRefused as error:
        progress.say(f"sft: no evaluation: {error}")
        return []


def _screener(config: SFTConfig, checkpoint: Path | None, samples: Sequence[Sequence[Record]]) -> Screener:
    dtype = training_screener_dtype(config)
    if checkpoint or has_weights(config.model_dir):
        return load_screener(start_directory(config, checkpoint), config.device, dtype)
    require(not config.lora.r, f"lora.r: {config.model_dir} has no weights to train an adapter beside: set lora.r=0")
    texts = _texts(config, samples)
    return new_screener(config.model_dir, texts, config.seed, config.device, dtype)


def _texts(config: SFTConfig, samples: Sequence[Sequence[Record]]) -> list[str]:
    """What a new model's tokenizer is trained on: the questions and targets it will meet, in their proportions."""
    rng = random.Random(config.seed)  # noqa: S311 - a draw, not a secret
    texts = []
    for record in (record for sample in samples for record in sample):
        example = make_example(record, config.prompt_mix.draw(rng))
        texts += ["user\n", *(part.text for part in example.prompt.parts if hasattr(part, "text")), "assistant\n"]
        texts.append(example.target)
    return texts


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/epoch/{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
    return order


def _show(run: Run, sample: Sequence[Record], rng: random.Random) -> Shown:
    records = list(sample)
    if run.config.permute:
        order = list(range(len(records[0].candidates)))
        rng.shuffle(order)
        permuted = [permute_candidates(record, order) for record in records]
        # One row shows one order of images: either every record of the sample can follow it, or none does.
        records = [p or r for p, r in zip(permuted, records, strict=True)] if all(permuted) else records
    images = run.store.of(records[0])
    if run.config.mirror and rng.random() < 0.5:
        turned = [one for one in map(mirror_rationale, records) if one]
        # One row shows one view of the images, too.
        if len(turned) == len(records):
            images, records = mirror_images(images), turned
    kinds = [run.config.prompt_mix.draw(rng) if record.rationale.strip() else PromptKind.ASK for record in records]
    return Shown(images, [make_example(record, kind) for record, kind in zip(records, kinds, strict=True)])


def _branches(screener: Screener, shown: Shown) -> list[Branch]:
    return [
        Branch(question_ids(screener, example.prompt), completion_ids(screener, example.target))
        for example in shown.examples
    ]


def _groups(screener: Screener, batch: Sequence[Shown], branches: Sequence[Sequence[Branch]]) -> PrefixGroups:
    heads = [shown.examples[0].prompt for shown in batch]
    return PrefixGroups(encode_prompts(screener, heads, [shown.images for shown in batch], head_only=True), branches)
