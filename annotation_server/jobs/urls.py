"""Address of the jobs page."""

from django.urls import path

from annotation_server.jobs import views

app_name = "jobs"
urlpatterns = [path("jobs", views.job_list, name="list")]
