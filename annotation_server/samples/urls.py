"""Addresses of stored images, and of a project's imports."""

from django.urls import path

from annotation_server.samples import signed_links, views

app_name = "samples"
urlpatterns = [
    path("images/<str:sha256>", views.image, name="image"),
    path("previews/<str:sha256>", views.preview, name="preview"),
    path(f"{signed_links.PATH}/<str:token>", views.signed_image, name="signed_image"),
    path("projects/<slug:slug>/imports", views.imports, name="imports"),
    path("projects/<slug:slug>/imports/<int:batch_id>", views.import_row, name="import_row"),
]
