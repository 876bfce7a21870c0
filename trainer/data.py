"""From an export to a model's inputs: examples, and prompts with their images as one padded batch of token ids.

A prompt is encoded in two parts that join exactly: the head, everything up to the last image, which all questions about
a sample share, and the question with what follows it. Positions are the model's own (multimodal rope for Qwen).
Not here: pixels (images.py), several branches behind one head (shared_prefix.py), the export's layout (contract).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainer.contract import prompts
from trainer.contract.answers import format_completion
from trainer.contract.dimensions import Dimension, Polarity, Split
from trainer.contract.exports import MANIFEST, ExportRefused, Manifest, file_sha256, read_manifest, read_records
from trainer.contract.prompts import Prompt, PromptKind
from trainer.contract.records import Record, same_polarity
from trainer.images import ImageTensor, image_grid, pixel_inputs
from trainer.model import Architecture, ModelRefused, Screener

# Shapes: B prompts, P prompt tokens, 3 = time, row and column of a multimodal rope position.


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A record with one of the three prompts about it, and the completion that SFT teaches."""

    record: Record
    prompt: Prompt
    target: str


def open_export(export_dir: Path) -> Manifest:
    """The manifest of an export that can be trained on. ExportRefused names what is unknown, gone or changed.

    Looked at before anything is computed: the version of the ask prompt, since it says how answers are written; the
    bytes of the record files; that every image is there at its size. The bytes of an image are hashed when it is read
    (images.py).
    """
    manifest = read_manifest(export_dir)
    known, found = prompts.PROMPT_VERSIONS[PromptKind.ASK], manifest.prompt_versions.get(PromptKind.ASK)
    if found != known:
        raise ExportRefused(
            f"{export_dir / MANIFEST}: its answers are written as prompt {found} asks, this trainer knows {known}"
        )
    for name, entry in manifest.files.items():
        path = export_dir / name
        is_records = name.startswith("records-")
        if not is_records and not name.startswith("images/"):
            continue
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ExportRefused(f"{path}: {error.strerror}") from None
        if size != entry["bytes"] or (is_records and file_sha256(path) != entry["sha256"]):
            raise ExportRefused(f"{path} was changed: its bytes are not those of the manifest")
    return manifest


def read_split(
    export_dir: Path, split: Split, dimensions: Sequence[Dimension], polarity: Polarity | None
) -> list[Record]:
    """The records of one side of an export in some dimensions, in one polarity. ExportRefused when there are none.

    RecordRefused when polarities are mixed and none is asked for.
    """
    wanted = set(dimensions)
    records = [record for record in read_records(export_dir, split) if record.dimension in wanted]
    if not records:
        raise ExportRefused(f"{export_dir}: there is no {split} record in {', '.join(sorted(wanted))}")
    return same_polarity(records, polarity)


def make_example(record: Record, kind: PromptKind) -> Example:
    """One record under one prompt. A record without a rationale gets a target of an answer alone."""
    count = len(record.candidates)
    match kind:
        case PromptKind.ASK:
            prompt = prompts.ask(record.dimension, record.polarity, count)
        case PromptKind.EXPLAIN:
            prompt = prompts.explain(record.dimension, record.polarity, count, record.answer)
        case PromptKind.RESOLVE:
            prompt = prompts.resolve(record.dimension, record.polarity, count, record.rationale)
    return Example(record=record, prompt=prompt, target=target_text(record))


def target_text(record: Record) -> str:
    """The completion a record teaches; tags that a person wrote into a rationale are taken out of it."""
    return format_completion(_TAGS.sub("", record.rationale), record.answer)


def group_by_sample(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each sample together: they share their images. Samples in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.sample_id, []).append(record)
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts ready for the model, padded on the right."""

    input_ids: torch.Tensor
    """(B, P) token ids, image placeholders already expanded."""
    attention_mask: torch.Tensor
    """(B, P) 1 where a token is, 0 where padding is."""
    position_ids: torch.Tensor
    """(3, B, P) multimodal rope positions for Qwen models, (B, P) for InternVL."""
    mm_token_type_ids: torch.Tensor
    """(B, P) 1 where an image is. Needed only by forwards that compute positions themselves."""
    lengths: torch.Tensor
    """(B,) tokens of each prompt."""
    next_position: torch.Tensor
    """(B,) the position of the first token after the prompt: largest position + 1, not the length."""
    pixel_values: torch.Tensor
    """Patch rows of all images in prompt order (images.pixel_inputs)."""
    image_grid_thw: torch.Tensor | None
    """(images, 3) grids for Qwen models, None for InternVL."""
    images_per_prompt: tuple[int, ...]

    def image_inputs(self) -> dict[str, torch.Tensor]:
        """The keyword arguments that bring the images to the model."""
        given = {"pixel_values": self.pixel_values}
        return given if self.image_grid_thw is None else {**given, "image_grid_thw": self.image_grid_thw}

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of a plain forward of these prompts."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            **self.image_inputs(),
        }

    def select(self, places: Sequence[int]) -> PromptBatch:
        """Some of the prompts with their images, padded to the longest of them."""
        if list(places) == list(range(len(self.lengths))):
            return self
        rows = torch.tensor(list(places), device=self.lengths.device)
        longest = int(self.lengths[rows].max())
        counts = list(self.images_per_prompt)
        firsts = [sum(counts[:place]) for place in range(len(counts))]
        chosen = [image for place in places for image in range(firsts[place], firsts[place] + counts[place])]
        grids = self.image_grid_thw
        if not chosen:
            pixels = self.pixel_values[:0]
        elif grids is None:
            pixels = self.pixel_values[chosen]
        else:
            pieces = torch.split(self.pixel_values, grids.prod(-1).tolist())
            pixels = torch.cat([pieces[image] for image in chosen])
        return PromptBatch(
            input_ids=self.input_ids[rows, :longest],
            attention_mask=self.attention_mask[rows, :longest],
            position_ids=self.position_ids[..., rows, :longest],
            mm_token_type_ids=self.mm_token_type_ids[rows, :longest],
            lengths=self.lengths[rows],
            next_position=self.next_position[rows],
            pixel_values=pixels,
            image_grid_thw=None if grids is None else grids[chosen],
            images_per_prompt=tuple(counts[place] for place in places),
        )


def encode_prompts(
    screener: Screener,
    given: Sequence[Prompt],
    images: Sequence[Sequence[ImageTensor]],
    *,
    head_only: bool = False,
) -> PromptBatch:
    """Prompts and their images (the original first) as one batch; `head_only` stops after the last image.

    The whole prompt ends where the completion begins: the model's turn is open. ValueError when a prompt has another
    number of pictures than it is given images.
    """
    rows: list[list[int]] = []
    positions: list[torch.Tensor] = []
    for prompt, pictures in zip(given, images, strict=True):
        count = len(prompt.parts) // 2
        if count != len(pictures):
            raise ValueError(f"the prompt has {count} pictures, {len(pictures)} images were given")
        grids = tuple(image_grid(screener, picture) for picture in pictures)
        tail = [] if head_only else question_ids(screener, prompt)
        head, head_positions = _head(_Key(screener), count, grids)
        rows.append(head + tail)
        after = torch.arange(len(tail)) + int(head_positions.max()) + 1
        positions.append(torch.cat([head_positions, after.expand(3, -1)], dim=1))
    return batch_rows(screener, rows, positions, images)


def batch_rows(
    screener: Screener,
    rows: Sequence[Sequence[int]],
    positions: Sequence[torch.Tensor],
    images: Sequence[Sequence[ImageTensor]],
) -> PromptBatch:
    """Token rows with their (3, tokens) positions and images as one batch padded on the right."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    input_ids = torch.full((len(rows), longest), screener.pad_token_id)
    position_ids = torch.zeros(3, len(rows), longest, dtype=torch.long)
    for index, (row, row_positions) in enumerate(zip(rows, positions, strict=True)):
        input_ids[index, : len(row)] = torch.tensor(list(row))
        position_ids[:, index, : len(row)] = row_positions
    shown = [picture for pictures in images for picture in pictures]
    pixels = pixel_inputs(screener, shown) if shown else {"pixel_values": torch.zeros(0)}
    device = screener.device
    return PromptBatch(
        input_ids=input_ids.to(device),
        attention_mask=(torch.arange(longest) < lengths[:, None]).long().to(device),
        position_ids=(position_ids[0] if screener.architecture is Architecture.INTERNVL else position_ids).to(device),
        mm_token_type_ids=(input_ids == screener.image_token_id).int().to(device),
        lengths=lengths.to(device),
        next_position=torch.tensor([int(row.max()) + 1 for row in positions], device=device),
        pixel_values=pixels["pixel_values"],
        image_grid_thw=pixels.get("image_grid_thw"),
        images_per_prompt=tuple(len(pictures) for pictures in images),
    )


def question_ids(screener: Screener, prompt: Prompt) -> list[int]:
    """The tokens of a prompt after its last image, up to where the completion begins."""
    before, after = _around_question(_Key(screener), len(prompt.parts) // 2)
    return token_ids(screener, before + plain_text(screener, prompt.question) + after)


def completion_ids(screener: Screener, completion: str) -> list[int]:
    """The tokens of a completion with the token that ends it."""
    return [*token_ids(screener, plain_text(screener, completion)), screener.end_token_id]


def token_ids(screener: Screener, text: str) -> list[int]:
    """Tokens of a text without anything added around it."""
    ids: list[int] = screener.tokenizer.encode(text, add_special_tokens=False)
    return ids


def plain_text(screener: Screener, text: str) -> str:
    """The text with the names of control tokens broken up: no rationale may end a turn or pose as an image."""
    for name in screener.tokenizer.all_special_tokens:
        if name in text:
            text = text.replace(name, f"{name[0]} {name[1:]}")
    return text


_TAGS = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_QUESTION = "\ue000"  # stands for the question while the chat template is rendered once per number of candidates


class _Key:
    """A screener as a cache key: by its tokenizer's identity, and held weakly, so that no cache keeps a model alive."""

    def __init__(self, screener: Screener) -> None:
        self._screener = weakref.ref(screener)
        self._tokenizer = weakref.ref(screener.tokenizer)
        self._hash = id(screener.tokenizer)

    @property
    def screener(self) -> Screener:
        """Asked for only while something is computed for it: whoever asks the cache holds it."""
        found = self._screener()
        if found is None:
            raise ReferenceError("the screener of this key is gone")
        return found

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        ours = self._tokenizer()
        return ours is not None and isinstance(other, _Key) and ours is other._tokenizer()


@lru_cache(maxsize=64)
def _rendered(key: _Key, count: int) -> tuple[list[str], str, str]:
    """The chat template's text for `count` pictures: pieces before each image, before and after the question."""
    screener = key.screener
    prompt = Prompt(PromptKind.ASK, "", (*prompts.image_prefix(count - 1), prompts.Text(_QUESTION)))
    text: str = screener.tokenizer.apply_chat_template(
        prompts.template_messages(prompt), add_generation_prompt=True, tokenize=False
    )
    *pieces, tail = text.split(screener.image_placeholder)
    before, question, after = tail.partition(_QUESTION)
    if len(pieces) != count or not question:
        raise ModelRefused("the model's chat template leaves out images or the question: it cannot be used")
    return pieces, before, after


def _around_question(key: _Key, count: int) -> tuple[str, str]:
    _, before, after = _rendered(key, count)
    return before, after


@lru_cache(maxsize=4096)
def _head(key: _Key, count: int, grids: tuple[tuple[int, int], ...]) -> tuple[list[int], torch.Tensor]:
    """Tokens and (3, tokens) positions up to and including the last image.

    The head ends with a control token, so that tokenizing head and question apart gives the tokens of the whole.
    """
    return lay_out(key.screener, _rendered(key, count)[0], grids)


def lay_out(
    screener: Screener, pieces: Sequence[str], grids: Sequence[tuple[int, int]]
) -> tuple[list[int], torch.Tensor]:
    """Tokens and (3, tokens) positions of texts that each stand before an image of some token grid."""
    opening, _, closing = screener.image_marks
    multimodal = screener.architecture is not Architecture.INTERNVL
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    following = 0

    def add_text(text: str) -> None:
        nonlocal following
        tokens = token_ids(screener, text)
        ids.extend(tokens)
        positions.append((torch.arange(len(tokens)) + following).expand(3, -1))
        following += len(tokens)

    for piece, (rows, columns) in zip(pieces, grids, strict=True):
        add_text(piece + opening)
        ids.extend([screener.image_token_id] * (rows * columns))
        if multimodal:
            # Every token of an image has one time, its own row and column; text goes on after the longer side.
            axes = (torch.arange(1), torch.arange(rows), torch.arange(columns))
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            positions.append(grid.reshape(3, -1) + following)
            following += max(rows, columns)
        else:
            positions.append((torch.arange(rows * columns) + following).expand(3, -1))
            following += rows * columns
        add_text(closing)
    return ids, torch.cat(positions, dim=1) if positions else torch.zeros(3, 0, dtype=torch.long)
