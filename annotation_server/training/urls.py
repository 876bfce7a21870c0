"""Address of the model versions."""

from django.urls import path

from annotation_server.training import views

app_name = "training"
urlpatterns = [path("models", views.models, name="models")]
