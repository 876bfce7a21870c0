"""Previews of stored images: upright, see-through where the image is, made once, gone with it, for members only."""

from __future__ import annotations

import hashlib
import io

import pytest
from django.test import Client
from django.utils import timezone
from PIL import Image as Pillow

from annotation_server.projects.models import Project
from annotation_server.samples import storage
from annotation_server.samples.models import Image
from annotation_server.samples.renditions import PREVIEW_SIDE, has_preview, rendition
from tests.server.factories import make_image, make_member, make_project, make_sample
from tests.server.pictures import encoded

pytestmark = pytest.mark.django_db

RED, BLUE = (220, 30, 30), (30, 30, 220)


def stored(content: bytes, size: tuple[int, int], extension: str) -> Image:
    sha256 = hashlib.sha256(content).hexdigest()
    image = make_image(sha256=sha256, extension=extension, width=size[0], height=size[1], size=len(content))
    storage.put(image.path, content)
    return image


def two_colours(size: tuple[int, int] = (2000, 1000), mode: str = "RGB") -> Pillow.Image:
    """The left half red, the right half blue."""
    drawn = Pillow.new(mode, size, RED)
    drawn.paste(BLUE, (size[0] // 2, 0, *size))
    return drawn


def near(pixel: object, colour: tuple[int, ...]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(one - other) < 12 for one, other in zip(pixel, colour, strict=True))


@pytest.fixture
def image() -> Image:
    return stored(encoded("JPEG", two_colours()), (2000, 1000), "jpg")


@pytest.fixture
def project(image: Image) -> Project:
    project = make_project()
    make_sample(project, original=image)
    return project


def test_it_works(client: Client, project: Project, image: Image) -> None:
    client.force_login(make_member(project))
    response = client.get(f"/previews/{image.sha256}")
    shown = Pillow.open(io.BytesIO(response.content))
    assert (response["Content-Type"], shown.format, shown.size) == ("image/jpeg", "JPEG", (PREVIEW_SIDE, 512))
    assert near(shown.getpixel((200, 256)), RED)
    assert near(shown.getpixel((800, 256)), BLUE)
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response["Cache-Control"] == "private, max-age=31536000, immutable"


def test_a_turned_photograph_stands_upright() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter: what was stored as the left side is shown on top
    image = stored(encoded("JPEG", two_colours(), exif=exif), (1000, 2000), "jpg")
    shown = Pillow.open(io.BytesIO(rendition(image, PREVIEW_SIDE)[1]))
    assert shown.size == (512, PREVIEW_SIDE)
    assert near(shown.getpixel((256, 200)), RED)
    assert near(shown.getpixel((256, 800)), BLUE)
    assert shown.getexif().get(0x0112, 1) == 1  # else a browser would turn it once more


def test_what_is_transparent_stays_so() -> None:
    drawn = two_colours(mode="RGBA")
    drawn.putalpha(Pillow.linear_gradient("L").resize(drawn.size))
    content_type, content = rendition(stored(encoded("PNG", drawn), drawn.size, "png"), PREVIEW_SIDE)
    shown = Pillow.open(io.BytesIO(content))
    assert (content_type, shown.format, shown.mode) == ("image/png", "PNG", "RGBA")
    opacity = shown.getchannel("A").resize((1, 4)).tobytes()
    assert opacity[0] < 60 < 190 < opacity[3]


def test_a_palette_with_a_transparent_colour_stays_so() -> None:
    drawn = two_colours().quantize(2)
    see_through = drawn.getpixel((10, 10))
    content_type, content = rendition(
        stored(encoded("PNG", drawn, transparency=see_through), drawn.size, "png"), PREVIEW_SIDE
    )
    shown = Pillow.open(io.BytesIO(content))
    assert content_type == "image/png"
    assert (shown.getchannel("A").getpixel((100, 256)), shown.getchannel("A").getpixel((900, 256))) == (0, 255)


def test_the_colour_profile_stays(image: Image) -> None:
    profile = b"a profile nobody reads here"
    with_profile = stored(encoded("JPEG", two_colours(), icc_profile=profile), (2000, 1000), "jpg")
    assert Pillow.open(io.BytesIO(rendition(with_profile, 64)[1])).info["icc_profile"] == profile
    assert "icc_profile" not in Pillow.open(io.BytesIO(rendition(image, 64)[1])).info


def test_it_is_made_once_and_kept(image: Image) -> None:
    first = rendition(image, PREVIEW_SIDE)
    kept = f"renditions/{PREVIEW_SIDE}/{image.sha256[:2]}/{image.sha256}.jpg"
    assert storage.local_path(kept).read_bytes() == first[1]
    written = storage.local_path(kept).stat().st_mtime_ns
    storage.delete(image.path)  # what is kept needs the image no more
    assert rendition(image, PREVIEW_SIDE) == first
    assert storage.local_path(kept).stat().st_mtime_ns == written


def test_a_small_image_is_never_enlarged() -> None:
    image = stored(encoded("PNG", two_colours((80, 40))), (80, 40), "png")
    assert not has_preview(image)
    assert Pillow.open(io.BytesIO(rendition(image, PREVIEW_SIDE)[1])).size == (80, 40)


@pytest.mark.parametrize(("size", "worth_while"), [((1280, 900), False), ((900, 1281), True), ((4096, 4096), True)])
def test_a_preview_is_offered_where_it_saves_something(size: tuple[int, int], worth_while: bool) -> None:
    assert has_preview(make_image(width=size[0], height=size[1])) is worth_while


def test_gone_bytes_are_not_found(client: Client) -> None:
    project = make_project()
    image = stored(encoded("PNG", two_colours((1300, 20))), (1300, 20), "png")
    make_sample(project, original=image)
    client.force_login(make_member(project))
    storage.delete(image.path)
    assert client.get(f"/previews/{image.sha256}").status_code == 404
    assert client.get("/previews/nonsense").status_code == 404


def test_an_image_that_was_taken_down_has_no_preview(client: Client, project: Project, image: Image) -> None:
    client.force_login(make_member(project))
    assert client.get(f"/previews/{image.sha256}").status_code == 200
    Image.objects.filter(pk=image.pk).update(withdrawn_at=timezone.now())
    assert client.get(f"/previews/{image.sha256}").status_code == 404


def test_a_stranger_gets_nothing(client: Client, project: Project, image: Image) -> None:
    client.force_login(make_member(make_project()))
    assert client.get(f"/previews/{image.sha256}").status_code == 404
    client.logout()
    assert client.get(f"/previews/{image.sha256}").status_code == 302
