"""A small tokenizer for a new model, trained on the very texts the model will read and write.

Byte-level BPE that does not split at spaces: a boilerplate sentence becomes a few tokens, every byte stays possible.
Candidate letters, the commas between them and the grammar's tags always stand alone, so that one token is one verdict.
Not here: the tokenizers of published models, which are used as they come (model.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_PAD, VIDEO_PAD)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# A letter that stands alone, a comma between two letters, and a line break are tokens of their own.
_ALONE = r"(?<![A-Za-z])[A-H](?![A-Za-z])|(?<=[A-H]),(?=[A-H])|\n"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens; ValueError below the 256 bytes and the fixed tokens."""
    least = 256 + len(SPECIAL_TOKENS) + len(TAGS)
    if vocabulary < least:
        raise ValueError(f"vocab_size: expected {least} or more for a byte-level tokenizer, got {vocabulary}")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join((*TAGS, _ALONE))), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The tags are cut out here as well, or merges inside them would be learnt and never used.
    raw.train_from_iterator(_without_tags(texts), learner)
    raw.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _without_tags(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for tag in TAGS:
            text = text.replace(tag, "\n")
        yield text
