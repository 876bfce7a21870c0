"""HCM-GRPO: a screener answers, its answers are graded, and what it does better than its own average becomes likelier.

One loop, read downwards: main, build, train, train_step, evaluate, save. Hard cases (hard_cases.py) choose the records;
with ``hard_cases = false`` the same command is plain GRPO. Formulas: objective.py; names of settings as in TRL.
Each prompt is computed once for its whole group, when writing (rollout.py) and when learning (shared_prefix.py).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from trainer.checkpoint import (
    DIFFICULTY,
    HARD_CASES,
    REVIEW,
    SAMPLES,
    RunDirectory,
    TrainerState,
    saved_if_it_fails,
)
from trainer.config import ConfigRefused, Refused, TrainingConfig, require
from trainer.contract.dimensions import Split
from trainer.contract.exports import ExportRefused
from trainer.contract.prompts import PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import Grade, RewardWeights, ScoreVariant, chance_levels
from trainer.data import PromptBatch, encode_prompts, make_example, read_split
from trainer.distributed import ALONE, Ranks, joined_ranks
from trainer.hard_cases import HardCaseConfig, HardCaseMode, HardCases, ReviewReason
from trainer.images import ImageStore
from trainer.lora import adapter_disabled
from trainer.memory import Load, announce, estimate, load_of, naming_what_to_lower
from trainer.model import Screener, load_screener
from trainer.objective import (
    ImportanceLevel,
    LossType,
    Objective,
    RolloutCorrection,
    ScaleRewards,
    aggregate,
    group_advantages,
    groups_with_signal,
    rollout_correction,
    token_losses,
)
from trainer.optimization import (
    Budget,
    clip_and_step,
    computing,
    refuse_divergence,
    set_learning_rate,
    training_screener_dtype,
)
from trainer.pace import forward_seconds, learning_seconds, told_estimate
from trainer.preparation import (
    as_configured,
    check_first_batch,
    make_ready,
    open_run,
    refresh,
    split,
    start_directory,
)
from trainer.progress import Progress, StopBetweenSteps, told_pace
from trainer.rewards import exact_by_dimension, grade_completions, mean_figures, sample_row
from trainer.rollout import Sampling, Written, generate
from trainer.rollout_engines import Asked, OwnEngine, RolloutEngine, ServerEngine
from trainer.seen_prompts import Once, SeenPrompts, see
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs


class StartRefused(Refused):
    """The start model cannot learn from reward yet; the message says what was measured."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainingConfig):
    """What a GRPO run is. Defaults are ours unless a field names TRL; none is the paper's."""

    learning_rate: float = 5e-5
    """Peak rate of AdamW; a higher one was unstable on the tiny model (measured, ours). TRL's default is 1e-06, which
    suits a published model."""
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
    top_k: int = 0
    """Draw among this many of the likeliest words; 0 among all (TRL's default)."""
    min_p: float | None = None
    """Draw among words at least this fraction as likely as the likeliest; None among all (TRL's default)."""
    repetition_penalty: float = 1.0
    """Above 1, words of the prompt and of the completion so far become less likely (TRL's default: 1, none)."""
    max_completion_length: int = 256
    """Longest completion in tokens. TRL's default is 512; a reasoning about four candidates is shorter (ours)."""
    mask_truncated_completions: bool = False
    """Learn nothing from completions that were cut off (TRL's default: false, they are graded as they are)."""
    epsilon: float = 0.2
    """The ratio is clipped at 1 − epsilon (TRL's default)."""
    epsilon_high: float | None = None
    """The ratio is clipped at 1 + epsilon_high; None takes epsilon (TRL's default)."""
    delta: float | None = None
    """Bound of the ratio where a bad completion became likelier, above 1 + epsilon_high; None: none (TRL's default)."""
    importance_sampling_level: ImportanceLevel = ImportanceLevel.TOKEN
    """One ratio per token, or one per completion as in GSPO (TRL's default: token)."""
    beta: float = 0.0
    """Weight of the KL to the frozen start model, which is then held in memory too (TRL's default: 0, none)."""
    use_bias_correction_kl: bool = True
    """The KL is multiplied by the ratio, which makes its gradient unbiased (TRL's default)."""
    loss_type: LossType = LossType.GRPO
    """How per-token losses become one number (TRL's default: dapo)."""
    scale_rewards: ScaleRewards = ScaleRewards.GROUP
    """What advantages are divided by (TRL's default: group)."""
    reward: RewardWeights = field(default_factory=RewardWeights)
    """What a completion earns."""
    use_vllm: bool = False
    """A vLLM server writes the completions, the model itself otherwise (TRL's name; its server mode)."""
    vllm_server_base_url: str = "http://127.0.0.1:8000"
    """Where it listens. It serves `vllm_model_dir` and was started with VLLM_SERVER_DEV_MODE=1."""
    vllm_model_dir: Path | None = None
    """The directory it serves, which every update writes anew; None: `run_dir`/served."""
    vllm_server_timeout: float = 240.0
    """Seconds to wait for a reply, or for the server to be up (TRL's default)."""
    vllm_importance_sampling_correction: bool = True
    """Weigh what the server drew by the ratio of the model's probability to the server's (TRL's default)."""
    vllm_importance_sampling_mode: RolloutCorrection = RolloutCorrection.TOKEN_TRUNCATE
    """How the ratio is bounded (TRL's default: sequence_mask)."""
    vllm_importance_sampling_clip_max: float = 3.0
    """Its upper bound (TRL's default)."""
    vllm_importance_sampling_clip_min: float | None = None
    """Its lower bound; None: none (TRL's default)."""
    hard_cases: bool = True
    """Mine hard cases; false is plain GRPO."""
    mining: HardCaseConfig = field(default_factory=HardCaseConfig)
    """The rules of hard-case mining."""
    groups_per_forward: int = 8
    """Groups in one training forward; fewer need less memory and give the same gradient."""
    compute_once: Once = "prompts"
    """What of a step is computed once for writing and learning: whole prompts, or only what the tower makes of their
    images, or nothing; each needs less memory than the one before. Layers that are computed again going backward
    (gradient_checkpointing) and prefix_attention=mask keep the images at most, split weights (fsdp) nothing."""
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
        require(self.top_k >= 0, f"top_k: expected 0 or more, got {self.top_k}")
        require(0 <= (self.min_p or 0) <= 1, f"min_p: expected a fraction from 0 to 1, got {self.min_p}")
        require(
            self.repetition_penalty > 0, f"repetition_penalty: expected more than 0, got {self.repetition_penalty:g}"
        )
        require(
            self.epsilon_high is None or self.epsilon_high > 0,
            f"epsilon_high: expected more than 0, got {self.epsilon_high}",
        )
        require(
            self.vllm_server_base_url.startswith(("http://", "https://")),
            f"vllm_server_base_url: expected http:// or https://, got {self.vllm_server_base_url!r}",
        )
        require(
            self.vllm_server_timeout > 0, f"vllm_server_timeout: expected more than 0, got {self.vllm_server_timeout}"
        )
        require(
            self.vllm_importance_sampling_clip_max > 0,
            f"vllm_importance_sampling_clip_max: expected more than 0, got {self.vllm_importance_sampling_clip_max}",
        )
        require(self.delta is None or self.delta > 1, f"delta: expected more than 1, got {self.delta}")
        require(self.beta >= 0, f"beta: expected 0 or more, got {self.beta:g}")
        for name in ("evaluate_every", "evaluate_records", "start_records"):
            require(getattr(self, name) >= 0, f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.vllm_model_dir is not None:
            inside = self.vllm_model_dir.resolve().is_relative_to(self.model_dir.resolve())
            require(
                not inside, f"vllm_model_dir: {self.vllm_model_dir} is written anew: expected it outside of model_dir"
            )

    @property
    def once(self) -> Once:
        """`compute_once`, as far as the other settings allow it."""
        if self.fsdp:
            return "nothing"
        kept_graph = not self.gradient_checkpointing and self.prefix_attention != "mask"
        return self.compute_once if kept_graph or self.compute_once == "nothing" else "images"

    @property
    def objective(self) -> Objective:
        """The loss these settings name."""
        return Objective(
            loss_type=self.loss_type,
            max_completion_length=self.max_completion_length,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon if self.epsilon_high is None else self.epsilon_high,
            importance_sampling_level=self.importance_sampling_level,
            delta=self.delta,
            beta=self.beta,
            use_bias_correction_kl=self.use_bias_correction_kl,
        )


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
    engine: RolloutEngine
    """Who drives it."""
    checked: bool = False
    """Whether the first batch was compared with repeated prompts."""
    told_pace: bool = False
    """Whether this sitting has said how long a step takes."""


def main(config: GRPOConfig) -> None:
    """Train, and leave the model in ``run_dir/model``. A stop saves a checkpoint and raises KeyboardInterrupt."""
    with joined_ranks(config) as ranks:
        run = build(config, ranks)
        mining_pass(run)
        train(run)
        save(run)
        run.progress.say(run.directory.finish())


def build(config: GRPOConfig, ranks: Ranks = ALONE) -> Run:
    """Read export and model, or the last checkpoint where the run is resumed. Refused says what is wrong."""
    opened = open_run(config, "grpo", ranks, shared="prompts_per_step")
    records = read_split(config.export_dir, Split.TRAIN, config.dimensions, config.polarity)
    start = load_screener(start_directory(config, opened.checkpoint), config.device, training_screener_dtype(config))
    reference = _reference(config, opened.checkpoint, start)
    ready = make_ready(opened, start, config, ranks, dropout=False)
    mining = config.mining if config.hard_cases else replace(config.mining, mode=HardCaseMode.OFF)
    hard_cases = HardCases({record.id: record.answer for record in records}, mining, config.seed)
    state = ready.state
    if opened.checkpoint:
        try:
            hard_cases.load_state_dict(state.extra["hard_cases"])
        except (KeyError, ValueError) as error:
            raise ConfigRefused(f"{opened.checkpoint}: cannot be resumed from ({error})") from None
    run = Run(
        config=config,
        screener=ready.screener,
        reference=reference,
        images=ready.images,
        train_records={record.id: record for record in records},
        validation_records=_validation_records(config),
        optimizer=ready.optimizer,
        hard_cases=hard_cases,
        directory=opened.directory,
        state=state,
        budget=Budget(config.steps, config.minutes, done_steps=state.step, spent_before=state.seconds),
        progress=Progress("hcm-grpo" if config.hard_cases else "grpo", shown=ranks.main),
        ranks=ranks,
        writer=ready.writer,
        engine=_engine(config),
    )
    # A server may hold weights of an earlier run.
    if config.use_vllm and ranks.main:
        run.engine.take_weights(run.writer)
    announce_memory(run)
    announce_time(run, None if opened.checkpoint else check_start(run))
    opened.begin(config, state)
    return run


def _reference(config: GRPOConfig, checkpoint: Path | None, start: Screener) -> Screener | None:
    """The frozen start model, where beta asks for it and there is no adapter to switch off instead."""
    if not config.beta or config.lora.r:
        return None
    if checkpoint:
        start = load_screener(config.model_dir, config.device, training_screener_dtype(config))
    reference = as_configured(replace(start, model=copy.deepcopy(start.model).requires_grad_(False)), config)
    split(reference, config)
    return reference


def mining_pass(run: Run) -> None:
    """Answer records once before the first step, so that hard ones are known from the start (`pass_generations`).

    Once per run: a checkpoint follows it, and a stop in its middle, which is where it then goes on. Its completions
    count as rollouts like all others.
    """
    mining, extra = run.hard_cases.config, run.state.extra
    if not mining.pass_generations or mining.mode is HardCaseMode.OFF or extra.get("mined"):
        return
    records = list(run.train_records.values())
    if mining.pass_records:
        records = records[:: max(1, len(records) // mining.pass_records)][: mining.pass_records]
    size, first = run.config.prompts_per_step, extra.get("mined_records", 0)
    began = time.monotonic()
    with StopBetweenSteps() as stop:
        for at in range(first, len(records), size):
            some = records[at : at + size]
            with naming_what_to_lower("mining", _fewer(run.config), run.directory):
                seen = see_records(run, some, learning=False)
                groups = write_groups(run, seen, some, _seed(run, "mining", at), mining.pass_generations)
            for record, group in zip(some, groups, strict=True):
                texts = [one.text for one in group]
                run.hard_cases.observe(record.id, grade_completions(record, texts, run.config.reward))
            extra["mined_records"] = done = min(at + size, len(records))
            left = (time.monotonic() - began) / (done - first) * (len(records) - done)
            run.progress.show(done / len(records), left, mined=done, hard=run.hard_cases.counts()["hard"])
            if done < len(records) and run.ranks.any(stop.requested):
                run.directory.log_rows(HARD_CASES, 0, run.hard_cases.take_decisions())
                _stop(run, f"mining pass: stopped after {done} of {len(records)} records")
    run.hard_cases.begin_stage()
    extra["mined"] = True
    counts = run.hard_cases.counts()
    told = {"mining_pass": len(records), "rollouts": run.hard_cases.rollouts, "records": counts}
    run.directory.log(0, {**told, "seconds": time.monotonic() - began})
    run.directory.log_rows(HARD_CASES, 0, run.hard_cases.take_decisions())
    run.progress.say(
        f"mining pass: {run.hard_cases.rollouts} rollouts, {counts['hard']} of {len(records)} records hard"
    )
    if run.ranks.any(stop.requested):
        _stop(run, "mining pass: stopped at its end")
    save_checkpoint(run)


def announce_memory(run: Run) -> None:
    """Say what a step will need, from the shapes of the first records and the longest completions."""
    copies = (run.reference is not None) + (run.writer is not run.screener)
    found = estimate(run.screener, run.config, step_load(run), processes=run.ranks.count, copies=copies)
    for line in announce(run.screener, found, _lower(run.config)):
        run.progress.say(line)


def step_load(run: Run) -> Load:
    """The most that goes through the model at one time of a step."""
    config = run.config
    share, at_once = _share(run)
    prompts = _first_prompts(run, share)
    longest = config.num_generations * config.max_completion_length
    # What is computed once is held of all prompts until the step is over, branches only while they are learnt from.
    of_row = prompts if config.once == "prompts" else _first_prompts(run, at_once)
    branches = at_once * longest
    load = load_of(run.screener, of_row, branches, branches, share * (int(prompts.lengths.max()) + longest))
    if config.once == "nothing":
        return load
    seen = load_of(run.screener, prompts, 0, 0)
    held = seen.row_tokens if config.once == "prompts" else 0
    return replace(load, patches=seen.patches, held_tokens=held, held_patches=seen.patches)


def announce_time(run: Run, start: StartPace | None) -> None:
    """Say what a step will take. Without a start gate the longest completions are counted, and no writing."""
    config = run.config
    share, at_once = _share(run)
    length = config.max_completion_length if start is None else max(1, round(start.tokens))
    said = [Branch([], [run.screener.end_token_id] * length)] * config.num_generations
    prompts = _first_prompts(run, at_once)
    groups = PrefixGroups(prompts, [said] * len(prompts.lengths))
    with naming_what_to_lower("timing a forward pass", _lower(config), run.directory):
        forward = forward_seconds(run.screener, config, groups)
    passes = -(-share // at_once)
    learning = passes * (config.num_iterations * learning_seconds(forward, config) + (forward if config.beta else 0))
    writing = None if start is None else start.seconds * config.prompts_per_step
    run.progress.say(told_estimate(learning, writing, run.budget))


def _share(run: Run) -> tuple[int, int]:
    """How many of a step's prompts are this process's, and how many of them are learnt from at one time."""
    share = -(-run.config.prompts_per_step // run.ranks.count)
    return share, min(run.config.groups_per_forward, share)


def _first_prompts(run: Run, count: int) -> PromptBatch:
    records = list(run.train_records.values())[:count]
    asked = [make_example(record, PromptKind.ASK).prompt for record in records]
    return encode_prompts(run.screener, asked, [run.images.of(record) for record in records])


def _lower(config: GRPOConfig) -> str:
    """What to set where a step does not fit."""
    if config.groups_per_forward > 1:
        return f"lower groups_per_forward (now {config.groups_per_forward})"
    if config.once != "nothing":
        return f"set compute_once={'images' if config.once == 'prompts' else 'nothing'}"
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing=true"
    return "lower image_max_side or max_completion_length, or train an adapter (lora.r=16)"


def _fewer(config: GRPOConfig) -> str:
    """What to set where writing does not fit."""
    return f"lower prompts_per_step (now {config.prompts_per_step}) or max_completion_length"


def _seed(run: Run, phase: str, number: int) -> int:
    """The seed of one call that draws completions: no two of a run draw alike.

    Hashed, since torch's generator takes 32 bits of a seed: of sums and shifts the difference may be cut off.
    """
    told = hashlib.sha256(f"{phase}/{run.config.seed}/{number}".encode()).digest()
    return int.from_bytes(told[:4], "big")


def train(run: Run) -> None:
    """Steps until the budget is spent; a checkpoint now and then, and when the run is stopped."""
    config, state = run.config, run.state
    run.budget.begin()
    with StopBetweenSteps() as stop:
        while not run.ranks.any(run.budget.over):
            figures = train_step(run)
            if not run.told_pace:
                run.told_pace = True
                run.progress.say(told_pace(figures["seconds"], run.budget))
            state.step += 1
            run.budget.done_steps = state.step
            state.seconds = run.budget.seconds
            run.directory.log(state.step, figures)
            run.directory.log_rows(HARD_CASES, state.step, run.hard_cases.take_decisions())
            run.progress.show(
                run.budget.fraction,
                run.budget.seconds_left,
                **{name: figures[name] for name in ("reward", "exact", "parsable", "zero_advantage")},
                hard=figures["records"]["hard"],
            )
            if config.evaluate_every and state.step % config.evaluate_every == 0:
                with saved_if_it_fails(config, lambda: save_checkpoint(run)):
                    keep_evaluation(run)
            if run.ranks.any(stop.requested):
                _stop(run, f"grpo: stopped after step {state.step}")
            if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                save_checkpoint(run)


def _stop(run: Run, told: str) -> NoReturn:
    where = save_checkpoint(run)
    run.progress.say(run.directory.finish())
    run.progress.say(f"{told}; go on from {where} with --set resume=true")
    raise KeyboardInterrupt


def train_step(run: Run) -> dict[str, Any]:
    """Draw records, answer each in a group, grade, remember, and learn from the groups whose rewards differ."""
    config = run.config
    began = time.monotonic()
    draws = run.hard_cases.draw_batch(config.prompts_per_step)
    records = [run.train_records[draw.record_id] for draw in draws]
    writing = f"writing completions in step {run.state.step + 1}"
    fewer = _fewer(config) if config.once == "nothing" else f"{_fewer(config)}, or set compute_once=nothing"
    with naming_what_to_lower(writing, fewer, run.directory):
        seen = see_records(run, records)
        groups = write_groups(run, seen, records, _seed(run, "step", run.state.step))
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
        tokens = _taught_tokens(run, range(len(groups)), groups)
        with naming_what_to_lower(f"learning in step {run.state.step + 1}", _lower(config), run.directory):
            learnt = learn(run, seen, live, [groups[n] for n in live], advantages_NG[live], tokens)
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


def see_records(run: Run, records: list[Record], *, learning: bool = True) -> SeenPrompts:
    """This process's share of the ask prompts about some records, and what writing and learning have in common."""
    config = run.config
    every = range(len(records))
    # Split weights are looked at inside of a forward only, and any process may be given any prompt to fill up a round.
    places = every if config.fsdp else run.ranks.share(every)
    prompts = [make_example(records[place], PromptKind.ASK).prompt for place in places]
    images = [run.images.of(records[place]) for place in places]
    # Checkpointed layers recompute only in training mode; these models have no dropout, so it changes nothing else.
    run.screener.model.train(config.gradient_checkpointing)
    with computing(run.screener, config):
        return see(run.screener, prompts, images, places, once=config.once if learning else "nothing")


def write_groups(
    run: Run, seen: SeenPrompts, records: list[Record], seed: int, generations: int = 0
) -> list[list[Written]]:
    """A group of sampled completions for each record, of `num_generations` unless another number is given.

    Each process writes its share, and all have all of them.
    """
    config = run.config
    sampling = Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=seed,
    )
    run.writer.model.eval()
    seen = replace(seen, screener=run.writer)
    with computing(run.writer, config):
        asked = [
            Asked(place, make_example(records[place], PromptKind.ASK).prompt, seen.images_of(place))
            for place in run.ranks.share(range(len(records)))
        ]
        written = run.engine.write(asked, seen, sampling, generations or config.num_generations)
    return run.ranks.interleave(written)


def learn(
    run: Run,
    seen: SeenPrompts,
    places: list[int],
    groups: list[list[Written]],
    advantages_NG: Tensor,
    tokens: Sequence[int] | None = None,
) -> dict[str, Any]:
    """`num_iterations` updates from groups whose rewards differ; groups left out count in the mean as zeros.

    `places` says which prompts the groups are about; `tokens` how many each process's part of the whole batch teaches
    (default: these groups do). A process learns from the groups it has written; the processes' gradients add up. With
    beta above 0 groups left out are left out of the KL too: the batch is then what moves the model, and what is held
    back.
    """
    config, objective, ranks = run.config, run.config.objective, run.ranks
    run.screener.model.train(config.gradient_checkpointing)
    mine = [n for n, place in enumerate(places) if place % ranks.count == ranks.rank]
    written = [one for n in mine for one in groups[n] if _teaches(one, config)]
    tokens = _taught_tokens(run, places, groups) if tokens is None else tokens
    whole = {"rows": config.prompts_per_step * config.num_generations, "tokens": sum(tokens)}
    if config.loss_type is LossType.BNPO:
        # Each process takes the mean over its own tokens, and the mean of these is taken.
        whole["tokens"] = tokens[ranks.rank] * ranks.count
    advantages_NG = advantages_NG.to(run.screener.device)
    pieces = list(_pieces(run, seen, [places[n] for n in mine], [groups[n] for n in mine], advantages_NG[mine]))
    own, scale = len(pieces), 1
    if config.fsdp:
        # Split weights want equally many passes in every process, and average what is to be added up.
        scale = ranks.count
        filling = list(_pieces(run, seen, places[:1], groups[:1], advantages_NG[:1], every=True))
        pieces += filling * (ranks.most(own) - own)
    references = [_reference_logprobs(run, seen, piece) for piece in pieces]
    if config.self_check and not run.checked and pieces:
        check_first_batch(run.screener, config, pieces[0].groups, read_before=seen.read is not None)
        run.checked = True
    old_logprobs: list[Tensor] = []
    figures: dict[str, float] = {}
    for iteration in range(config.num_iterations):
        totals = {"loss": 0.0, "kl": 0.0, "clipped": 0.0}
        for number, piece in enumerate(pieces):
            # After the first update images are seen differently: they are looked at again, unless nothing there learns.
            usable = iteration == 0 or not run.screener.sight_learns
            shown = seen.shown(piece.places, graph=True) if usable else contextlib.nullcontext()
            read = seen.beginnings(piece.places) if iteration == 0 else None
            with computing(run.screener, config), shown:
                scored = completion_logprobs(run.screener, piece.groups, config.temperature, read)
            mask_RC = scored.mask.float()
            if iteration == 0:
                # Nothing has changed since the completions were written: these are the old log-probabilities.
                old_logprobs.append(scored.logprobs.detach())
            losses = token_losses(
                objective,
                scored.logprobs,
                old_logprobs[number],
                piece.advantages_R,
                mask_RC,
                reference_logp_RC=references[number],
                weight_RC=_engine_weights(run, piece, old_logprobs[number], mask_RC),
            )
            loss = aggregate(
                losses.loss_RC,
                mask_RC,
                config.loss_type,
                max_completion_length=config.max_completion_length,
                **whole,
            )
            (loss * (scale if number < own else 0)).backward()  # type: ignore[no-untyped-call]
            if number >= own:
                continue  # a pass that other processes wait for
            totals["loss"] += float(loss.detach())
            totals["clipped"] += float((losses.clipped_RC * mask_RC).sum()) / whole["tokens"]
            if losses.kl_RC is not None:
                totals["kl"] += float((losses.kl_RC * mask_RC).sum()) / whole["tokens"]
        figures = dict(zip(totals, ranks.sum(list(totals.values())), strict=True))
        step, last_good = run.state.step + 1, run.directory.latest_checkpoint()
        refuse_divergence("loss", figures["loss"], step, last_good)
        ranks.add_gradients(parameter for group in run.optimizer.param_groups for parameter in group["params"])
        figures |= {"grad_norm": clip_and_step(run.optimizer, config.clip)}
        refuse_divergence("gradient", figures["grad_norm"], step, last_good)
    refresh(run.writer, run.screener)
    if config.use_vllm:
        if ranks.main:
            run.engine.take_weights(run.writer)
        ranks.gather(0)  # nobody asks before the server has the new weights
    return figures | {"logprob_gap": max(ranks.gather(_logprob_gap(written, old_logprobs[:own])))}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Groups that go through one training forward."""

    places: list[int]
    groups: PrefixGroups
    advantages_R: Tensor
    written: list[Written]


def _teaches(one: Written, config: GRPOConfig) -> bool:
    return one.finished or not config.mask_truncated_completions


def _taught_tokens(run: Run, places: Sequence[int], groups: list[list[Written]]) -> list[int]:
    """How many tokens the groups of each process teach."""
    tokens = [0] * run.ranks.count
    for place, group in zip(places, groups, strict=True):
        tokens[place % run.ranks.count] += sum(len(one.token_ids) for one in group if _teaches(one, run.config))
    return tokens


def _pieces(
    run: Run,
    seen: SeenPrompts,
    places: list[int],
    groups: list[list[Written]],
    advantages_NG: Tensor,
    *,
    every: bool = False,
) -> Iterator[_Piece]:
    config = run.config
    taught = [[j for j, one in enumerate(group) if every or _teaches(one, config)] for group in groups]
    full = [n for n, kept in enumerate(taught) if kept]
    for at in range(0, len(full), config.groups_per_forward):
        some = full[at : at + config.groups_per_forward]
        branches = [[Branch([], groups[n][j].token_ids) for j in taught[n]] for n in some]
        packed = PrefixGroups(seen.select([places[n] for n in some]), branches)
        advantages_R = torch.cat([advantages_NG[n, taught[n]] for n in some])
        written = [groups[n][j] for n in some for j in taught[n]]
        yield _Piece([places[n] for n in some], packed, advantages_R, written)


def _engine_weights(run: Run, piece: _Piece, old_logprobs_RC: Tensor, mask_RC: Tensor) -> Tensor | None:
    """What another engine's words weigh in the loss; None for our own, which the model itself has drawn."""
    config = run.config
    if not (run.engine.corrected and config.vllm_importance_sampling_correction):
        return None
    said_RC = _logprobs_of_writing(piece.written, old_logprobs_RC.shape[1]).to(old_logprobs_RC.device)
    return rollout_correction(
        old_logprobs_RC,
        said_RC,
        mask_RC,
        config.vllm_importance_sampling_mode,
        clip_max=config.vllm_importance_sampling_clip_max,
        clip_min=config.vllm_importance_sampling_clip_min,
    )


def _logprobs_of_writing(written: list[Written], longest: int) -> Tensor:
    return torch.tensor([[*one.logprobs, *[0.0] * (longest - len(one.logprobs))] for one in written])


def _engine(config: GRPOConfig) -> RolloutEngine:
    if not config.use_vllm:
        return OwnEngine()
    directory = config.vllm_model_dir or config.run_dir / "served"
    return ServerEngine(config.vllm_server_base_url, directory, config.vllm_server_timeout)


@torch.no_grad()
def _reference_logprobs(run: Run, seen: SeenPrompts, piece: _Piece) -> Tensor | None:
    """(R, C) under the start model: a frozen copy, or the same weights without the adapter; None where beta is 0."""
    if not run.config.beta:
        return None
    reference = run.reference or run.screener
    with contextlib.ExitStack() as inside:
        inside.enter_context(computing(reference, run.config))
        if run.reference is None:
            inside.enter_context(adapter_disabled(reference.model))
        if not run.screener.sight_learns:  # then the start model saw what ours has seen
            inside.enter_context(replace(seen, screener=reference).shown(piece.places, graph=False))
        return completion_logprobs(reference, piece.groups, run.config.temperature).logprobs


def keep_evaluation(run: Run) -> None:
    """Evaluate, into metrics.jsonl."""
    if figures := evaluate(run):
        run.directory.log(run.state.step, figures)


def evaluate(run: Run) -> dict[str, Any]:
    """Greedy answers to validation records, as figures for metrics.jsonl; some of them are kept in samples.jsonl.

    Nothing without validation records.
    """
    config = run.config
    if not run.validation_records:
        return {}
    run.writer.model.eval()
    sampling = Sampling(max_new_tokens=config.max_completion_length)
    mine = run.ranks.share(run.validation_records)
    grades: list[Grade] = []
    samples: list[dict[str, Any]] = []
    every = max(1, len(run.validation_records) // max(1, config.sample_completions))
    fewer = f"lower evaluate_records (now {config.evaluate_records}) or max_completion_length"
    running_out = naming_what_to_lower("answering validation records", fewer, run.directory)
    with run.budget.paused(), running_out, computing(run.writer, config):
        for at in range(0, len(mine), 64):
            records = mine[at : at + 64]
            prompts = [make_example(record, PromptKind.ASK).prompt for record in records]
            written = generate(run.writer, prompts, [run.images.of(record) for record in records], sampling)
            for record, (one,) in zip(records, written, strict=True):
                if len(grades) % every == 0 and len(samples) < config.sample_completions:
                    samples.append(sample_row(record, one.text, config.reward))
                grades += grade_completions(record, [one.text], config.reward)
        grades = run.ranks.interleave(grades)
        samples = [row for rows in run.ranks.gather(samples) for row in rows][: config.sample_completions]
    run.directory.log_rows(SAMPLES, run.state.step, samples)
    by_dimension = exact_by_dimension(run.validation_records, grades)
    return {"validation": {**mean_figures(grades), "exact_by_dimension": by_dimension, "records": len(grades)}}


def save(run: Run) -> None:
    """The final model, the labels the platform should look at again, and then how good the model is: whatever stops
    the last evaluation, nothing of the run is lost.
    """
    path = run.directory.save_model(run.screener, run.config.stored_dtype)
    parked, suspects = write_findings(run)
    run.progress.say(
        f"saved {path}; {suspects} suspect labels and {parked - suspects} other parked records in "
        f"{run.directory.path / REVIEW}"
    )
    keep_evaluation(run)


def save_checkpoint(run: Run) -> Path:
    """Weights, optimizer, and the state of the hard cases."""
    run.state.extra["hard_cases"] = run.hard_cases.state_dict()
    where = run.directory.save_checkpoint(run.screener, run.optimizer, run.state)
    write_findings(run)
    return where


def write_findings(run: Run) -> tuple[int, int]:
    """difficulty.jsonl and review.jsonl as they are by now; how many records are parked, and how many of them suspect.

    review.jsonl is for the platform: one row per parked record, with why it is one.
    """
    rows = run.hard_cases.for_review()
    run.directory.write_rows(REVIEW, [asdict(row) for row in rows])
    run.directory.write_rows(DIFFICULTY, run.hard_cases.difficulties())
    return len(rows), sum(row.reason is ReviewReason.SUSPECT_LABEL for row in rows)


@dataclass(frozen=True, slots=True)
class StartPace:
    """What answering took at the start gate."""

    seconds: float
    """Per record."""
    tokens: float
    """Of a completion, on average."""


def check_start(run: Run) -> StartPace | None:
    """Answer some records before the first step. StartRefused (or a warning) when too few answers are readable.

    Answers that are right no more often than when dealt out at random are warned of: the model does not look at the
    images yet, and such starts collapsed (measured on a tiny model, ours). Returns what it took; None without a gate.
    """
    config = run.config
    records = list(run.train_records.values())
    records = records[:: max(1, len(records) // max(1, config.start_records))][: config.start_records]
    if config.start_gate == "off" or not records:
        return None
    grades: list[list[Grade]] = []
    seconds, tokens = float("inf"), 0
    for at in range(0, len(records), config.prompts_per_step):
        some = records[at : at + config.prompts_per_step]
        began = time.monotonic()
        with naming_what_to_lower("answering at the start gate", _fewer(config), run.directory):
            groups = write_groups(run, see_records(run, some, learning=False), some, _seed(run, "gate", at))
        seconds = min(seconds, (time.monotonic() - began) / len(some))  # a first call warms up
        tokens += sum(len(one.token_ids) for group in groups for one in group)
        for record, group in zip(some, groups, strict=True):
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
        [record.dimension for _, record in flat],
    )
    if found["exact"] <= chance.permuted:
        run.progress.say(
            f"warning: the start model is exact on {found['exact']:.1%} of answers, and on {chance.permuted:.1%} when "
            "the same answers are dealt out at random: it does not seem to look at the images yet"
        )
    return StartPace(seconds, tokens / len(flat))


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


def _logprob_gap(written: list[Written], scored: list[Tensor]) -> float:
    """Largest difference between the log-probabilities of writing and of learning: large means one of them is wrong."""
    gap, at = 0.0, 0
    for logprobs_RC in scored:
        some = written[at : at + len(logprobs_RC)]
        at += len(logprobs_RC)
        said_RC = _logprobs_of_writing(some, logprobs_RC.shape[1])
        gap = max(gap, float((logprobs_RC.cpu() - said_RC).abs().max()))
    return gap
