"""The image viewer in a real browser, on the task page and the adjudication page: what is painted, and where.

Colours are read from screenshots, because what people judge is what the screen shows. Viewers of a test's own
(`ViewerPage`) are made on the task page, as the annotating page makes its own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image as Pillow
from playwright.sync_api import ElementHandle, Locator, Page, Route, expect

from annotation_server.accounts.models import Person
from annotation_server.projects.models import Membership, Project
from annotation_server.samples import storage
from annotation_server.samples.models import Candidate, Image
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_image, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SignIn = Callable[..., Page]
Colour = tuple[int, int, int]

GREY = (119, 119, 119)
RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 200, 20), (20, 20, 230), (240, 240, 240)
QUARTERS = (RED, GREEN, BLUE, WHITE)


def quarters(size: tuple[int, int] = (400, 400), colours: tuple[Colour, ...] = QUARTERS) -> Pillow.Image:
    """Upper left, upper right, lower left and lower right each of one colour, so that places can be told apart."""
    width, height = size
    drawn = Pillow.new("RGB", size, colours[0])
    drawn.paste(colours[1], (width // 2, 0, width, height))
    drawn.paste(colours[2], (0, height // 2, width // 2, height))
    drawn.paste(colours[3], (width // 2, height // 2, width, height))
    return drawn


def plain(colour: Colour, size: tuple[int, int] = (400, 400)) -> Pillow.Image:
    return Pillow.new("RGB", size, colour)


def stored(drawn: Pillow.Image) -> Image:
    file = io.BytesIO()
    drawn.save(file, "PNG")
    content = file.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    image = Image.objects.filter(sha256=sha256).first() or make_image(
        sha256=sha256, source_sha256=sha256, width=drawn.width, height=drawn.height, size=len(content)
    )
    storage.put(image.path, content)
    return image


def make_task(project: Project, original: Pillow.Image, *candidates: Pillow.Image) -> Task:
    sample, (task,) = make_sample(project, original=stored(original), candidates=len(candidates))
    for letter, drawn in zip("ABCDEFGH", candidates, strict=False):
        Candidate.objects.filter(sample=sample, letter=letter).update(image=stored(drawn))
    return task


@pytest.fixture
def project() -> Project:
    return make_project(slug="cans", dimensions=["physical_shadow"])


@pytest.fixture
def reviewer(project: Project) -> Person:
    return make_member(project, Membership.Role.REVIEWER, "reviewer")


# ---- What the tests see ----


def panes(page: Page) -> Locator:
    return page.locator(".viewer-pane:visible")


def frame(page: Page, number: int) -> dict[str, float]:
    """The rectangle of a pane's frame on the page; 0 is the original's."""
    box = panes(page).nth(number).locator(".viewer-frame").bounding_box()
    assert box is not None
    return {name: float(box[name]) for name in ("x", "y", "width", "height")}


def settle(page: Page) -> None:
    """Until what was asked for is painted."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    )


def open_task(page: Page, task: Task) -> None:
    page.goto(f"/projects/cans/tasks/{task.pk}")
    expect(page.locator(".viewer-pane img.here").first).to_be_visible()
    expect(page.locator(".viewer-pane[data-state=loading]")).to_have_count(0)
    settle(page)


def colour_at(page: Page, number: int, x: float, y: float) -> Colour:
    """What is painted at fractions of a pane's frame."""
    settle(page)
    box = frame(page, number)
    shot = Pillow.open(io.BytesIO(page.screenshot())).convert("RGB")
    ratio = page.evaluate("devicePixelRatio")
    pixel = shot.getpixel((int((box["x"] + x * box["width"]) * ratio), int((box["y"] + y * box["height"]) * ratio)))
    assert isinstance(pixel, tuple)
    return (pixel[0], pixel[1], pixel[2])


def near(one: Colour, other: Colour, within: int = 6) -> bool:
    return all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


def places(page: Page) -> list[list[float]]:
    """Per pane where its picture lies: left, top, width and height in fractions of its frame."""
    settle(page)
    found: list[list[float]] = page.evaluate(
        """() => [...document.querySelectorAll(".viewer-pane:not([hidden]) .viewer-frame")].map((frame) => {
          const image = frame.querySelector(".viewer-base img.here").getBoundingClientRect();
          const box = frame.getBoundingClientRect();
          return [(image.left - box.left) / box.width, (image.top - box.top) / box.height,
                  image.width / box.width, image.height / box.height];
        })"""
    )
    return found


def tool(page: Page, name: str) -> Locator:
    return page.locator(f"[data-do={name}]")


@dataclass
class ViewerPage:
    """A viewer of the test's own on the task page, called as the annotating page calls it."""

    page: Page

    def call(self, code: str, value: Any = None) -> Any:
        """Run JavaScript with `viewer`, `events` and `value`, and wait until its result is painted."""
        result = self.page.evaluate(
            "([code, value]) => new Function('viewer', 'events', 'value', `return (async () => { ${code} })()`)"
            "(window.viewer, window.events, value)",
            [code, value],
        )
        settle(self.page)
        return result


def picture(image: Image, letter: str = "", **fields: Any) -> dict[str, Any]:
    full = f"/images/{image.sha256}"
    shown = {"letter": letter, "full": full, "preview": full, "width": image.width, "height": image.height}
    return shown | fields


def pictures(task: Task) -> list[dict[str, Any]]:
    candidates = task.sample.candidates.select_related("image").order_by("letter")
    return [picture(task.sample.original), *(picture(one.image, one.letter) for one in candidates)]


@pytest.fixture
def own_viewer(sign_in: SignIn, reviewer: Person) -> Callable[..., ViewerPage]:
    def make(task: Task, strings: dict[str, str] | None = None, **context: Any) -> ViewerPage:
        # The page's policy allows no script of ours but those it serves: the browser's own tool sets it aside.
        page = sign_in(reviewer, bypass_csp=True, **context)
        open_task(page, task)
        words = {
            "original": "Original",
            "candidate": "Candidate {letter}",
            "choose": "{letter} is acceptable",
            "removeMark": "Remove mark {number} on {letter}",
            "failed": "Failed",
            "retry": "Again",
        }
        page.evaluate(
            """async ([strings, pictures]) => {
              const { Viewer } = await import("/static/js/viewer.js");
              document.querySelector("[data-panes]").remove();
              const root = document.createElement("div");
              document.querySelector(".judge").prepend(root);
              window.events = [];
              for (const name of ["choose", "markschange", "viewchange"]) {
                root.addEventListener(name, (event) => window.events.push([name, event.detail]));
              }
              window.viewer = new Viewer(root, { strings });
              await window.viewer.show(pictures);
            }""",
            [words if strings is None else strings, pictures(task)],
        )
        settle(page)
        return ViewerPage(page)

    return make


# ---- Seeing ----


def test_all_pictures_are_shown_at_one_scale_on_a_neutral_surround(
    sign_in: SignIn, project: Project, reviewer: Person
) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    for scheme in ("light", "dark"):
        page = sign_in(reviewer, color_scheme=scheme)
        open_task(page, task)
        expect(panes(page)).to_have_count(5)
        for name in ("Original", *(f"Candidate {letter}" for letter in "ABCD")):
            expect(page.get_by_role("group", name=name).get_by_role("img", name=name)).to_be_visible()
        assert len({tuple(round(part, 3) for part in place) for place in places(page)}) == 1
        for number, colour in enumerate(QUARTERS, start=1):
            assert near(colour_at(page, number, 0.5, 0.5), colour)
            assert colour_at(page, number, 0.02, 0.5) == GREY
        page.context.close()


@pytest.mark.parametrize(
    ("width", "height", "columns"), [(1280, 720, 3), (1920, 1080, 3), (3840, 2160, 3), (820, 1180, 2), (390, 844, 2)]
)
def test_the_layout_fills_the_area(
    sign_in: SignIn, project: Project, reviewer: Person, width: int, height: int, columns: int
) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    page = sign_in(reviewer, viewport={"width": width, "height": height})
    open_task(page, task)
    assert len({round(frame(page, number)["x"]) for number in range(5)}) == columns
    stage = page.locator(".viewer-stage").bounding_box()
    assert stage is not None
    shown = sum(
        frame(page, number)["width"] * place[2] * frame(page, number)["height"] * place[3]
        for number, place in enumerate(places(page))
    )
    assert shown / (stage["width"] * stage["height"]) > 0.4
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_wheel_zooms_every_pane_at_the_same_spot(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    page = sign_in(reviewer)
    open_task(page, task)
    (before,) = {tuple(place) for place in places(page)}
    box = frame(page, 2)
    # The spot that lies at a quarter of pane B stays there, in every pane.
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.3 * box["height"])
    for _ in range(6):
        page.mouse.wheel(0, -120)
    after = places(page)
    assert after[0][2] > 2 * before[2]
    assert all(place == pytest.approx(after[0], abs=0.005) for place in after)
    spot_before = ((0.25 - before[0]) / before[2], (0.3 - before[1]) / before[3])
    spot_after = ((0.25 - after[0][0]) / after[0][2], (0.3 - after[0][1]) / after[0][3])
    assert spot_after == pytest.approx(spot_before, abs=0.005)
    # Zoomed into the upper left quarter, all panes show its colour nearly everywhere.
    assert all(near(colour_at(page, number, 0.3, 0.3), RED) for number in range(5))

    for _ in range(30):
        page.mouse.wheel(0, 120)
    assert tuple(places(page)[0]) == pytest.approx(before, abs=0.005)


def test_a_drag_pans_every_pane_and_stops_at_the_edge(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    page = sign_in(reviewer)
    open_task(page, task)
    fitted = places(page)[0]
    for _ in range(6):
        tool(page, "in").click()
    before = places(page)[0]
    box = frame(page, 1)
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 120, steps=4)
    page.mouse.up()
    after = places(page)
    assert after[3][0] - before[0] == pytest.approx(30 / box["width"], abs=0.01)
    assert after[3][1] - before[1] == pytest.approx(20 / box["height"], abs=0.01)

    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 2000, box["y"] + 2000, steps=4)
    page.mouse.up()
    assert places(page)[0][:2] == pytest.approx(fitted[:2], abs=0.01)  # no further than where the corner fits
    assert near(colour_at(page, 0, 0.2, 0.1), RED)


def test_a_double_click_goes_to_one_to_one_and_back(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters((1200, 1200)), *[quarters((1200, 1200))] * 4)
    page = sign_in(reviewer)
    open_task(page, task)
    fitted = page.locator(".viewer-zoom").text_content()
    box = frame(page, 4)
    page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 0.25 * box["height"])
    expect(page.locator(".viewer-zoom")).to_have_text("100 %")
    page.mouse.dblclick(box["x"] + 40, box["y"] + 40)
    expect(page.locator(".viewer-zoom")).to_have_text(fitted or "")


@pytest.mark.parametrize("ratio", [1, 2])
def test_one_to_one_shows_every_pixel_as_one_of_the_screen(
    sign_in: SignIn, project: Project, reviewer: Person, ratio: int
) -> None:
    # Every pixel differs from its neighbours: any scaling or half a pixel's shift would blur it.
    size = (1201, 1199)
    noise = Pillow.merge("RGB", [Pillow.effect_noise(size, 120) for _ in range(3)])
    task = make_task(project, noise, *[noise.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)] * 4)
    page = sign_in(reviewer, device_scale_factor=ratio)
    open_task(page, task)
    tool(page, "actual").click()
    expect(page.locator(".viewer-zoom")).to_have_text("100 %")
    settle(page)
    shot = Pillow.open(io.BytesIO(page.screenshot())).convert("RGB")
    for number, drawn in ((0, noise), (3, noise.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT))):
        box = frame(page, number)
        left, top = (round(box[side] * ratio) for side in ("x", "y"))
        width, height = (round(box[side] * ratio) for side in ("width", "height"))
        place = places(page)[number]
        at = (round(-place[0] * width), round(-place[1] * height))
        painted = shot.crop((left + 20, top + 20, left + 120, top + 120))
        meant = drawn.crop((at[0] + 20, at[1] + 20, at[0] + 120, at[1] + 120))
        assert painted.tobytes() == meant.tobytes()


def test_pictures_of_other_sizes_show_the_same_spot(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters((300, 300)), quarters((900, 900)), quarters((640, 480)))
    page = sign_in(reviewer)
    open_task(page, task)
    for _ in range(9):
        tool(page, "in").click()
    box = frame(page, 0)
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 20, steps=3)
    page.mouse.up()
    # The spot in the middle of the frame, in fractions of each picture.
    middles = [((0.5 - place[0]) / place[2], (0.5 - place[1]) / place[3]) for place in places(page)]
    assert middles[1] == pytest.approx(middles[0], abs=0.005)
    assert middles[2] == pytest.approx(middles[0], abs=0.005)
    assert middles[0] != pytest.approx((0.5, 0.5), abs=0.01)


def test_pixels_stay_squares_when_seen_very_close(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters((40, 40)), *[quarters((40, 40))] * 4)
    page = sign_in(reviewer)
    open_task(page, task)  # 40 pixels in hundreds: far above 300 %
    left, right = colour_at(page, 0, 0.495, 0.25), colour_at(page, 0, 0.505, 0.25)
    assert (near(left, RED), near(right, GREEN)) == (True, True)


# ---- The original over the candidates ----


def test_flicker_shows_the_original_in_place(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), plain(BLUE), plain(WHITE), plain(GREEN), plain(RED))
    page = sign_in(reviewer)
    open_task(page, task)
    assert near(colour_at(page, 1, 0.4, 0.4), BLUE)
    flicker = tool(page, "flicker").bounding_box()
    assert flicker is not None
    page.mouse.move(flicker["x"] + 5, flicker["y"] + 5)
    page.mouse.down()
    for number in range(1, 5):
        assert near(colour_at(page, number, 0.4, 0.4), RED)
        assert near(colour_at(page, number, 0.6, 0.6), WHITE)
    expect(panes(page).nth(1).get_by_text("Original")).to_be_visible()
    page.mouse.up()
    assert near(colour_at(page, 1, 0.4, 0.4), BLUE)
    assert near(colour_at(page, 4, 0.6, 0.6), RED)


def test_difference_is_black_where_nothing_differs_and_grows_when_amplified(
    sign_in: SignIn, project: Project, reviewer: Person
) -> None:
    # B differs from the original by a little, C by a lot, and A not at all.
    original = plain((100, 100, 100))
    task = make_task(project, original, original, plain((104, 100, 98)), plain((200, 100, 100)))
    page = sign_in(reviewer)
    open_task(page, task)
    tool(page, "difference").click()
    expect(tool(page, "difference")).to_have_attribute("aria-pressed", "true")
    assert colour_at(page, 1, 0.5, 0.5) == (0, 0, 0)
    assert near(colour_at(page, 2, 0.5, 0.5), (16, 0, 8), within=1)  # four times, as it begins
    assert near(colour_at(page, 0, 0.5, 0.5), (100, 100, 100), within=1)  # the original itself stays as it is
    tool(page, "amplify").fill("20")
    assert near(colour_at(page, 2, 0.5, 0.5), (80, 0, 40), within=2)
    assert colour_at(page, 1, 0.5, 0.5) == (0, 0, 0)
    assert near(colour_at(page, 3, 0.5, 0.5), (255, 0, 0), within=1)
    tool(page, "difference").click()
    assert near(colour_at(page, 2, 0.5, 0.5), (104, 100, 98), within=1)


def test_the_swipe_divider_moves_in_all_panes_by_mouse_and_by_key(
    sign_in: SignIn, project: Project, reviewer: Person
) -> None:
    task = make_task(project, plain(RED), *[plain(BLUE)] * 4)
    page = sign_in(reviewer)
    open_task(page, task)
    expect(page.get_by_role("slider", name="Divider")).to_have_count(0)
    tool(page, "swipe").click()
    handles = page.get_by_role("slider", name="Divider")
    expect(handles).to_have_count(4)
    for number in range(1, 5):
        assert near(colour_at(page, number, 0.4, 0.5), RED)
        assert near(colour_at(page, number, 0.6, 0.5), BLUE)

    handles.nth(1).focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(handles.nth(3)).to_have_attribute("aria-valuenow", "30")
    assert near(colour_at(page, 4, 0.4, 0.5), BLUE)

    box = frame(page, 1)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    expect(handles.nth(3)).to_have_attribute("aria-valuenow", "70")
    assert near(colour_at(page, 3, 0.6, 0.5), RED)
    tool(page, "difference").click()  # one at a time
    expect(tool(page, "swipe")).to_have_attribute("aria-pressed", "false")
    expect(handles).to_have_count(0)


def test_one_pane_alone_and_stepping_through(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    page = sign_in(reviewer)
    open_task(page, task)
    small = frame(page, 2)
    page.get_by_role("button", name="Show Candidate B alone").click()
    expect(panes(page)).to_have_count(1)
    assert frame(page, 0)["width"] > 2 * small["width"]
    assert near(colour_at(page, 0, 0.5, 0.5), GREEN)
    for name in ("Candidate C", "Candidate D", "Original", "Candidate A"):
        tool(page, "next").click()
        expect(panes(page)).to_have_attribute("aria-label", name)
    tool(page, "previous").click()
    expect(panes(page)).to_have_attribute("aria-label", "Original")
    tool(page, "all").click()
    expect(panes(page)).to_have_count(5)


# ---- Large pictures, failures, many tasks ----


def test_a_large_picture_is_shown_by_its_preview_and_loaded_only_for_a_closer_look(
    sign_in: SignIn, project: Project, reviewer: Person
) -> None:
    big = (4096, 4096)
    task = make_task(project, quarters(big), *(quarters(big, (colour, *QUARTERS[1:])) for colour in QUARTERS))
    page = sign_in(reviewer)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_task(page, task)
    assert sum("/previews/" in url for url in asked) >= 4
    assert not any("/images/" in url for url in asked)
    assert near(colour_at(page, 0, 0.4, 0.4), RED)

    # While the full pictures are on their way, the preview stands in at the new size.
    held: list[Route] = []
    page.route("**/images/*", lambda route: held.append(route))
    tool(page, "actual").click()
    expect(page.locator(".viewer-zoom")).to_have_text("100 %")
    assert near(colour_at(page, 0, 0.25, 0.25), RED)
    page.wait_for_timeout(200)
    assert page.locator(".viewer-base img.here").count() == 5
    for route in held:
        route.continue_()
    expect(page.locator(".viewer-base img.here")).to_have_count(10)
    assert page.evaluate(
        "[...document.querySelectorAll('.viewer-base img.here')].filter((one) => one.naturalWidth > 4000).length === 5"
    )
    assert near(colour_at(page, 0, 0.25, 0.25), RED)

    # A drag over them is drawn in frames that are nearly all short. Two busy cores and no graphics card: a loose bound.
    page.evaluate(
        """() => {
          window.gaps = [];
          let before = performance.now();
          const frame = (now) => {
            window.gaps.push(now - before);
            before = now;
            window.watching = requestAnimationFrame(frame);
          };
          window.watching = requestAnimationFrame(frame);
        }"""
    )
    box = frame(page, 1)
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 20, steps=60)
    page.mouse.up()
    gaps = sorted(page.evaluate("() => { cancelAnimationFrame(window.watching); return window.gaps; }"))
    assert gaps[len(gaps) // 2] < 50, f"half of the frames took longer than {gaps[len(gaps) // 2]:.0f} ms"


def test_what_is_transparent_looks_the_same_from_near(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    glass = plain(WHITE, (2000, 2000))
    glass.putalpha(128)
    task = make_task(project, glass, glass)
    page = sign_in(reviewer)
    open_task(page, task)
    far = colour_at(page, 1, 0.5, 0.5)
    assert far != GREY
    tool(page, "actual").click()
    expect(page.locator(".viewer-base img:last-child.here")).to_have_count(2)
    expect(page.locator(".viewer-base img:first-child.here")).to_have_count(0)  # it would shine through
    assert near(colour_at(page, 1, 0.5, 0.5), far, within=2)


def test_a_picture_that_fails_says_so_and_can_be_tried_again(
    sign_in: SignIn, project: Project, reviewer: Person
) -> None:
    task = make_task(project, quarters(), plain(RED), plain(GREEN))
    broken = task.sample.candidates.get(letter="B").image
    page = sign_in(reviewer)
    page.route(f"**/images/{broken.sha256}", lambda route: route.abort())
    open_task(page, task)
    pane = page.get_by_role("group", name="Candidate B")
    expect(pane.get_by_text("could not be loaded")).to_be_visible()
    assert near(colour_at(page, 1, 0.5, 0.5), RED)
    pane.get_by_role("button", name="Try again").click()
    expect(pane.get_by_text("could not be loaded")).to_be_visible()
    page.unroute(f"**/images/{broken.sha256}")
    pane.get_by_role("button", name="Try again").click()
    expect(pane.get_by_text("could not be loaded")).to_be_hidden()
    assert near(colour_at(page, 2, 0.5, 0.5), GREEN)


def test_a_picture_that_was_taken_down_says_so(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), plain(RED), plain(GREEN))
    Image.objects.filter(pk=task.sample.candidates.get(letter="A").image_id).update(withdrawn_at="2026-01-01T00:00Z")
    page = sign_in(reviewer)
    open_task(page, task)
    pane = page.get_by_role("group", name="Candidate A")
    expect(pane.get_by_text("This image was taken down.")).to_be_visible()
    expect(pane.get_by_role("button", name="Try again")).to_be_hidden()
    assert near(colour_at(page, 2, 0.5, 0.5), GREEN)


def test_many_tasks_leave_nothing_behind(own_viewer: Callable[..., ViewerPage], project: Project) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    viewer = own_viewer(task)
    count = "document.querySelectorAll('*').length"
    kinds = [pictures(task), pictures(task)[:3], list(reversed(pictures(task)))]
    counts = viewer.call(
        f"""const counts = [];
        for (let number = 0; number < 200; number++) {{
          const some = value[number % 3];
          viewer.preload(value[(number + 1) % 3]);
          await viewer.show(some, {{ marks: [{{ letter: "A", x: .5, y: .5 }}] }});
          counts.push({count});
        }}
        return counts;""",
        kinds,
    )
    assert len(counts) == 200
    assert len(set(counts)) == 1
    assert viewer.call("return viewer.marks.length") == 1


def test_the_next_task_starts_afresh_and_never_shows_the_one_before(
    own_viewer: Callable[..., ViewerPage], project: Project
) -> None:
    first = make_task(project, quarters(), plain(RED), plain(RED))
    second = make_task(project, plain(WHITE), plain(GREEN), plain(GREEN))
    viewer = own_viewer(first)
    viewer.call("viewer.difference(true); viewer.zoomBy(3); viewer.focus('B')")
    held: list[Route] = []
    viewer.page.route("**/images/*", lambda route: held.append(route))
    viewer.call("window.shown = viewer.show(value)", pictures(second))
    viewer.page.wait_for_timeout(100)
    assert colour_at(viewer.page, 1, 0.5, 0.25) == GREY
    for route in held:
        route.continue_()
    viewer.call("await window.shown")
    assert near(colour_at(viewer.page, 1, 0.5, 0.5), GREEN)
    detail = viewer.call("return events.filter(([name]) => name === 'viewchange').at(-1)[1]")
    assert (detail["difference"], detail["focus"], viewer.call("return viewer.view.zoom")) == (False, None, 1)

    # The next dimension of the same sample goes on where one was looking.
    viewer.call("viewer.zoomBy(3); await viewer.show(value)", pictures(second))
    assert viewer.call("return viewer.view.zoom") == pytest.approx(3)


def test_what_is_fetched_ahead_is_not_fetched_again_and_is_bounded(
    own_viewer: Callable[..., ViewerPage], project: Project
) -> None:
    task = make_task(project, quarters(), plain(RED), plain(RED))
    later = [make_task(project, plain((number, 0, 0)), plain((number, 9, 0))) for number in range(3)]
    viewer = own_viewer(task)
    asked: list[str] = []
    viewer.page.on("request", lambda request: asked.append(request.url))
    viewer.call("for (const some of value) viewer.preload(some)", [pictures(one) for one in later])
    viewer.page.wait_for_load_state("networkidle")
    assert len(asked) == 6
    viewer.call("for (const some of value) viewer.preload(some)", [pictures(one) for one in later])
    viewer.call("await viewer.show(value)", pictures(later[0]))
    assert len(asked) == 6
    assert near(colour_at(viewer.page, 1, 0.5, 0.5), (0, 9, 0))


# ---- Choosing and marking ----


def test_candidates_are_chosen_by_their_letter(own_viewer: Callable[..., ViewerPage], project: Project) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    viewer = own_viewer(task)
    button = viewer.page.get_by_role("button", name="C is acceptable")
    button.click()
    assert viewer.call("return events.filter(([name]) => name === 'choose')") == [["choose", {"letter": "C"}]]
    expect(button).to_have_attribute("aria-pressed", "false")  # the page decides
    viewer.call("viewer.setChosen(['A', 'C'])")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(viewer.page.locator(".viewer-pane.chosen")).to_have_count(2)


def test_marks_keep_their_place_in_the_picture(own_viewer: Callable[..., ViewerPage], project: Project) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    viewer = own_viewer(task)
    page = viewer.page
    viewer.call("viewer.zoomBy(4); viewer.panBy(-60, 30); viewer.markMode('point')")
    box, place = frame(page, 2), places(page)[2]
    page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"])
    viewer.call("viewer.markMode('box')")
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"], steps=5)
    page.mouse.up()
    assert places(page)[2] == pytest.approx(place)  # drawing does not pan

    def inside(x: float, y: float) -> tuple[float, float]:
        return (x - place[0]) / place[2], (y - place[1]) / place[3]

    point, drawn = viewer.call("return viewer.marks")
    assert (point["letter"], set(point)) == ("B", {"letter", "x", "y"})
    assert (point["x"], point["y"]) == pytest.approx(inside(0.7, 0.4), abs=0.01)
    assert (drawn["x"], drawn["y"]) == pytest.approx(inside(0.2, 0.6), abs=0.01)
    assert (drawn["x"] + drawn["w"], drawn["y"] + drawn["h"]) == pytest.approx(inside(0.5, 0.9), abs=0.01)

    # They are drawn where they belong after the view changed, and come back as they went.
    viewer.call("viewer.markMode(null); viewer.fit()")
    fitted = places(page)[2]
    tags = page.locator(".viewer-tag")
    tag = tags.first.bounding_box()
    assert tag is not None
    across = (tag["x"] + tag["width"] / 2 - box["x"]) / box["width"]
    assert across == pytest.approx(fitted[0] + point["x"] * fitted[2], abs=0.01)
    viewer.call("await viewer.show(value[0], { marks: value[1] })", [pictures(task), [point, drawn | {"note": "n"}]])
    assert viewer.call("return viewer.marks") == [point, drawn | {"note": "n"}]

    before = viewer.call("return events.filter(([name]) => name === 'markschange').length")
    page.get_by_role("button", name="Remove mark 1 on B").focus()
    page.keyboard.press("Enter")
    tags.first.click()
    assert viewer.call("return viewer.marks") == []
    assert viewer.call("return events.filter(([name]) => name === 'markschange').length") == before + 2
    expect(page.locator(".viewer-mark")).to_have_count(0)


def test_only_candidates_take_marks_and_only_inside(own_viewer: Callable[..., ViewerPage], project: Project) -> None:
    viewer = own_viewer(make_task(project, quarters(), *[quarters()] * 4))
    viewer.call("viewer.markMode('point')")
    for number, x in ((0, 0.5), (1, 0.01)):
        box = frame(viewer.page, number)
        viewer.page.mouse.click(box["x"] + x * box["width"], box["y"] + 0.5 * box["height"])
    assert viewer.call("return viewer.marks") == []
    box = frame(viewer.page, 1)
    viewer.page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    assert viewer.call("return viewer.marks") == [{"letter": "A", "x": 0.5, "y": 0.5}]


# ---- The pages around it ----


def test_the_adjudication_form_keeps_its_checkboxes(sign_in: SignIn, reviewer: Person) -> None:
    project = make_project(slug="tins", dimensions=["physical_shadow"], overlap=2)
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    Membership.objects.create(project=project, person=reviewer, role=Membership.Role.REVIEWER)
    annotate(task, make_member(project, username="ada"), "A")
    annotate(task, make_member(project, username="grace"), "AB")
    page = sign_in(reviewer)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"/projects/tins/disputed/{task.pk}")
    page.get_by_role("checkbox", name="A is acceptable").check()
    page.get_by_role("checkbox", name="D is acceptable").check()
    expect(page.locator(".viewer-pane.chosen")).to_have_count(2)
    tool(page, "difference").click()  # a tool submits nothing
    page.get_by_role("button", name="Decide").click()
    expect(page.get_by_text("Nothing is disputed.")).to_be_visible()
    assert Task.objects.get(pk=task.pk).resolution.answer == frozenset("AD")
    assert errors == []


def test_marks_of_answers_are_shown_on_the_pictures(sign_in: SignIn, reviewer: Person, project: Project) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    marks = [{"letter": "B", "x": 0.25, "y": 0.75}, {"letter": "C", "x": 0.5, "y": 0.5, "w": 0.25, "h": 0.25}]
    annotate(task, make_member(project, username="ada"), "A", marks=marks)
    page = sign_in(reviewer)
    open_task(page, task)
    point = page.get_by_role("group", name="Candidate B").locator(".viewer-tag")
    expect(point).to_have_text("1")
    box, place, tag = frame(page, 2), places(page)[2], point.bounding_box()
    assert tag is not None
    across = (tag["x"] + tag["width"] / 2 - box["x"]) / box["width"]
    down = (tag["y"] + tag["height"] / 2 - box["y"]) / box["height"]
    assert (across, down) == pytest.approx((place[0] + place[2] / 4, place[1] + place[3] * 3 / 4), abs=0.01)
    expect(page.get_by_role("group", name="Candidate C").locator(".viewer-mark.box")).to_have_count(1)
    expect(page.locator(".vote li").nth(1)).to_have_attribute("data-number", "2")
    page.mouse.click(tag["x"] + 10, tag["y"] + 10)  # somebody else's: nothing happens
    expect(page.get_by_role("button", name="Remove mark")).to_have_count(0)
    expect(page.locator(".viewer-mark")).to_have_count(2)


def test_without_javascript_the_panes_are_plain(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    page = sign_in(reviewer, java_script_enabled=False)
    page.goto(f"/projects/cans/tasks/{task.pk}")
    expect(page.get_by_role("img", name="Candidate D")).to_be_visible()
    expect(page.locator("[data-tools]")).to_be_hidden()


def test_nothing_moves_while_the_page_loads(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *(plain(colour) for colour in QUARTERS))
    page = sign_in(reviewer)
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) "
        "window.shift += entry.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    open_task(page, task)
    tool(page, "actual").click()
    tool(page, "difference").click()
    settle(page)
    assert page.evaluate("window.shift") < 0.01


def test_fingers_pan_and_pinch_on_a_narrow_screen(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    page = sign_in(reviewer, viewport={"width": 820, "height": 1180}, has_touch=True, is_mobile=True)
    open_task(page, task)
    fitted = places(page)[1]
    box = frame(page, 1)
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    touches = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        named = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": named})
        settle(page)

    def apart(distance: float) -> tuple[tuple[float, float], tuple[float, float]]:
        return (middle[0] - distance, middle[1]), (middle[0] + distance, middle[1])

    touch("touchStart", *apart(20))
    for distance in (30, 40, 50, 60):
        touch("touchMove", *apart(distance))
    touch("touchEnd")
    zoomed = places(page)
    assert zoomed[1][2] / fitted[2] == pytest.approx(3, rel=0.1)
    assert zoomed[4] == pytest.approx(zoomed[1], abs=0.005)
    assert zoomed[1][0] + zoomed[1][2] / 2 == pytest.approx(0.5, abs=0.02)  # about the spot between the fingers
    assert page.evaluate("visualViewport.scale") == 1  # the pictures, not the page

    touch("touchStart", middle)
    for step in range(1, 5):
        touch("touchMove", (middle[0] + 10 * step, middle[1] + 5 * step))
    touch("touchEnd")
    panned = places(page)
    assert panned[3][0] - zoomed[3][0] == pytest.approx(40 / box["width"], abs=0.02)
    assert panned[3][1] - zoomed[3][1] == pytest.approx(20 / box["height"], abs=0.02)
    assert page.evaluate("scrollY") == 0


def test_panes_can_be_reached_and_seen_by_keyboard(sign_in: SignIn, project: Project, reviewer: Person) -> None:
    task = make_task(project, quarters(), *[quarters()] * 4)
    page = sign_in(reviewer)
    open_task(page, task)
    page.get_by_role("button", name="Show Original alone").focus()
    page.keyboard.press("Tab")
    focused: ElementHandle | None = page.evaluate_handle("document.activeElement").as_element()
    assert focused is not None
    assert focused.get_attribute("aria-label") == "Candidate A"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
