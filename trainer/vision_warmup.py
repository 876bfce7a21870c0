"""Before SFT, for a model from scratch: teach the vision tower alone to see what is flawed.

A throw-away head looks at a candidate's image tokens beside the original's, since some flaws only show by comparison,
and predicts per dimension whether the candidate is fine or which kind of flaw it has. Kinds come from a record's
``meta["defects"]`` where the data has them (drawn scenes do), else there is one kind. Where ``meta["traits"]`` says
what each image shows (the original first), the tower also learns to name it: only who sees what was there can tell what
changed. Ours, not the paper's.
Not here: the language model, which is not run at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.augmentation import mirror_images
from trainer.config import ConfigRefused, require
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity, letters
from trainer.contract.records import Record
from trainer.images import ImageStore, ImageTensor, image_grid, pixel_inputs
from trainer.model import Architecture, Screener
from trainer.optimization import Budget

# Shapes: I images, S samples, N candidates of all samples, T tokens per image, H their width, D dimensions.

FINE, FLAWED = 0, "flawed"
_UNLABELLED = -100  # cross_entropy leaves these out


@dataclass(frozen=True, kw_only=True)
class VisionWarmupConfig:
    """How long and how fast; both lengths 0 leaves the phase out."""

    steps: int = 0
    """Optimizer steps of this phase."""
    minutes: float = 0.0
    """Its time; set one of the two."""
    learning_rate: float = 2e-3
    """Peak rate; it rises over the first twentieth and falls to a tenth."""
    batch_samples: int = 16
    """Samples per step, each with all its candidates."""
    appearance_weight: float = 2.0
    """Loss weight of appearance deformation, the hardest to see; the other dimensions count 1."""
    naming_weight: float = 1.0
    """Loss weight of naming the traits of every image, where the records tell them."""

    def __post_init__(self) -> None:
        require(min(self.steps, self.minutes) >= 0, "vision_warmup: steps and minutes must not be negative")
        require(not (self.steps and self.minutes), "vision_warmup: set either steps or minutes, not both")
        require(
            self.learning_rate > 0, f"vision_warmup.learning_rate: expected more than 0, got {self.learning_rate:g}"
        )
        require(self.batch_samples > 0, f"vision_warmup.batch_samples: expected 1 or more, got {self.batch_samples}")
        require(self.naming_weight >= 0, "vision_warmup.naming_weight: expected 0 or more")
        require(self.appearance_weight > 0, "vision_warmup.appearance_weight: expected more than 0")

    @property
    def wanted(self) -> bool:
        """Whether the phase takes place."""
        return bool(self.steps or self.minutes)


class ComparisonHead(nn.Module):
    """Per dimension, attention over a candidate's tokens, each seen beside the original's token at the same place."""

    def __init__(self, width: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.compare = nn.Linear(2 * width, width)
        self.queries = nn.Parameter(torch.randn(len(classes), width) * 0.1)
        self.outputs = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def forward(self, candidates_NTH: torch.Tensor, originals_NTH: torch.Tensor) -> list[torch.Tensor]:
        """Per dimension, (N, classes) logits."""
        seen_NTH, reference_NTH = self.norm(candidates_NTH), self.norm(originals_NTH)
        mixed_NTH = F.gelu(self.compare(torch.cat([seen_NTH, seen_NTH - reference_NTH], -1))) + seen_NTH
        weights_NDT = torch.softmax(torch.einsum("dh,nth->ndt", self.queries, mixed_NTH), -1)
        pooled_NDH = weights_NDT @ mixed_NTH
        return [output(pooled_NDH[:, index]) for index, output in enumerate(self.outputs)]


class NamingHead(nn.Module):
    """Per trait, attention over one image's tokens."""

    def __init__(self, width: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(len(classes), width) * 0.1)
        self.outputs = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def forward(self, images_ITH: torch.Tensor) -> list[torch.Tensor]:
        """Per trait, (I, values) logits."""
        seen_ITH = self.norm(images_ITH)
        weights_IDT = torch.softmax(torch.einsum("dh,nth->ndt", self.queries, seen_ITH), -1)
        pooled_IDH = weights_IDT @ seen_ITH
        return [output(pooled_IDH[:, index]) for index, output in enumerate(self.outputs)]


def image_features(screener: Screener, images: Sequence[ImageTensor]) -> torch.Tensor:
    """(I, T, H): the tokens that each image becomes in the prompt. ConfigRefused when images differ in size."""
    if len({image_grid(screener, image) for image in images}) > 1:
        raise ConfigRefused("vision_warmup: expected images of one size; set image_max_side or leave the phase out")
    inputs = pixel_inputs(screener, images)
    features = screener.model.get_image_features(**inputs, return_dict=True).pooler_output
    features_ITH: torch.Tensor = features if isinstance(features, torch.Tensor) else torch.stack(list(features))
    return features_ITH


def candidate_kinds(record: Record) -> list[str | None]:
    """Per candidate None when it is fine in the record's dimension, else the kind of its flaw."""
    kinds: list[str | None] = []
    given = record.meta.get("defects")
    for index, name in enumerate(letters(len(record.candidates))):
        fine = (name in record.answer) == (record.polarity is Polarity.ACCEPTABLE)
        kinds.append(None if fine else _named_kind(given, index, name, record.dimension) or FLAWED)
    return kinds


def warm_up(
    screener: Screener,
    samples: Sequence[Sequence[Record]],
    store: ImageStore,
    config: VisionWarmupConfig,
    *,
    seed: int,
    mirrored: bool,
    on_step: Callable[[Budget, dict[str, float]], bool],
) -> None:
    """Train the vision tower; `on_step` gets the budget and the figures of each step, and ends the phase by True.

    `samples` are the records of each sample, of one number of candidates or several.
    """
    used = [dimension for dimension in DIMENSIONS if any(r.dimension is dimension for s in samples for r in s)]
    labelled = [_Labelled(records) for records in samples]
    classes = {d: sorted({k for s in labelled for k in s.kinds.get(d, ()) if k}) for d in used}
    values = trait_values([sample.traits for sample in labelled]) if config.naming_weight else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = screener.model.get_input_embeddings().weight.shape[1]
        head = ComparisonHead(width, [1 + len(classes[d]) for d in used]).to(screener.device)
        naming = NamingHead(width, [len(names) for names in values.values()]).to(screener.device)
    seeing = _seeing_parameters(screener)
    trained = [*seeing, *head.parameters(), *naming.parameters()]
    # A tower that the run behind this phase leaves as it is (vision_lr=0) is frozen by now.
    frozen = [weight for weight in seeing if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    budget = Budget(steps=config.steps, minutes=config.minutes)
    screener.model.train()
    while not budget.over:
        rng = random.Random(f"{seed}/vision/{budget.done_steps}")  # noqa: S311 - a draw, not a secret
        batch = [labelled[rng.randrange(len(labelled))] for _ in range(config.batch_samples)]
        fraction = budget.fraction
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, fraction / 0.05 + 0.02) * (1 - 0.9 * fraction)
        heads = _Heads(head, used, classes, naming, values)
        figures = _step(screener, heads, optimizer, batch, store, rng if mirrored else None, config)
        budget.done_steps += 1
        if on_step(budget, figures):
            break
    for weight in frozen:
        weight.requires_grad_(False)
    screener.model.eval()


def trait_values(traits: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, list[str]]:
    """Every trait that any image of any sample has, with the values it takes, sorted."""
    values: dict[str, set[str]] = {}
    for sample in traits:
        for image in sample:
            for trait, value in image.items():
                values.setdefault(trait, set()).add(value)
    return {trait: sorted(values[trait]) for trait in sorted(values)}


@dataclass(frozen=True, slots=True)
class _Heads:
    """The throw-away heads and what their outputs stand for."""

    comparison: ComparisonHead
    dimensions: Sequence[Dimension]
    kinds: Mapping[Dimension, Sequence[str]]
    naming: NamingHead
    values: Mapping[str, Sequence[str]]


class _Labelled:
    """One sample: its images, per dimension the kind of flaw of every candidate, per image its traits."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.record = records[0]
        self.kinds = {record.dimension: candidate_kinds(record) for record in records}
        self.traits = _traits(self.record)


def _step(
    screener: Screener,
    heads: _Heads,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[_Labelled],
    store: ImageStore,
    mirror_rng: random.Random | None,
    config: VisionWarmupConfig,
) -> dict[str, float]:
    images: list[ImageTensor] = []
    is_original: list[bool] = []
    for sample in batch:
        pictures = store.of(sample.record)
        images += mirror_images(pictures) if mirror_rng and mirror_rng.random() < 0.5 else pictures
        is_original += [True] + [False] * (len(pictures) - 1)
    features_ITH = image_features(screener, images)
    first = torch.tensor(is_original, device=features_ITH.device)
    candidates_NTH = features_ITH[~first]
    counts = torch.tensor([len(sample.record.candidates) for sample in batch], device=features_ITH.device)
    logits = heads.comparison(candidates_NTH, features_ITH[first].repeat_interleave(counts, 0))
    losses, right, labels = [], 0.0, 0
    for dimension, scores in zip(heads.dimensions, logits, strict=True):
        target_N = torch.tensor(_targets(batch, dimension, heads.kinds[dimension]), device=scores.device)
        known = target_N != _UNLABELLED
        if not bool(known.any()):
            continue
        weight = config.appearance_weight if dimension is Dimension.APPEARANCE_DEFORMATION else 1.0
        losses.append(weight * F.cross_entropy(scores.float(), target_N, ignore_index=_UNLABELLED))
        right += float((((scores.argmax(-1) == FINE) == (target_N == FINE)) & known).sum())
        labels += int(known.sum())
    loss = torch.stack(losses).mean()
    if heads.values:
        loss = loss + config.naming_weight * _naming_loss(heads, batch, features_ITH)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "right": right / max(1, labels)}


def _naming_loss(heads: _Heads, batch: Sequence[_Labelled], features_ITH: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over traits; an image that lacks a trait is left out of it."""
    shown = [image for sample in batch for image in sample.traits]
    losses = []
    for (trait, values), scores in zip(heads.values.items(), heads.naming(features_ITH), strict=True):
        named = [values.index(image[trait]) if trait in image else _UNLABELLED for image in shown]
        if any(one != _UNLABELLED for one in named):
            target_I = torch.tensor(named, device=scores.device)
            losses.append(F.cross_entropy(scores.float(), target_I, ignore_index=_UNLABELLED))
    return torch.stack(losses).mean() if losses else features_ITH.new_zeros(())


def _targets(batch: Sequence[_Labelled], dimension: Dimension, kinds: Sequence[str]) -> list[int]:
    targets: list[int] = []
    for sample in batch:
        found = sample.kinds.get(dimension)
        if found is None:
            targets += [_UNLABELLED] * len(sample.record.candidates)
        else:
            targets += [FINE if kind is None else 1 + kinds.index(kind) for kind in found]
    return targets


def _seeing_parameters(screener: Screener) -> list[nn.Parameter]:
    parameters = list(screener.vision_tower.parameters())
    if screener.architecture is Architecture.INTERNVL:
        parameters += list(screener.model.model.multi_modal_projector.parameters())
    return parameters


def _traits(record: Record) -> list[Mapping[str, str]]:
    """What ``meta["traits"]`` says of each image, the original first; nothing where it does not fit the images."""
    given = record.meta.get("traits")
    if not isinstance(given, list) or len(given) != len(record.images):
        return [{} for _ in record.images]
    return [
        {str(trait): str(value) for trait, value in image.items()} if isinstance(image, Mapping) else {}
        for image in given
    ]


def _named_kind(given: Any, index: int, name: str, dimension: Dimension) -> str | None:
    """The kind in ``meta["defects"]``: per candidate, by letter or in order, ``{dimension: kind}``."""
    if isinstance(given, Mapping):
        of_candidate = given.get(name)
    else:
        of_candidate = given[index] if isinstance(given, list) and index < len(given) else None
    kind = of_candidate.get(dimension.value) if isinstance(of_candidate, Mapping) else None
    if isinstance(kind, Mapping):
        kind = kind.get("kind")
    return kind if isinstance(kind, str) else None
