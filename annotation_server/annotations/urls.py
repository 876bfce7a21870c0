"""Addresses of the pages of judging, of its quality, and of a project's overview."""

from django.urls import path

from annotation_server.annotations.views import adjudicate, annotate, browse, guidelines, overview, quality, review

app_name = "annotations"
urlpatterns = [
    path("projects/<slug:slug>/", overview.overview, name="overview"),
    path("projects/<slug:slug>/annotate", annotate.annotate, name="annotate"),
    path("projects/<slug:slug>/tasks", browse.task_list, name="tasks"),
    path("projects/<slug:slug>/tasks.csv", browse.task_csv, name="tasks_csv"),
    path("projects/<slug:slug>/tasks/put-first", browse.put_first, name="put_first"),
    path("projects/<slug:slug>/tasks/<int:task_id>", browse.task_page, name="task"),
    path("projects/<slug:slug>/tasks/<int:task_id>/example", guidelines.use_as_example, name="use_as_example"),
    path("projects/<slug:slug>/guidelines", guidelines.guidelines, name="guidelines"),
    path("projects/<slug:slug>/guidelines/<str:dimension>", guidelines.fragment, name="guidelines_of"),
    path("projects/<slug:slug>/guidelines/<str:dimension>/edit", guidelines.edit, name="edit_guidelines"),
    path("projects/<slug:slug>/examples/<int:example_id>/remove", guidelines.remove, name="remove_example"),
    path("projects/<slug:slug>/tasks/<int:task_id>/flags/close", browse.close, name="close_flags"),
    path("projects/<slug:slug>/people", quality.people_page, name="people"),
    path("projects/<slug:slug>/people.csv", quality.people_csv, name="people_csv"),
    path("projects/<slug:slug>/people/<int:person_id>/<slug:verb>", quality.pause_or_resume, name="pause_or_resume"),
    path("projects/<slug:slug>/agreement", quality.agreement_page, name="agreement"),
    path("projects/<slug:slug>/agreement.csv", quality.agreement_csv, name="agreement_csv"),
    path("projects/<slug:slug>/disputed", adjudicate.disputed, name="disputed"),
    path("projects/<slug:slug>/disputed/<int:task_id>", adjudicate.adjudicate, name="adjudicate"),
    path("projects/<slug:slug>/review", review.review, name="review"),
]
