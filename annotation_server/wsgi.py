"""What a WSGI server imports: `gunicorn annotation_server.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")

application = get_wsgi_application()
