"""The Celery app: `celery -A annotation_workers.celery worker`. Its settings are the CELERY_ ones in settings.py.

Not here: the jobs (jobs.py), and the server's way of sending them (annotation_server/jobs/broker.py).
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")

app = Celery("winnow")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["annotation_workers"], related_name="jobs")
