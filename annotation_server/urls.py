"""Every address of the server: the probes here, each app's pages from its own urls.py, the API from api.py."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, path

from annotation_server import health

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    # The API: path("api/v1/", api.urls)
    # The pages, one line per app that has some: path("", include("annotation_server.tasks.urls"))
    path("admin/", admin.site.urls),
]
