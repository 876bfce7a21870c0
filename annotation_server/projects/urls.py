"""Addresses of the project list, and of a project's settings and members."""

from django.urls import path

from annotation_server.projects import views

app_name = "projects"
urlpatterns = [
    path("", views.project_list, name="list"),
    path("new-project", views.create, name="create"),
    path("projects/<slug:slug>/settings", views.settings, name="settings"),
    path("projects/<slug:slug>/members", views.members, name="members"),
    path("projects/<slug:slug>/members/<int:member_id>/remove", views.remove, name="remove_member"),
]
