"""Dimensions in words for people: labels, and the question an annotator answers. Translated; models have prompts.py."""

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
