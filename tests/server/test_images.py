"""A received picture: verified, bounded, without personal metadata, its pixels untouched."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageOps, PngImagePlugin

from annotation_server.samples.images import CleanImage, ImageRefused, clean
from tests.server.pictures import encoded, picture, real_data

FORMS = ("JPEG", "PNG", "WEBP")
SECRET = b"Mette Musterfrau, 55.6761 N"


def cleaned(received: bytes) -> CleanImage:
    return clean(received, max_pixels=1_000_000)


def upright(content: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content)))


def same_pixels(one: bytes, other: bytes) -> bool:
    first, second = upright(one), upright(other)
    return (
        first.size == second.size and first.mode == second.mode and not ImageChops.difference(first, second).getbbox()
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def secret_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = SECRET.decode()  # Artist
    exif.get_ifd(0x8825)[2] = (55.0, 40.0, 34.0)  # where it was taken
    return exif


def with_secrets(form: str, orientation: int = 1) -> bytes:
    options: dict[str, Any] = {"exif": secret_exif(orientation)}
    if form == "JPEG":
        options |= {"comment": SECRET, "xmp": SECRET}
    if form == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Author", SECRET.decode())
        texts.add_itxt("Description", SECRET.decode())
        options["pnginfo"] = texts
    if form == "WEBP":
        options |= {"xmp": SECRET, "lossless": True}
    return encoded(form, **options)


@pytest.mark.parametrize("form", FORMS)
def test_it_works(form: str) -> None:
    received = with_secrets(form, orientation=6)
    assert SECRET in received

    image = cleaned(received)

    assert SECRET not in image.content
    assert same_pixels(received, image.content)
    assert (image.width, image.height) == (6, 8)  # a quarter turn of 8 × 6
    assert image.extension == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[form]
    assert image.sha256 == hashlib.sha256(image.content).hexdigest()
    assert image.source_sha256 == hashlib.sha256(received).hexdigest()
    assert image.path == f"images/{image.sha256[:2]}/{image.sha256}.{image.extension}"


@given(
    form=st.sampled_from(FORMS),
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
@settings(deadline=None, max_examples=60)
def test_pixels_and_orientation_survive_and_cleaning_twice_changes_nothing(
    form: str, orientation: int, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    received = encoded(form, picture(colour, size), exif=secret_exif(orientation))

    image = cleaned(received)

    assert SECRET not in image.content
    assert same_pixels(received, image.content)
    assert (image.width, image.height) == upright(received).size
    assert dict(Image.open(io.BytesIO(image.content)).getexif()) == ({0x0112: orientation} if orientation > 1 else {})
    assert cleaned(image.content).content == image.content


@pytest.mark.parametrize("form", FORMS)
def test_the_colour_profile_stays(form: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    image = cleaned(encoded(form, icc_profile=profile, exif=secret_exif()))

    assert Image.open(io.BytesIO(image.content)).info["icc_profile"] == profile


def test_progressive_and_four_colour_jpegs_stay_what_they_are() -> None:
    noise = Image.effect_noise((64, 64), 60)
    for received in (
        encoded("JPEG", noise.convert("RGB"), progressive=True, quality=30),
        encoded("JPEG", noise.convert("CMYK")),
        encoded("JPEG", noise, restart_marker_blocks=2),
    ):
        assert same_pixels(received, cleaned(received).content)


def test_thumbnails_and_what_follows_the_image_are_dropped() -> None:
    jfif_with_thumbnail = encoded("JPEG")
    thumbnail = struct.pack(">BBH", 0xFF, 0xE0, 16 + 3) + b"JFIF\0\1\1\0\0\1\0\1\1\1" + b"\xfa\xfb\xfc"
    received = jfif_with_thumbnail[:2] + thumbnail + jfif_with_thumbnail[20:] + b"a video" + SECRET

    image = cleaned(received)

    assert same_pixels(received, image.content)
    assert image.content.endswith(b"\xff\xd9")
    assert b"\xfa\xfb\xfc" not in image.content[:40]


def test_the_name_and_declared_type_are_never_asked() -> None:
    assert cleaned(encoded("WEBP")).extension == "webp"


@given(form=st.sampled_from(FORMS), kept=st.floats(0, 0.999))
@settings(deadline=None, max_examples=80)
def test_it_refuses_a_truncated_image(form: str, kept: float) -> None:
    whole = encoded(form, Image.effect_noise((40, 40), 50).convert("RGB"))

    with pytest.raises(ImageRefused):
        cleaned(whole[: int(len(whole) * kept)])


def test_a_truncated_jpeg_is_told_so() -> None:
    with pytest.raises(ImageRefused, match="truncated"):
        cleaned(encoded("JPEG")[:-10])


def test_pixels_that_end_early_in_a_whole_file_are_refused() -> None:
    def cut_pixels(whole: bytes) -> bytes:
        start = whole.index(b"IDAT")
        length = int.from_bytes(whole[start - 4 : start], "big")
        return (
            whole[: start - 4]
            + png_chunk(b"IDAT", whole[start + 4 : start + 4 + length // 2])
            + png_chunk(b"IEND", b"")
        )

    whole = encoded("PNG", Image.effect_noise((40, 40), 50))

    with pytest.raises(ImageRefused, match="the PNG image cannot be decoded"):
        cleaned(cut_pixels(whole))


@given(form=st.sampled_from(FORMS), damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
@settings(deadline=None, max_examples=200)
def test_a_damaged_image_is_refused_or_read_and_never_crashes(form: str, damage: list[tuple[int, int]]) -> None:
    content = bytearray(with_secrets(form))
    for at, value in damage:
        content[at % len(content)] = value
    try:
        image = cleaned(bytes(content))
    except ImageRefused:
        return
    assert cleaned(image.content).content == image.content


@given(st.binary(max_size=200), st.sampled_from((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP")))
@settings(deadline=None)
def test_anything_else_is_refused(rest: bytes, start: bytes) -> None:
    with pytest.raises(ImageRefused):
        cleaned(start + rest)


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "expected JPEG, PNG or WebP"),
        (encoded("GIF"), "expected JPEG, PNG or WebP"),
        (encoded("PNG", save_all=True, append_images=[picture("blue")]), "animation"),
        (encoded("WEBP", save_all=True, append_images=[picture("blue")]), "animation"),
        (encoded("PNG", picture(size=(1001, 1000))), r"1001 × 1000 pixels: expected at most 1 megapixels"),
        (encoded("JPEG", picture(size=(1001, 1000))), "megapixels"),
        (encoded("WEBP", picture(size=(1001, 1000))), "megapixels"),
    ],
)
def test_it_refuses(received: bytes, why: str) -> None:
    with pytest.raises(ImageRefused, match=why):
        cleaned(received)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + png_chunk(b"IEND", b"")

    with pytest.raises(ImageRefused, match="100000 × 100000 pixels"):
        cleaned(bomb)


def test_real_pictures_keep_their_pixels() -> None:
    for path in sorted((real_data() / "groups").glob("*/*.*")):
        received = path.read_bytes()
        assert same_pixels(received, clean(received, 64_000_000).content), path
