"""Log-probabilities of several completions behind one prompt that is computed once.

A group is one encoded prompt (or only its images) and its branches, each a question and a completion, either possibly
empty of the first. All groups of a call stand in one packed row ``prompt | branch | branch | ... | prompt | ...``
without padding; a branch sees its prompt and itself (prefix_attention.py), and its positions go on from the prompt's.
Exact: equal to every branch run alone behind a repeated prompt (`repeated_prompt_logprobs`, the oracle; `self_check`
compares the two where they are to be used). ``prefix_attention = mask`` does the same with a row per group and a mask
of its size squared. Sources: docs/design.md, decision 9; the packing is ours.
Not here: sampling completions (rollout.py), losses (sft.py, grpo.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainer.config import Refused
from trainer.data import PromptBatch
from trainer.last_layer import is_short
from trainer.model import Architecture, Screener
from trainer.prefix_attention import Layout, Method, lay_out
from trainer.prompt_reading import ReadPrompts, read_prompts

# Shapes: B groups, P prompt tokens, L tokens of a packed row, N branches of all groups, C completion tokens,
# T completion tokens of all branches together, H hidden width, V vocabulary.

LOGITS_AT_ONCE = 1 << 24
"""Logits (tokens x vocabulary) held at one time; beyond it they are computed in pieces, again when going backward."""


@dataclass(frozen=True, slots=True)
class Branch:
    """What follows a shared prompt: words the model is given, then words it is to say. The completion is not empty."""

    question: Sequence[int]
    completion: Sequence[int]


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """Prompts and, for each, its branches."""

    prompts: PromptBatch
    branches: Sequence[Sequence[Branch]]


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """One row per branch, in the order of groups and branches; C is the longest completion."""

    logprobs: torch.Tensor
    """(N, C) float32 log-probability of each completion token, 0 where there is none. Carries gradients."""
    mask: torch.Tensor
    """(N, C) bool, True where a completion token is."""
    greedy: torch.Tensor
    """(N, C) bool, True where the token is the likeliest one: a row true all along is what greedy decoding writes."""


def completion_logprobs(
    screener: Screener,
    groups: PrefixGroups,
    temperature: float = 1.0,
    read: Sequence[ReadPrompts] | None = None,
) -> CompletionLogprobs:
    """The log-probability of every completion token of every branch, in one forward pass.

    `read`: the groups' prompts, each read by itself before: then the row holds the branches alone, and gradients go on
    into the prompts' graphs. ValueError when a group has no branch, or a branch no completion or an image placeholder
    in it.
    """
    packed = _pack(screener, groups, read is not None)
    if read is None:
        logprobs_T, greedy_T = screener.inside(_forward, screener, packed, groups.prompts.image_inputs(), temperature)
    else:
        logprobs_T, greedy_T = _go_on(screener, packed, read, temperature)
    return _unflatten(groups, logprobs_T, greedy_T)


def _go_on(
    screener: Screener, packed: _Packed, read: Sequence[ReadPrompts], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_BLH = screener.model.model.language_model(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
        shared_prefix=packed.layout,
        prompt_keys=[one.layers for one in read],
    ).last_hidden_state
    # In front, what the first words are predicted from.
    hidden_TH = torch.cat([*(one.last_NH for one in read), hidden_BLH[0]])
    return token_logprobs(screener, hidden_TH[packed.sources], packed.targets, temperature)


def _forward(
    screener: Screener, packed: _Packed, images: dict[str, torch.Tensor], temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_BLH = screener.model.model(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
        **({"shared_prefix": packed.layout} if packed.layout else {}),
        **images,
    ).last_hidden_state
    return token_logprobs(screener, hidden_BLH.flatten(0, 1)[packed.sources], packed.targets, temperature)


def repeated_prompt_logprobs(
    screener: Screener, groups: PrefixGroups, images_of_group: Sequence[dict[str, torch.Tensor]]
) -> CompletionLogprobs:
    """The same by the obvious way, to check against: each branch alone behind its own copy of the prompt.

    `images_of_group` holds each group's own pixel inputs (images.pixel_inputs). The model computes its own positions.
    """
    logprobs, greedy = [], []
    for index, branches in enumerate(groups.branches):
        prompt_P = groups.prompts.input_ids[index, : int(groups.prompts.lengths[index])]
        for branch in branches:
            said_C = torch.tensor(branch.completion, device=screener.device)
            row_L = torch.cat([prompt_P, torch.tensor(branch.question, device=screener.device).long(), said_C])
            kinds = {"mm_token_type_ids": (row_L[None] == screener.image_token_id).int()}
            logits_LV = screener.model(
                input_ids=row_L[None],
                attention_mask=torch.ones_like(row_L)[None],
                use_cache=False,
                **({} if screener.architecture is Architecture.INTERNVL else kinds),
                **images_of_group[index],
            ).logits[0, -len(said_C) - 1 : -1]
            logprobs.append(F.log_softmax(logits_LV.float(), -1).gather(1, said_C[:, None])[:, 0])
            greedy.append(logits_LV.argmax(-1) == said_C)
    return _unflatten(groups, torch.cat(logprobs), torch.cat(greedy))


class SelfCheckFailed(Refused):
    """The packed row does not compute what repeated prompts do; the message says by how much, and what to set."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Mean differences between the packed row and repeated prompts."""

    logprobs: float
    gradients: float
    """Relative; 0 where gradients were not compared."""

    @property
    def worst(self) -> float:
        """The larger one."""
        return max(self.logprobs, self.gradients)


SELF_CHECK_TOLERANCE = {32: (1e-3, 1e-3), 16: (0.1, 0.25)}
"""Largest mean differences of log-probabilities and of gradients, by bits of what is computed in. Ours.

Equal code was measured to differ by 1e-6 in 32 bits, and by up to .008 and .03 in 16; a branch that sees a wrong token
differs by far more. Rounding in 16 bits grows with depth, and a false alarm would stop a run that is right.
"""


def self_check(
    screener: Screener, groups: PrefixGroups, *, thorough: bool = True, read_before: bool = False, bits: int = 32
) -> SelfCheck:
    """Compare the packed row with repeated prompts on two branches: the first group's last and the last group's.

    All groups go through the packed forward, so that a branch that sees another one would differ. Gradients are those
    of the first text layer's weights that are trained, through all layers above it. Not thorough: one branch, and no
    gradients. `read_before`: prompts are read apart, as GRPO does. `bits` are those of what is computed in.
    SelfCheckFailed beyond SELF_CHECK_TOLERANCE.
    """
    pixels = _pixels_of_groups(groups.prompts)
    layers = screener.model.model.language_model.layers
    trained = [weight for layer in layers for weight in layer.parameters() if weight.requires_grad][:16]
    ends = sorted({0, len(groups.branches) - 1}) if thorough else [0]
    rows = list(itertools.accumulate(len(branches) for branches in groups.branches))
    with torch.set_grad_enabled(thorough and bool(trained)):
        each = [groups.prompts.select([number]) for number in range(len(groups.branches))]
        read = [read_prompts(screener, one) for one in each] if read_before else None
        packed = completion_logprobs(screener, groups, read=read).logprobs
        of_packed = [packed[rows[end] - 1][: len(groups.branches[end][-1].completion)] for end in ends]
        of_repeated = [_alone(screener, groups, end, pixels[end]) for end in ends]
        told, oracle = torch.cat(of_packed), torch.cat(of_repeated)
    apart = 0.0
    if told.requires_grad:
        ours = torch.autograd.grad(told.sum(), trained)
        theirs = torch.autograd.grad(oracle.sum(), trained)
        size = sum(float(b.abs().sum()) for b in theirs)
        apart = sum(float((a - b).abs().sum()) for a, b in zip(ours, theirs, strict=True)) / size if size else 0.0
    found = SelfCheck(float((told - oracle).detach().abs().mean()), apart)
    measured = {"log-probabilities": found.logprobs, "gradients": found.gradients}
    for (what, difference), most in zip(measured.items(), SELF_CHECK_TOLERANCE[bits], strict=True):
        if not difference <= most:  # a NaN too
            raise SelfCheckFailed(
                f"prefix_attention: {screener.prefix_attention} gives {what} that differ by {difference:.2g} on "
                f"average from those of repeated prompts (up to {most:g} is taken): "
                "set prefix_attention=mask"
            )
    return found


def _alone(screener: Screener, groups: PrefixGroups, number: int, pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """(C,) log-probabilities of a group's last branch by the oracle."""
    prompts = groups.prompts
    only = replace(prompts, input_ids=prompts.input_ids[number, None], lengths=prompts.lengths[number, None])
    return repeated_prompt_logprobs(screener, PrefixGroups(only, [groups.branches[number][-1:]]), [pixels]).logprobs[0]


def _pixels_of_groups(prompts: PromptBatch) -> list[dict[str, torch.Tensor]]:
    """Each prompt's own pixel inputs, from those of all."""
    counts = list(prompts.images_per_prompt)
    if prompts.image_grid_thw is None:
        return [{"pixel_values": part} for part in torch.split(prompts.pixel_values, counts)]
    grids = torch.split(prompts.image_grid_thw, counts)
    patches = torch.split(prompts.pixel_values, [int(grid.prod(1).sum()) for grid in grids])
    return [{"pixel_values": p, "image_grid_thw": g} for p, g in zip(patches, grids, strict=True)]


def token_logprobs(
    screener: Screener, hidden_TH: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) log-probability of each target after its hidden state, and whether it is the likeliest token.

    Never holds more than LOGITS_AT_ONCE logits: with 152k tokens of vocabulary they would outweigh the model.
    """
    head = screener.model.get_output_embeddings()
    at_once = max(1, LOGITS_AT_ONCE // head.weight.shape[0])

    def piece(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits_TV = head(hidden).float() / temperature
        chosen_T = logits_TV.gather(1, targets[:, None])[:, 0]
        return chosen_T - logits_TV.logsumexp(-1), logits_TV.detach().argmax(-1) == targets

    if len(targets_T) <= at_once:
        return piece(hidden_TH, targets_T)
    pieces = [
        checkpoint(piece, hidden, targets, use_reentrant=False)
        for hidden, targets in zip(torch.split(hidden_TH, at_once), torch.split(targets_T, at_once), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([greedy for _, greedy in pieces])


@dataclass(frozen=True, slots=True)
class _Packed:
    input_ids: torch.Tensor
    """(B, L): one row of everything, or a row per group where a mask is used."""
    attention_mask: torch.Tensor
    """(B, 1, L, L) bool, or a stand-in of one element where the layout says who sees whom."""
    layout: Layout | None
    position_ids: torch.Tensor
    """(3, B, L) or (B, L)"""
    sources: torch.Tensor
    """(T,) where, in the flattened hidden states that are read, each completion token is predicted from; the prompts'
    own stand in front where prompts are not in the row."""
    targets: torch.Tensor
    """(T,) the completion tokens."""


def _pack(screener: Screener, groups: PrefixGroups, prompts_beside: bool = False) -> _Packed:
    # Built on the CPU and moved once: many small writes are slow on an accelerator.
    prompts = groups.prompts
    lengths, starts = prompts.lengths.tolist(), prompts.next_position.tolist()
    prompt_ids_BP, prompt_positions = prompts.input_ids.cpu(), prompts.position_ids.cpu()
    rows: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    segments: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    targets: list[int] = []
    in_front = len(lengths) if prompts_beside else 0
    for number, (length, branches) in enumerate(zip(lengths, groups.branches, strict=True)):
        _require_usable(screener, number, branches)
        said = [torch.tensor([*branch.question, *branch.completion]) for branch in branches]
        own = 0 if prompts_beside else length
        rows.append(torch.cat([prompt_ids_BP[number, :own], *said]))
        behind = torch.cat([torch.arange(len(tokens)) + starts[number] for tokens in said])
        before = prompt_positions[..., number, :own].expand(3, -1)
        positions.append(torch.cat([before, behind.expand(3, -1)], 1))
        sizes = torch.tensor([own, *(len(tokens) for tokens in said)])
        segments.append(torch.arange(len(sizes)).repeat_interleave(sizes))
        at = own
        for branch, tokens in zip(branches, said, strict=True):
            source = torch.arange(at - 1, at - 1 + len(tokens))[len(branch.question) :] + in_front
            if not branch.question:
                # The first word follows the prompt, not the branch before it.
                source[0] = number - sum(map(len, rows[:-1])) if prompts_beside else length - 1
            sources.append(source)
            targets.extend(branch.completion)
            at += len(tokens)
    device = screener.device
    masked = screener.prefix_attention == "mask"
    width = max(len(row) for row in rows)
    begins = [number * width for number in range(len(rows))] if masked else _begins(rows)
    of_group = [begin for begin, branches in zip(begins, groups.branches, strict=True) for _ in branches]
    if masked:
        ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=screener.pad_token_id)
        positions_3BL = torch.stack([F.pad(one, (0, width - one.shape[1])) for one in positions], 1)
        layout, mask = None, _mask([segment.to(device) for segment in segments], width)
    else:
        ids_BL, positions_3BL = torch.cat(rows)[None], torch.cat(positions, 1)[:, None]
        shapes = [
            (length, [len(branch.question) + len(branch.completion) for branch in branches])
            for length, branches in zip(lengths, groups.branches, strict=True)
        ]
        method: Method = screener.prefix_attention  # type: ignore[assignment]
        # Of four dimensions, a mask is taken as it is: nothing of the row's size squared is ever made.
        layout = lay_out(shapes, method, device, prompts_beside=prompts_beside)
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    multimodal = screener.architecture is not Architecture.INTERNVL
    sources_T = torch.cat([source + begin for source, begin in zip(sources, of_group, strict=True)]).to(device)
    if layout is not None and layout.last is not None and is_short(screener.model):
        # The last layer answers with these rows only.
        sources_T = torch.searchsorted(layout.last_rows_Q, sources_T)
    return _Packed(
        input_ids=ids_BL.to(device),
        attention_mask=mask,
        layout=layout,
        position_ids=(positions_3BL if multimodal else positions_3BL[0]).to(device),
        sources=sources_T,
        targets=torch.tensor(targets, device=device),
    )


def _require_usable(screener: Screener, number: int, branches: Sequence[Branch]) -> None:
    if not branches:
        raise ValueError(f"group {number} has no branch")
    for place, branch in enumerate(branches, start=1):
        if not branch.completion:
            raise ValueError(f"group {number}, branch {place}: a branch needs a completion")
        if screener.image_token_id in (*branch.question, *branch.completion):
            raise ValueError(f"group {number}, branch {place}: an image placeholder stands outside of the prompt")


def _begins(rows: Sequence[torch.Tensor]) -> list[int]:
    return list(itertools.accumulate((len(row) for row in rows[:-1]), initial=0))


def _mask(segments: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """(B, 1, L, L): a token sees the prompt (segment 0) and its own segment, as far as it is written."""
    segment_BL = torch.nn.utils.rnn.pad_sequence(list(segments), batch_first=True, padding_value=-1)
    own = (segment_BL[:, None, :] == segment_BL[:, :, None]) | (segment_BL[:, None, :] == 0)
    written = torch.ones(width, width, dtype=torch.bool, device=segment_BL.device).tril()
    return (own & written)[:, None]


def _unflatten(groups: PrefixGroups, logprobs_T: torch.Tensor, greedy_T: torch.Tensor) -> CompletionLogprobs:
    sizes = torch.tensor([len(branch.completion) for branches in groups.branches for branch in branches])
    mask_NC = (torch.arange(int(sizes.max())) < sizes[:, None]).to(logprobs_T.device)
    logprobs_NC = torch.zeros(mask_NC.shape, device=logprobs_T.device).masked_scatter(mask_NC, logprobs_T)
    greedy_NC = torch.zeros_like(mask_NC).masked_scatter(mask_NC, greedy_T)
    return CompletionLogprobs(logprobs=logprobs_NC, mask=mask_NC, greedy=greedy_NC)
