"""People, their API tokens, and the audit log. Roles per project are memberships (projects/models.py)."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import models


class Person(AbstractUser):
    """Somebody who signs in. `is_superuser` is the administrator of the design; other roles are per project."""

    preferences = models.JSONField(
        default=dict, blank=True, help_text="What the person set for their pages: keys, colour scheme, language."
    )

    def __str__(self) -> str:
        return self.get_full_name() or self.username


class ApiToken(models.Model):
    """A bearer token for the API. Only its hash is kept; the token itself is shown once."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    token_sha256 = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(name="token_name_once_per_person", fields=("person", "name")),)

    def __str__(self) -> str:
        return self.name


class AuditEvent(models.Model):
    """Who did what to which object, for the acts that matter later: imports, freezes, exports, runs, access."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    verb = models.CharField(max_length=60)
    object_type = models.CharField(max_length=60)
    object_id = models.BigIntegerField()
    detail = models.JSONField(default=dict)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = (models.Index(name="audit_of_object", fields=("object_type", "object_id", "-id")),)

    def __str__(self) -> str:
        return f"{self.verb} {self.object_type} {self.object_id}"
