"""Every setting of the server and its workers, read once from the environment, typed; a wrong value says so.

docs/operator.md describes each of them, and a test fails when one is missing there.

Not here: combinations that cannot work (checks.py), the trainer's settings (trainer/config.py).
"""

import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "[::1]"]


def env_text(name: str, default: str) -> str:
    """An empty value counts as unset, so that `NAME= make run` means the default."""
    return os.getenv(name) or default


def env_bool(name: str, default: bool) -> bool:
    match os.getenv(name):
        case None | "":
            return default
        case "True":
            return True
        case "False":
            return False
        case other:
            raise ImproperlyConfigured(f"{name}={other!r}: use True or False")


def env_int(name: str, default: int, low: int, high: int) -> int:
    text = env_text(name, str(default))
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ImproperlyConfigured(f"{name}={text!r}: use a whole number from {low} to {high}")
    return int(text)


def env_choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    text = env_text(name, default)
    if text not in choices:
        raise ImproperlyConfigured(f"{name}={text!r}: use one of {', '.join(choices)}")
    return text


def env_list(name: str, default: list[str]) -> list[str]:
    return [part.strip() for part in env_text(name, ",".join(default)).split(",") if part.strip()]


def secret_key(home: Path) -> str:
    """The key of this home: made once, readable by its owner only."""
    if given := os.getenv("WINNOW_SECRET_KEY"):
        if len(given) < 32:
            raise ImproperlyConfigured("WINNOW_SECRET_KEY is shorter than 32 characters")
        return given
    path = home / "secret_key"
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written aside and linked into place: of two processes that start together, both read the same whole key.
        aside = home / f".secret_key.{os.getpid()}"
        aside.touch(mode=0o600)
        aside.write_text(secrets.token_urlsafe(48))
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            pass  # the other process was first
        finally:
            aside.unlink()
    return path.read_text()


def queue_socket(home: Path) -> Path:
    """Where the launcher's own queue server listens.

    The kernel allows about 107 bytes for a Unix socket's path; a long home moves it to a short directory of ours.
    """
    inside = home / "queue.sock"
    if len(os.fsencode(inside)) <= 100:
        return inside
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}-{digest}" / "queue.sock"


def storage_root(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ImproperlyConfigured(f"STORAGE_URL={url!r}: use file:///an/absolute/directory")
    return Path(unquote(parts.path))


def broker_url(url: str) -> str:
    if urlsplit(url).scheme not in ("redis", "rediss", "redis+socket"):
        raise ImproperlyConfigured(f"REDIS_URL={url!r}: use redis://, rediss:// or redis+socket://")
    return url


def database(url: str) -> dict[str, Any]:
    """Django's description of it, with what SQLite needs to serve a team and PostgreSQL to outlive a restart."""
    try:
        config: dict[str, Any] = dict(dj_database_url.parse(url))
    except ValueError as error:
        raise ImproperlyConfigured(f"DATABASE_URL: {error}") from error
    match config["ENGINE"]:
        case "django.db.backends.sqlite3":
            config["ENGINE"] = "annotation_server.sqlite"  # its writers take turns
            config["OPTIONS"] = {
                "transaction_mode": "IMMEDIATE",  # a transaction that will write waits at its start, never fails midway
                "timeout": 20,
                # 32 MiB of pages per connection, and reads of the rest without a copy.
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; "
                "PRAGMA cache_size=-32768; PRAGMA mmap_size=1073741824;",
            }
            config["CONN_MAX_AGE"] = 60  # opening one reads the whole schema
        case "django.db.backends.postgresql":
            config["CONN_MAX_AGE"] = 60
            config["CONN_HEALTH_CHECKS"] = True
            # What prepared.py asks again and again is planned once per connection. Django leaves this out for the sake
            # of old connection poolers (docs/operator.md).
            config.setdefault("OPTIONS", {}).setdefault("prepare_threshold", 3)
        case other:
            raise ImproperlyConfigured(f"DATABASE_URL: use sqlite:// or postgresql://, not {other}")
    return config


# Where things are

WINNOW_HOME = Path(env_text("WINNOW_HOME", str(BASE_DIR / "var"))).expanduser().resolve()
DATABASE_URL = env_text("DATABASE_URL", f"sqlite:///{quote(str(WINNOW_HOME / 'winnow.sqlite3'))}")
REDIS_URL = broker_url(env_text("REDIS_URL", f"redis+socket://{quote(str(queue_socket(WINNOW_HOME)))}"))
STORAGE_URL = env_text("STORAGE_URL", (WINNOW_HOME / "storage").as_uri())
STORAGE_ROOT = storage_root(STORAGE_URL)

BIND_ADDRESS = env_text("BIND_ADDRESS", "127.0.0.1")
PORT = env_int("PORT", 8000, 1, 65535)
WEB_PROCESSES = env_int("WEB_PROCESSES", 2, 1, 64)
WORKER_PROCESSES = env_int("WORKER_PROCESSES", 2, 1, 64)
MODEL = env_choice("MODEL", "local", ("local", "none"))
MODEL_PORT = env_int("MODEL_PORT", 8001, 1, 65535)
# The demo's passwords are printed and well known: by default it is made only where nobody else can reach it.
DEMO = env_bool("DEMO", not os.getenv("DATABASE_URL") and BIND_ADDRESS == "127.0.0.1")
IMAGE_MEGAPIXELS = env_int("IMAGE_MEGAPIXELS", 64, 1, 89)  # above 89 Pillow itself suspects a bomb
LOCAL_MODEL_URL = f"http://127.0.0.1:{MODEL_PORT}/v1"

# Django

DEBUG = env_bool("DEBUG", False)
HTTPS = env_bool("HTTPS", False)
SECRET_KEY = secret_key(WINNOW_HOME)
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", LOOPBACK_HOSTS)
ROOT_URLCONF = "annotation_server.urls"
WSGI_APPLICATION = "annotation_server.wsgi.application"

INSTALLED_APPS = [
    "annotation_server",
    "annotation_server.jobs",
    "annotation_server.accounts",
    "annotation_server.projects",
    "annotation_server.samples",
    "annotation_server.tasks",
    "annotation_server.annotations",
    "annotation_server.runs",
    "annotation_server.datasets",
    "annotation_server.training",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "annotation_server.accounts.middleware.persons_language",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "annotation_server.security.content_security_policy",
    "annotation_server.errors.api_errors_in_one_shape",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {"default": database(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.Person"
LOGIN_URL = "accounts:sign_in"
LOGIN_REDIRECT_URL = "/"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
TIME_ZONE = "UTC"
USE_TZ = True
LOCALE_PATHS = [BASE_DIR / "annotation_server" / "locale"]

STATIC_URL = "/static/"
# Served from the apps' own folders: a first start has no collecting step to forget.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

# Security: what a browser is told; HTTPS=True says that a proxy in front speaks it.

X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 3600 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
CSRF_TRUSTED_ORIGINS = [f"http://{host}:{PORT}" for host in LOOPBACK_HOSTS] + (
    [f"https://{host}" for host in ALLOWED_HOSTS if host not in LOOPBACK_HOSTS and host != "*"] if HTTPS else []
)
SILENCED_SYSTEM_CHECKS = [
    "security.W008",  # the proxy in front redirects to HTTPS, and on a laptop nothing does
]

# Background work: the same for who sends (jobs/broker.py) and who receives (annotation_workers/celery.py)

CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# Only a backstop, above the longest job: the lease on the Job row and the reconciler bring work back within seconds.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 24 * 3600}
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "winnow"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = TIME_ZONE

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # One line per request of a run of half a million is no news: the ledger has them all.
    "loggers": {"httpx2": {"level": "WARNING"}},
}
