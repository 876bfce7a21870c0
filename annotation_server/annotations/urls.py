"""Addresses of the pages of judging, and of a project's overview."""

from django.urls import path

from annotation_server.annotations.views import adjudicate, annotate, browse, guidelines, overview, review

app_name = "annotations"
urlpatterns = [
    path("projects/<slug:slug>/", overview.overview, name="overview"),
    path("projects/<slug:slug>/annotate", annotate.annotate, name="annotate"),
    path("projects/<slug:slug>/tasks", browse.task_list, name="tasks"),
    path("projects/<slug:slug>/tasks/<int:task_id>", browse.task_page, name="task"),
    path("projects/<slug:slug>/tasks/<int:task_id>/example", guidelines.use_as_example, name="use_as_example"),
    path("projects/<slug:slug>/guidelines", guidelines.guidelines, name="guidelines"),
    path("projects/<slug:slug>/guidelines/<str:dimension>", guidelines.fragment, name="guidelines_of"),
    path("projects/<slug:slug>/guidelines/<str:dimension>/edit", guidelines.edit, name="edit_guidelines"),
    path("projects/<slug:slug>/examples/<int:example_id>/remove", guidelines.remove, name="remove_example"),
    path("projects/<slug:slug>/disputed", adjudicate.disputed, name="disputed"),
    path("projects/<slug:slug>/disputed/<int:task_id>", adjudicate.adjudicate, name="adjudicate"),
    path("projects/<slug:slug>/review", review.review, name="review"),
]
