"""Projects and who may do what in them: dimensions, polarity, guidelines, queue and resolution rules."""

from __future__ import annotations

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from trainer.contract.dimensions import DIMENSIONS, Dimension
from trainer.contract.dimensions import Polarity as ContractPolarity


def all_dimensions() -> list[str]:
    """The default of a new project: every dimension of the contract."""
    return [dimension.value for dimension in DIMENSIONS]


class Project(models.Model):
    """One dataset in the making."""

    class Polarity(models.TextChoices):
        """What the letters of every answer of the project list."""

        ACCEPTABLE = ContractPolarity.ACCEPTABLE.value, _("Acceptable")
        FLAWED = ContractPolarity.FLAWED.value, _("Flawed")

    class ResolutionRule(models.TextChoices):
        """When the votes on a task are its answer. What does not resolve is disputed and goes to adjudication."""

        UNANIMITY = "unanimity", _("All votes are the same answer")
        MAJORITY = "majority", _("A majority of votes per candidate")
        ADJUDICATION = "adjudication", _("Always by an adjudicator, who sees all votes")

    class QueueOrder(models.TextChoices):
        """What comes next to an annotator."""

        SAMPLE = "sample", _("All dimensions of a sample in a row")
        DIMENSION = "dimension", _("One dimension of all samples, then the next")

    slug = models.SlugField(max_length=60, unique=True)
    name = models.CharField(max_length=120)
    dimensions = models.JSONField(
        default=all_dimensions, help_text="Dimensions judged here, in the order of the contract."
    )
    polarity = models.CharField(max_length=12, choices=Polarity, default=Polarity.ACCEPTABLE)
    guidelines = models.TextField(blank=True, help_text=_("What annotators should know; shown one key away."))
    dimension_guidelines = models.JSONField(
        default=dict, blank=True, help_text="Text per dimension; a dimension without one has ours (guidelines.py)."
    )
    phrases = models.JSONField(
        default=dict, blank=True, help_text="Phrases for rationales per dimension; a dimension without has ours."
    )
    overlap = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(25)],
        help_text=_("How many votes a task gets. Applies to samples imported afterwards."),
    )
    resolution_rule = models.CharField(max_length=12, choices=ResolutionRule, default=ResolutionRule.UNANIMITY)
    rationale_required = models.BooleanField(default=False)
    queue_order = models.CharField(max_length=9, choices=QueueOrder, default=QueueOrder.SAMPLE)
    shuffle_candidates = models.BooleanField(
        default=False,
        help_text=_(
            "Show candidates in another order to each person, against order bias. Letters stay with their image."
        ),
    )
    gold_rate = models.FloatField(
        default=0.05,
        validators=[MinValueValidator(0), MaxValueValidator(0.5)],
        help_text=_("Share of an annotator's tasks that are gold, mixed in invisibly. 0: none."),
    )
    gold_floor = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_("Who answers less than this share of gold exactly is paused. Empty: nobody is."),
    )
    gold_window = models.PositiveSmallIntegerField(
        default=20, validators=[MinValueValidator(5)], help_text=_("Over how many of their last gold answers.")
    )
    lease_seconds = models.PositiveIntegerField(default=300, validators=[MinValueValidator(10)])
    show_pre_annotations = models.BooleanField(
        default=False, help_text=_("Show model annotations before a person submits. Off: annotators are blind.")
    )
    model_confidence = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_(
            "An automated annotation of at least this confidence resolves a task. Empty: never. "
            "0 accepts answers of unknown confidence too."
        ),
    )
    rationale_min_words = models.PositiveSmallIntegerField(
        default=8,
        help_text=_("Shorter reasonings of models are refused. Chinese counts by the character. 0: none is too short."),
    )
    rationale_max_words = models.PositiveIntegerField(
        default=600,
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Longer reasonings of models are refused. Empty: none is too long."),
    )
    near_copy = models.FloatField(
        default=0.8,
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_(
            "A model’s reasoning with this share of its words in common with another task’s is refused. Empty: none is."
        ),
    )
    blind_resolve = models.BooleanField(
        default=False,
        help_text=_(
            "A second call sees the images and the reasoning without its answer, and must come to the same answer. "
            "About twice the calls."
        ),
    )
    hourly_wage = models.DecimalField(
        max_digits=8,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("What an hour of annotating costs: approaches are compared by it. Empty: unknown."),
    )
    validation_share = models.FloatField(default=0.05, validators=[MinValueValidator(0), MaxValueValidator(1)])
    test_share = models.FloatField(default=0.05, validators=[MinValueValidator(0), MaxValueValidator(1)])
    created_at = models.DateTimeField(auto_now_add=True)
    frozen_at = models.DateTimeField(
        null=True, editable=False, help_text="When a version last began to freeze: what stood then cannot be undone."
    )

    class Meta:
        constraints = (
            models.CheckConstraint(name="project_overlap_is_positive", condition=Q(overlap__gte=1)),
            models.CheckConstraint(
                name="project_shares_leave_room_for_train",
                condition=Q(validation_share__gte=0, test_share__gte=0)
                & Q(validation_share__lte=1 - models.F("test_share")),
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def judged(self) -> tuple[Dimension, ...]:
        """The project's dimensions as words of the contract."""
        return tuple(Dimension(name) for name in self.dimensions)


class Membership(models.Model):
    """A person's role in a project. Administrators need none."""

    class Role(models.TextChoices):
        """What each may do stands in projects/access.py, in one table."""

        MANAGER = "manager", _("Manager")
        REVIEWER = "reviewer", _("Reviewer")
        ANNOTATOR = "annotator", _("Annotator")
        ML_ENGINEER = "ml_engineer", _("ML engineer")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=12, choices=Role)
    paused_at = models.DateTimeField(null=True, help_text="Gets no tasks since then.")
    resumed_at = models.DateTimeField(null=True, help_text="Gold answered before counts no longer for a pause.")
    paused_why = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = (models.UniqueConstraint(name="one_role_per_person_and_project", fields=("project", "person")),)

    def __str__(self) -> str:
        return f"{self.person} is {self.role} of {self.project}"
