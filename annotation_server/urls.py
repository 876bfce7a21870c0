"""Every address of the server: the probes here, each app's pages from its own urls.py, the API from api.py."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

from annotation_server import health
from annotation_server.api import api

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    path("api/v1/", api.urls),
    path("", include("annotation_server.jobs.urls")),
    path("", include("annotation_server.accounts.urls")),
    path("", include("annotation_server.projects.urls")),
    path("", include("annotation_server.samples.urls")),
    path("", include("annotation_server.annotations.urls")),
    path("", include("annotation_server.runs.urls")),
    path("", include("annotation_server.datasets.urls")),
    path("", include("annotation_server.training.urls")),
    path("admin/", admin.site.urls),
]
