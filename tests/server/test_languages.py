"""The pages in Chinese: every message is translated, the compiled catalogue is the written one, readers get theirs."""

from __future__ import annotations

import ast
import gettext
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client
from django.utils import translation
from django.utils.translation.template import templatize

from annotation_server.projects.models import Membership
from tests.server.factories import make_member, make_person, make_project, make_sample

SERVER = Path(__file__).resolve().parents[2] / "annotation_server"
CATALOGUE = SERVER / "locale" / "zh_Hans" / "LC_MESSAGES"
CALLS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy"}
PLACES = re.compile(r"%\(\w+\)[sd]|%%|\{\w+\}")

IN_CHINESE = {"Accept-Language": "zh-CN,zh;q=0.9"}


@pytest.fixture(autouse=True)
def nobody_speaks_chinese_afterwards() -> Iterator[None]:
    """A request leaves its language behind in the thread, where the next test's command would speak it."""
    yield
    translation.deactivate()


def in_python() -> Iterator[str]:
    """Literal first arguments of calls that translate."""
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                argument = node.args[0]
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: only literals can be collected"
                assert isinstance(argument.value, str)
                yield argument.value


def in_templates() -> Iterator[str]:
    """What Django's own rewriting of a template leaves as calls: the first string after the name of a call."""
    for path in SERVER.rglob("templates/**/*.html"):
        rewritten = " ".join(templatize(path.read_text(encoding="utf-8"), origin=str(path)).split("\n"))
        called = False
        for token in tokenize.generate_tokens(io.StringIO(rewritten).readline):
            if token.type == tokenize.STRING and called:
                yield ast.literal_eval(token.string)
            called = token.string in CALLS or (called and token.string == "(")


def written() -> dict[str, str]:
    """Messages and translations of the .po, without those that no page uses any more."""
    found: dict[str, str] = {}
    message: dict[str, str] = {}
    field = ""
    for line in [*(CATALOGUE / "django.po").read_text(encoding="utf-8").splitlines(), ""]:
        if not line:
            if "msgid" in message:
                found[message["msgid"]] = message.get("msgstr[0]", message.get("msgstr", ""))
            message = {}
        elif line.startswith('"'):
            message[field] += ast.literal_eval(line)
        elif not line.startswith("#"):
            field, text = line.split(" ", 1)
            message[field] = ast.literal_eval(text)
    del found[""]
    return found


def compiled() -> dict[str, str]:
    """The same of the .mo, which is what the server reads."""
    with (CATALOGUE / "django.mo").open("rb") as file:
        catalogue: dict[str | tuple[str, int], str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    found = {key if isinstance(key, str) else key[0]: text for key, text in catalogue.items()}
    del found[""]
    return found


def test_every_message_of_the_pages_is_translated() -> None:
    used = set(in_python()) | set(in_templates())
    assert {"Submit", "Saved.", "%(tasks)s task"} <= used
    translations = written()
    missing = sorted(message for message in used if not translations.get(message))
    assert missing == [], "run `make messages`, translate these in locale/zh_Hans, and run it again"


def test_the_compiled_catalogue_is_the_written_one() -> None:
    assert compiled() == {message: text for message, text in written().items() if text}


def test_no_translation_is_a_guess() -> None:
    assert "#, fuzzy" not in (CATALOGUE / "django.po").read_text(encoding="utf-8")


def test_translations_keep_the_places_where_values_go() -> None:
    wrong = [
        message for message, text in written().items() if set(PLACES.findall(message)) != set(PLACES.findall(text))
    ]
    assert wrong == []


@pytest.mark.django_db
def test_a_reader_gets_the_browsers_language_until_they_choose_one(client: Client) -> None:
    assert "登录" in client.get("/sign-in", headers=IN_CHINESE).content.decode()
    assert "Sign in" in client.get("/sign-in").content.decode()
    assert "Sign in" in client.get("/sign-in", headers={"Accept-Language": "de"}).content.decode()

    client.force_login(make_person("ada", preferences={"language": "en"}))
    assert "Projects" in client.get("/", headers=IN_CHINESE).content.decode()
    client.force_login(make_person("lin", preferences={"language": "zh-hans"}))
    page = client.get("/")
    assert "还没有项目。" in page.content.decode()
    assert 'lang="zh-hans"' in page.content.decode()
    assert page["Content-Language"] == "zh-hans"


@pytest.mark.django_db
def test_choosing_a_language_answers_in_it(client: Client) -> None:
    client.force_login(make_person("ada"))
    page = client.post("/you", {"theme": "auto", "language": "zh-hans"}, follow=True).content.decode()
    assert "已保存。" in page
    assert "配色" in page


@pytest.mark.django_db
@pytest.mark.parametrize(
    "page",
    [
        "",
        "guidelines",
        "tasks",
        "disputed",
        "review",
        "people",
        "agreement",
        "approaches",
        "imports",
        "runs",
        "versions",
        "members",
        "settings",
        "annotate",
    ],
)
def test_the_headings_and_fields_of_a_project_are_in_chinese(client: Client, page: str) -> None:
    project = make_project(name="瓶子", slug="bottles")
    make_sample(project)
    client.force_login(make_member(project, Membership.Role.MANAGER, "lin"))
    shown = client.get(f"/projects/bottles/{page}", headers=IN_CHINESE).content.decode()
    words = re.findall(r"<(h1|h2|label|th|legend|button)\b[^>]*>(.*?)</\1>", shown, re.DOTALL)
    texts = [re.sub(r"<[^>]+>", "", inner).strip() for _tag, inner in words]
    english = [text for text in texts if re.search(r"[A-Za-z]{4,}", text) and not re.search(r"[\u4e00-\u9fff]", text)]
    assert [text for text in english if not text.startswith("sample-")] == []
