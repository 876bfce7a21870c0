"""Addresses of dataset versions and their exports."""

from django.urls import path

from annotation_server.datasets import views

app_name = "datasets"
urlpatterns = [
    path("projects/<slug:slug>/versions", views.version_list, name="list"),
    path("projects/<slug:slug>/versions/<int:version_pk>", views.version, name="version"),
    path("projects/<slug:slug>/versions/<int:version_pk>/export", views.export_version, name="export"),
    path("projects/<slug:slug>/exports/<int:export_id>/<str:name>", views.export_file, name="export_file"),
]
