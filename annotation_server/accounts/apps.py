"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """annotation_server.accounts."""

    name = "annotation_server.accounts"
