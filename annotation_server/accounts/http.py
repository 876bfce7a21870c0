"""The request of a signed-in person, as views annotate it; nothing else."""

from django.http import HttpRequest

from annotation_server.accounts.models import Person


class AuthenticatedRequest(HttpRequest):
    """What a view behind `login_required`, or an API operation, receives."""

    user: Person
