"""The server's own way to wake a worker: a Celery producer with the workers' settings and short timeouts.

The server never imports the workers, and `celery.current_app` in a process that does not would be an unconfigured app
that talks to a default broker. Not here: Job rows and when to send them (services.py).
"""

import logging

from celery import Celery
from django.conf import settings
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

# A person waits for the page that sends: a broker that is down or silent may cost a second or two, not more.
IMPATIENT = {
    "socket_connect_timeout": 1.0,
    "socket_timeout": 1.0,
    "max_retries": 1,
    "interval_start": 0.0,
    "interval_max": 0.1,
}


def make_producer(broker_url: str) -> Celery:
    app = Celery("winnow-server", set_as_current=False)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.conf.update(
        broker_url=broker_url,
        broker_transport_options={**settings.CELERY_BROKER_TRANSPORT_OPTIONS, **IMPATIENT},
    )
    return app


producer = make_producer(settings.CELERY_BROKER_URL)


def send(kind: str, job_id: int) -> bool:
    """Wake a worker for the job. False, and a line in the log, when the broker did not take it: the reconciler will."""
    try:
        producer.send_task(kind, args=[job_id], retry=False)
    except OperationalError as error:
        logger.warning("The broker did not take job %s (%s): %s", job_id, kind, error)
        return False
    return True


def broker_error() -> str:
    """Why the broker cannot be used just now; empty when it can."""
    try:
        with producer.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except OperationalError as error:
        return str(error)
    return ""
