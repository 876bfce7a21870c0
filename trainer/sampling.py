"""How a completion's next word is chosen from logits: greedily, or drawn among what temperature and filters leave.

The filters are those of transformers and TRL under their names and in their order: repetition penalty, banned words,
temperature, top_k, top_p, min_p. Each completion draws from a generator of its own, one number per word, so that a draw
does not depend on what it is decoded with. Not here: where logits come from (decoding.py).

Shapes: B branches, D of them drawing, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a completion's words are chosen."""

    max_new_tokens: int
    """Longest completion in tokens, the ending token included."""
    temperature: float = 0.0
    """0 takes the likeliest word; above, logits are divided by it and words are drawn."""
    top_p: float = 1.0
    """Draw among the likeliest words that together have this probability."""
    top_k: int = 0
    """Draw among this many of the likeliest words; 0 among all."""
    min_p: float | None = None
    """Draw among words at least this fraction as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of words of the prompt and the completion so far are divided by it (multiplied where negative)."""
    seed: int = 0
    """Decides the draws of this completion alone: the same in any batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must not be negative, and top_p must be above 0 and at most 1")
        if self.top_k < 0 or not 0 <= (self.min_p or 0) <= 1 or self.repetition_penalty <= 0:
            raise ValueError("top_k must not be negative, min_p from 0 to 1, and repetition_penalty above 0")


class Chooser:
    """The next words of a batch of branches. Settings and draws are kept as tensors: few calls per word."""

    def __init__(
        self,
        samplings: Sequence[Sampling],
        prompts: Sequence[Sequence[int]],
        banned: Sequence[int],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self._samplings = list(samplings)
        self._ban_V = torch.zeros(vocabulary, device=device)
        self._ban_V[list(banned)] = -torch.inf
        self._allowed_V = self._ban_V.exp()
        self._device = device
        # All of a completion's draws at once: a generator call per branch and word would cost more than the word.
        self._draws = [
            torch.rand(one.max_new_tokens, generator=torch.Generator().manual_seed(one.seed))
            if one.temperature > 0
            else torch.zeros(one.max_new_tokens)
            for one in samplings
        ]
        self._seen_BV: Tensor | None = None
        self._prompts = [list(prompt) for prompt in prompts]
        self._words = [0] * len(self._samplings)
        """Per branch, how many were chosen."""
        self._settle()

    def choose(self, logits_BV: Tensor) -> tuple[list[int], list[float]]:
        """Each branch's next token, and its log-probability before penalties, bans and filters."""
        scaled_BV = logits_BV if self._divisor_B1 is None else logits_BV / self._divisor_B1
        p_BV = scaled_BV.softmax(-1)
        if self._penalty_B1 is not None:
            scaled_BV = self._penalized(logits_BV, self._penalty_B1)
            if self._divisor_B1 is not None:
                scaled_BV = scaled_BV / self._divisor_B1
        if self._drawing_D is None:
            chosen_B = (scaled_BV + self._ban_V).argmax(-1)
        else:
            drawn_BV = p_BV if self._penalty_B1 is None else scaled_BV.softmax(-1)
            if len(self._drawing_D) == len(logits_BV):
                chosen_B = self._draw(drawn_BV)
            else:
                chosen_B = (scaled_BV + self._ban_V).argmax(-1)
                chosen_B[self._drawing_D] = self._draw(drawn_BV[self._drawing_D])
        logprobs_B = p_BV.gather(1, chosen_B[:, None])[:, 0].log()
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, chosen_B[:, None], True)
        self._words = [words + 1 for words in self._words]
        self._since += 1
        return chosen_B.tolist(), logprobs_B.tolist()

    def keep(self, branches: Sequence[int]) -> None:
        """Go on with some of the branches only."""
        self._samplings = [self._samplings[branch] for branch in branches]
        self._draws = [self._draws[branch] for branch in branches]
        self._prompts = [self._prompts[branch] for branch in branches]
        self._words = [self._words[branch] for branch in branches]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[torch.tensor(branches, device=self._device)]
        self._settle()

    def take_in(self, other: Chooser) -> None:
        """Go on with another batch's branches behind ours."""
        if self._seen_BV is not None or other._seen_BV is not None:
            self._seen_BV = torch.cat([self._seen(), other._seen()])
        self._samplings += other._samplings
        self._draws += other._draws
        self._prompts += other._prompts
        self._words += other._words
        self._settle()

    def _seen(self) -> Tensor:
        """(B, V) which words a branch's prompt and completion hold; where nothing is penalized nobody noted them."""
        if self._seen_BV is not None:
            return self._seen_BV
        seen_BV = torch.zeros(len(self._samplings), len(self._ban_V), dtype=torch.bool, device=self._device)
        for place, prompt in enumerate(self._prompts):
            seen_BV[place, prompt] = True
        return seen_BV

    def _settle(self) -> None:
        some = self._samplings
        places = [place for place, one in enumerate(some) if one.temperature > 0]
        drawing = [some[place] for place in places]
        self._drawing_D = torch.tensor(places, device=self._device) if places else None
        self._divisor_B1 = self._column([one.temperature or 1.0 for one in some], 1.0)
        self._penalty_B1 = self._column([one.repetition_penalty for one in some], 1.0)
        self._top_p_D1 = self._column([one.top_p for one in drawing], 1.0)
        self._top_k_D1 = self._column([one.top_k for one in drawing], 0)
        self._min_p_D1 = self._column([one.min_p or 0.0 for one in drawing], 0.0)
        coming = [self._draws[place][self._words[place] :] for place in places]
        self._since = 0
        """Words chosen since: where the next draws stand."""
        self._uniform_TD1 = (
            torch.nn.utils.rnn.pad_sequence(coming)[..., None].to(self._device) if coming else torch.zeros(0)
        )

    def _column(self, values: Sequence[float], nothing: float) -> Tensor | None:
        if all(value == nothing for value in values):
            return None
        return torch.tensor(list(values), device=self._device)[:, None]

    def _penalized(self, logits_BV: Tensor, penalty_B1: Tensor) -> Tensor:
        self._seen_BV = self._seen()
        return torch.where(
            self._seen_BV, torch.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1), logits_BV
        )

    def _draw(self, p_DV: Tensor) -> Tensor:
        """The word at which the cumulated probability passes the completion's next random number."""
        p_DV = p_DV * self._allowed_V
        if self._top_k_D1 is not None:
            p_DV = _largest(p_DV, self._top_k_D1)
        if self._top_p_D1 is not None:
            p_DV = _nucleus(p_DV, self._top_p_D1)
        if self._min_p_D1 is not None:
            p_DV = p_DV * (p_DV >= self._min_p_D1 * p_DV.amax(-1, keepdim=True))
        sum_DV = p_DV.cumsum(-1)
        # At most (1 - 2^-24) of all there is, which as a float32 is less than all: some word passes it.
        wanted_D1 = self._uniform_TD1[self._since] * sum_DV[:, -1:]
        return torch.searchsorted(sum_DV, wanted_D1, right=True)[:, 0]


def _largest(p_DV: Tensor, top_k_D1: Tensor) -> Tensor:
    """Zero outside of the top_k likeliest words; 0 keeps all. Words as likely as the last stay, as in transformers."""
    count_D1 = torch.where(top_k_D1 > 0, top_k_D1, p_DV.shape[-1]).clamp(max=p_DV.shape[-1])
    least_D1 = p_DV.sort(-1, descending=True).values.gather(1, count_D1.long() - 1)
    return p_DV * (p_DV >= least_D1)


def _nucleus(p_DV: Tensor, top_p_D1: Tensor) -> Tensor:
    """Zero outside of the likeliest words that together reach top_p of what there is; the likeliest always stays."""
    ordered_DV, order_DV = p_DV.sort(-1, descending=True)
    before_DV = ordered_DV.cumsum(-1) - ordered_DV
    kept_DV = before_DV < top_p_D1 * ordered_DV.sum(-1, keepdim=True)
    return torch.zeros_like(p_DV).scatter(1, order_DV, ordered_DV * kept_DV)
