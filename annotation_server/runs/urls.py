"""Addresses of endpoints and runs."""

from django.urls import path

from annotation_server.runs import comparison_views, views

app_name = "runs"
urlpatterns = [
    path("endpoints", views.endpoints, name="endpoints"),
    path("endpoints/<slug:name>", views.endpoint, name="endpoint"),
    path("endpoints/<slug:name>/change", views.change_endpoint, name="change_endpoint"),
    path("endpoint-tests/<int:test_id>", views.endpoint_test, name="endpoint_test"),
    path("projects/<slug:slug>/approaches", comparison_views.approaches_page, name="approaches"),
    path("projects/<slug:slug>/approaches.csv", comparison_views.approaches_csv, name="approaches_csv"),
    path("projects/<slug:slug>/runs", views.run_list, name="list"),
    path("projects/<slug:slug>/runs/start", views.start, name="start"),
    path("projects/<slug:slug>/runs/<int:run_id>", views.run, name="run"),
    path("projects/<slug:slug>/runs/<int:run_id>/attempts", views.attempts, name="attempts"),
    path("projects/<slug:slug>/runs/<int:run_id>/<slug:verb>", views.change, name="change"),
]
