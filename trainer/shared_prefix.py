"""Log-probabilities of several completions behind one prompt that is computed once.

A group is one encoded prompt (or only its images) and its branches, each a question and a completion, either possibly
empty of the first. A group becomes one packed row ``prompt | branch | branch | ...``; a mask lets a branch see the
prompt and itself, and its positions go on from the prompt's. Exact: equal to every branch run alone behind a repeated
prompt (`repeated_prompt_logprobs`, the oracle). Sources: docs/design.md, decision 9; the packing is ours.
Not here: sampling completions (rollout.py), losses (sft.py, grpo.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainer.data import PromptBatch
from trainer.model import Architecture, Screener

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


def completion_logprobs(screener: Screener, groups: PrefixGroups, temperature: float = 1.0) -> CompletionLogprobs:
    """The log-probability of every completion token of every branch, in one forward pass.

    ValueError when a group has no branch, or a branch no completion or an image placeholder in it.
    """
    packed = _pack(screener, groups)
    hidden_BLH = screener.model.model(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
        **groups.prompts.image_inputs(),
    ).last_hidden_state
    hidden_TH = hidden_BLH.flatten(0, 1)[packed.sources]
    logprobs_T, greedy_T = token_logprobs(screener, hidden_TH, packed.targets, temperature)
    return _unflatten(groups, logprobs_T, greedy_T)


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
    """(B, L)"""
    attention_mask: torch.Tensor
    """(B, 1, L, L) bool"""
    position_ids: torch.Tensor
    """(3, B, L) or (B, L)"""
    sources: torch.Tensor
    """(T,) where, in the flattened (B x L) hidden states, each completion token is predicted from."""
    targets: torch.Tensor
    """(T,) the completion tokens."""


def _pack(screener: Screener, groups: PrefixGroups) -> _Packed:
    prompts = groups.prompts
    lengths, starts = prompts.lengths.tolist(), prompts.next_position.tolist()
    rows = [
        length + sum(len(branch.question) + len(branch.completion) for branch in branches)
        for length, branches in zip(lengths, groups.branches, strict=True)
    ]
    batch, longest = len(rows), max(rows)
    # Built on the CPU and moved once: many small writes are slow on an accelerator.
    ids_BL = torch.full((batch, longest), screener.pad_token_id)
    positions_3BL = torch.zeros(3, batch, longest, dtype=torch.long)
    segment_BL = torch.full((batch, longest), -1)
    prompt_ids_BP, prompt_positions = prompts.input_ids.cpu(), prompts.position_ids.cpu()
    sources: list[torch.Tensor] = []
    targets: list[int] = []
    for row, branches in enumerate(groups.branches):
        if not branches:
            raise ValueError(f"group {row} has no branch")
        at = lengths[row]
        ids_BL[row, :at] = prompt_ids_BP[row, :at]
        positions_3BL[:, row, :at] = prompt_positions[..., row, :at]
        segment_BL[row, :at] = 0
        for number, branch in enumerate(branches, start=1):
            if not branch.completion:
                raise ValueError(f"group {row}, branch {number}: a branch needs a completion")
            tokens = [*branch.question, *branch.completion]
            if screener.image_token_id in tokens:
                raise ValueError(f"group {row}, branch {number}: an image placeholder stands outside of the prompt")
            end = at + len(tokens)
            ids_BL[row, at:end] = torch.tensor(tokens)
            positions_3BL[:, row, at:end] = torch.arange(len(tokens)) + starts[row]
            segment_BL[row, at:end] = number
            source = torch.arange(at - 1, end - 1)[len(branch.question) :]
            if not branch.question:
                source[0] = lengths[row] - 1  # the first word follows the prompt, not the branch before it
            sources.append(source + row * longest)
            targets.extend(branch.completion)
            at = end
    device = screener.device
    segment_BL = segment_BL.to(device)
    # A token sees the prompt (segment 0) and its own segment, as far as it has been written; padding sees itself.
    own = (segment_BL[:, None, :] == segment_BL[:, :, None]) | (segment_BL[:, None, :] == 0)
    written = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    multimodal = screener.architecture is not Architecture.INTERNVL
    return _Packed(
        input_ids=ids_BL.to(device),
        attention_mask=(own & written)[:, None],
        position_ids=(positions_3BL if multimodal else positions_3BL[0]).to(device),
        sources=torch.cat(sources).to(device),
        targets=torch.tensor(targets, device=device),
    )


def _unflatten(groups: PrefixGroups, logprobs_T: torch.Tensor, greedy_T: torch.Tensor) -> CompletionLogprobs:
    sizes = torch.tensor([len(branch.completion) for branches in groups.branches for branch in branches])
    mask_NC = (torch.arange(int(sizes.max())) < sizes[:, None]).to(logprobs_T.device)
    logprobs_NC = torch.zeros(mask_NC.shape, device=logprobs_T.device).masked_scatter(mask_NC, logprobs_T)
    greedy_NC = torch.zeros_like(mask_NC).masked_scatter(mask_NC, greedy_T)
    return CompletionLogprobs(logprobs=logprobs_NC, mask=mask_NC, greedy=greedy_NC)
