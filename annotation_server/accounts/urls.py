"""Addresses of signing in, and of a person's own preferences, tokens and password."""

from django.contrib.auth.views import LogoutView, PasswordChangeView
from django.urls import path, reverse_lazy

from annotation_server.accounts import views

app_name = "accounts"
urlpatterns = [
    path("sign-in", views.SignIn.as_view(), name="sign_in"),
    path("sign-out", LogoutView.as_view(next_page="accounts:sign_in"), name="sign_out"),
    path(
        "password",
        PasswordChangeView.as_view(template_name="accounts/password.html", success_url=reverse_lazy("accounts:you")),
        name="password",
    ),
    path("you", views.you, name="you"),
    path("tokens", views.tokens, name="tokens"),
    path("tokens/<int:token_id>/revoke", views.revoke, name="revoke_token"),
]
