"""What each check of a completion minds, as people read it, translated. The checks: annotation_workers/checks.py."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from trainer.contract.feedback import Objection

CHECK_LABELS: dict[Objection, Promise] = {
    Objection.ANSWER_DIFFERS: _("It ends in another answer than the given one."),
    Objection.NO_RATIONALE: _("There is no reasoning."),
    Objection.TOO_LONG: _("The reasoning has more words than the project wants."),
    Objection.TOO_SHORT: _("The reasoning has fewer words than the project wants."),
    Objection.LEAKS: _("It shows that it was told the answer: a phrase, or a sentence of the instruction."),
    Objection.EMPTY_TALK: _("It names no candidate, or nothing that can be seen of the dimension."),
    Objection.CONTRADICTS: _("What it says of a candidate is the opposite of its answer."),
    Objection.NEAR_COPY: _("Its words are nearly those of another task’s reasoning."),
    Objection.RESOLVE_DIFFERS: _("Solved again without its answer, it led to another one."),
    Objection.RESOLVE_UNREAD: _("Nobody could be had who solves it again."),
}
