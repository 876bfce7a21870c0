"""Dimensions and stored words as people read them, translated. What models read is in trainer.contract.prompts."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from trainer.contract.dimensions import Dimension

DIMENSION_LABELS: dict[Dimension, Promise] = {
    Dimension.APPEARANCE_DEFORMATION: _("Appearance deformation"),
    Dimension.PHYSICAL_SHADOW: _("Physical shadow"),
    Dimension.PLACEMENT_LAYOUT: _("Placement and layout"),
    Dimension.EXTENSION_RATIONALITY: _("Extension rationality"),
}

DIMENSION_HINTS: dict[Dimension, Promise] = {
    Dimension.APPEARANCE_DEFORMATION: _(
        "The product looks as in the original: same outline, parts, colours and label; nothing bent, garbled, missing "
        "or added."
    ),
    Dimension.PHYSICAL_SHADOW: _(
        "The product casts a shadow that touches it, falls away from the visible light, and has a believable length "
        "and darkness."
    ),
    Dimension.PLACEMENT_LAYOUT: _(
        "The product stands on the ground, upright, whole, and at a believable size for the scene."
    ),
    Dimension.EXTENSION_RATIONALITY: _(
        "The background that was added continues in one piece, without seams, repeats, ghosts or broken lines."
    ),
}

STORED_WORDS: dict[str, Promise] = {
    # states
    "open": _("open"),
    "disputed": _("disputed"),
    "resolved": _("resolved"),
    "queued": _("queued"),
    "preparing": _("preparing"),
    "waiting": _("waiting"),
    "running": _("running"),
    "paused": _("paused"),
    "done": _("done"),
    "failed": _("failed"),
    "cancelled": _("cancelled"),
    "freezing": _("freezing"),
    "frozen": _("frozen"),
    # where an answer comes from, and what it counts for
    "gold": _("gold"),
    "agreement": _("agreement"),
    "adjudication": _("adjudication"),
    "review": _("review"),
    "model": _("model"),
    "person": _("person"),
    "import": _("import"),
    "vote": _("vote"),
    "surplus": _("surplus"),
    "advice": _("advice"),
    "decision": _("decision"),
    "withdrawn": _("withdrawn"),
    # what came of a call
    "sent": _("sent"),
    "unknown": _("unknown"),
    "answered": _("answered"),
    "accepted": _("accepted"),
    "corrected": _("corrected"),
    "rejected": _("rejected"),
    "read": _("read"),
    "error": _("error"),
    # approaches, splits, polarity, dimensions
    "manual": _("manual"),
    "automated": _("automated"),
    "answer_driven": _("answer-driven"),
    "train": _("train"),
    "validation": _("validation"),
    "test": _("test"),
    "acceptable": _("acceptable"),
    "flawed": _("flawed"),
} | {dimension.value: label for dimension, label in DIMENSION_LABELS.items()}
"""Words of the database that pages show."""
