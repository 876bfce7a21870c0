"""The annotation ledger: who said what about which task, the resolution that stands, and what reviewers said of it.

Rows of Annotation are written by services.record_annotation alone. Not here: calls to models, what they cost (runs/).
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from annotation_server.annotations.fields import AnswerField
from annotation_server.tasks.models import Slot, Task
from trainer.contract.dimensions import AnswerSource
from trainer.contract.dimensions import Approach as ContractApproach


class Approach(models.TextChoices):
    """Where a rationale comes from: the words of the contract, as choices."""

    MANUAL = ContractApproach.MANUAL.value, _("Manual")
    AUTOMATED = ContractApproach.AUTOMATED.value, _("Automated")
    ANSWER_DRIVEN = ContractApproach.ANSWER_DRIVEN.value, _("Answer-driven")


class Annotator(models.Model):
    """Who said so: a person, a model behind an endpoint, or the source of an import."""

    class Kind(models.TextChoices):
        """What stands behind the name."""

        PERSON = "person"
        MODEL = "model"
        IMPORT = "import"

    kind = models.CharField(max_length=6, choices=Kind)
    name = models.CharField(max_length=200)
    person = models.OneToOneField(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="annotator"
    )

    class Meta:
        constraints = (
            models.UniqueConstraint(
                name="annotator_name_once_per_kind", fields=("kind", "name"), condition=~Q(kind="person")
            ),
            models.CheckConstraint(name="only_people_are_persons", condition=Q(kind="person") | Q(person=None)),
        )

    def __str__(self) -> str:
        return self.name


class Annotation(models.Model):
    """One annotator's answer and rationale on one task, by one approach."""

    class Standing(models.TextChoices):
        """What an annotation counts for.

        A VOTE fills a slot and decides the resolution. SURPLUS came after all slots were filled and counts nowhere.
        ADVICE comes from models: it never fills a slot; an automated one may resolve a task where the project says so.
        A DECISION is an adjudicator's or reviewer's: it stands above votes and fills no slot. WITHDRAWN was undone by
        its own annotator, and counts nowhere.
        """

        VOTE = "vote"
        SURPLUS = "surplus"
        ADVICE = "advice"
        DECISION = "decision"
        WITHDRAWN = "withdrawn"

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="annotations")
    annotator = models.ForeignKey(Annotator, on_delete=models.PROTECT, related_name="annotations")
    approach = models.CharField(max_length=13, choices=Approach)
    standing = models.CharField(max_length=9, choices=Standing)
    answer = AnswerField(help_text="Letters in the project's polarity; empty for none.")
    rationale = models.TextField(blank=True)
    prompt_version = models.CharField(max_length=40, blank=True, help_text="Empty where no prompt was involved.")
    confidence = models.FloatField(null=True)
    seconds_spent = models.FloatField(null=True, help_text="A person's time on it, measured by the page.")
    slot = models.OneToOneField(Slot, null=True, on_delete=models.SET_NULL, related_name="annotation")
    copied_from = models.ForeignKey(
        "self", null=True, on_delete=models.SET_NULL, related_name="+",
        help_text="Answer-driven: the annotation whose answer was given. Empty where it was gold or the resolution.",
    )  # fmt: skip
    idempotency_key = models.CharField(max_length=80, help_text="Sending the same one again keeps one annotation.")
    marks = models.JSONField(default=list, help_text="Where something is seen (marks.py); lands in the record's meta.")
    meta = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(name="annotation_once_per_key", fields=("annotator", "idempotency_key")),
            models.CheckConstraint(name="vote_fills_a_slot", condition=~Q(standing="vote") | Q(slot__isnull=False)),
            models.CheckConstraint(
                name="copied_answer_is_no_vote", condition=~Q(approach="answer_driven") | ~Q(standing="vote")
            ),
        )
        indexes = (
            # All that the task browser's filters ask of a task's annotations.
            models.Index(name="annotation_of_task", fields=("task", "standing", "approach", "annotator")),
            models.Index(name="annotation_by_annotator", fields=("annotator", "-id")),
        )

    def __str__(self) -> str:
        return f"{self.annotator} on {self.task}"


class Draft(models.Model):
    """What a person has begun to say about a task they hold. Deleted when they submit."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="drafts")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="drafts")
    answer = models.JSONField(null=True, help_text="Letters in order; null: nothing chosen yet.")
    rationale = models.TextField(blank=True)
    marks = models.JSONField(default=list)
    revision = models.PositiveIntegerField(default=1, help_text="A page that knows an older one must not overwrite.")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = (models.UniqueConstraint(name="one_draft_per_task_and_person", fields=("task", "person")),)

    def __str__(self) -> str:
        return f"draft of {self.person} on {self.task}"


class GoldAnswer(models.Model):
    """A known answer that checks annotators. Hidden from them; its original never enters train."""

    task = models.OneToOneField(Task, on_delete=models.CASCADE, related_name="gold")
    answer = AnswerField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"gold of {self.task}"


class Resolution(models.Model):
    """The answer that stands for a task, where it came from, and the rationale that stands for it."""

    class Source(models.TextChoices):
        """The words of the contract, as choices."""

        GOLD = AnswerSource.GOLD.value
        AGREEMENT = AnswerSource.AGREEMENT.value
        ADJUDICATION = AnswerSource.ADJUDICATION.value
        REVIEW = AnswerSource.REVIEW.value
        MODEL = AnswerSource.MODEL.value

    task = models.OneToOneField(Task, on_delete=models.CASCADE, related_name="resolution")
    answer = AnswerField()
    source = models.CharField(max_length=12, choices=Source)
    rationale_from = models.ForeignKey(
        Annotation, null=True, on_delete=models.SET_NULL, related_name="+",
        help_text="The annotation whose rationale stands; its approach is the record's. Its answer equals `answer`.",
    )  # fmt: skip
    votes = models.PositiveSmallIntegerField(default=0)
    agreement = models.FloatField(null=True, help_text="Share of votes equal to the answer; empty without votes.")
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.task}: {self.source}"


class Review(models.Model):
    """A reviewer looked at what stands for a task, or at one model annotation, and said what is to become of it."""

    class Verdict(models.TextChoices):
        """ACCEPTED changes nothing; CORRECTED has a decision; REJECTED takes back what stood, for an adjudicator."""

        ACCEPTED = "accepted"
        CORRECTED = "corrected"
        REJECTED = "rejected"

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="reviews")
    annotation = models.ForeignKey(
        Annotation, null=True, on_delete=models.SET_NULL, related_name="reviews",
        help_text="The one that was looked at: the rationale that stood, or the model annotation under review.",
    )  # fmt: skip
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="reviews")
    verdict = models.CharField(max_length=9, choices=Verdict)
    reason = models.CharField(max_length=500, blank=True)
    decision = models.OneToOneField(Annotation, null=True, on_delete=models.SET_NULL, related_name="decided_in")
    idempotency_key = models.CharField(max_length=80)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (
            models.CheckConstraint(name="rejection_has_a_reason", condition=~Q(verdict="rejected") | ~Q(reason="")),
        )
        indexes = (models.Index(name="review_of_task", fields=("task", "-id")),)

    def __str__(self) -> str:
        return f"{self.task}: {self.verdict}"
