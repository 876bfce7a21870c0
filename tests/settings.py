"""The server's settings as tests use them: a home of their own, a quick password hash, no broker.

What the environment says about a running Winnow is not for tests; only DATABASE_URL is, which chooses the database.
"""

import atexit
import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="winnow-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

for name in ("ALLOWED_HOSTS", "BIND_ADDRESS", "DEBUG", "HTTPS", "MODEL_PORT", "PORT", "STORAGE_URL"):
    os.environ.pop(name, None)
os.environ["WINNOW_HOME"] = HOME
os.environ["REDIS_URL"] = f"redis+socket://{HOME}/nobody-listens.sock"

from annotation_server.settings import *  # noqa: E402, F403 - after the environment above, which it reads
from annotation_server.settings import DATABASES  # noqa: E402

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if DATABASES["default"]["ENGINE"] == "annotation_server.sqlite":
    # A file, not memory: only there do the write-ahead log and the locks behave as they do in use.
    DATABASES["default"]["TEST"] = {"NAME": f"{HOME}/tests.sqlite3"}
