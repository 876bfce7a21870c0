"""Settings that are each valid and impossible, or unwise, together: system checks, each with a hint.

Not here: a single wrong value, which settings.py refuses by itself.
"""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from annotation_server.settings import LOOPBACK_HOSTS

# What Django's test client calls itself counts as this machine.
LOCAL_NAMES = {*LOOPBACK_HOSTS, "::1", "testserver"}


def names_of_the_network() -> set[str]:
    return set(settings.ALLOWED_HOSTS) - LOCAL_NAMES


def listens_beyond_loopback() -> bool:
    return settings.BIND_ADDRESS not in LOCAL_NAMES


def leaves_loopback() -> bool:
    return bool(names_of_the_network()) or listens_beyond_loopback()


@register("winnow")
def check_settings_together(app_configs: Sequence[Any] | None, **kwargs: object) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.DEBUG and leaves_loopback():
        found.append(
            Error(
                "DEBUG=True shows settings and source code to whoever reaches this server.",
                hint="Leave DEBUG unset, or keep ALLOWED_HOSTS and BIND_ADDRESS on the loopback address.",
                id="winnow.E001",
            )
        )
    if listens_beyond_loopback() and not names_of_the_network():
        found.append(
            Error(
                f"BIND_ADDRESS={settings.BIND_ADDRESS} listens beyond this machine, "
                "and ALLOWED_HOSTS refuses every name but its own.",
                hint="Set ALLOWED_HOSTS to the names people will type, separated by commas.",
                id="winnow.E002",
            )
        )
    if settings.MODEL == "local" and settings.MODEL_PORT == settings.PORT:
        found.append(
            Error(
                f"PORT and MODEL_PORT are both {settings.PORT}.",
                hint="Give the local model another MODEL_PORT, or leave it out with MODEL=none.",
                id="winnow.E003",
            )
        )
    if leaves_loopback() and not settings.HTTPS:
        found.append(
            Warning(
                "Passwords and sessions cross the network unencrypted.",
                hint="Put a proxy that speaks HTTPS in front, let it set X-Forwarded-Proto, and set HTTPS=True.",
                id="winnow.W001",
            )
        )
    if "*" in settings.ALLOWED_HOSTS:
        found.append(
            Warning(
                "ALLOWED_HOSTS=* accepts any Host header, and links in our pages repeat it.",
                hint="Name the hosts people will type.",
                id="winnow.W002",
            )
        )
    return found
