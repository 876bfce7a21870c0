"""The containers of JPEG, PNG and WebP, taken apart and put together again without what is personal.

Kept: the coded pixels, whatever a decoder needs, the colour profile, and the orientation (as an EXIF block that holds
nothing else). Dropped: every other EXIF field, XMP, IPTC, comments, texts, dates, thumbnails, unknown blocks, and
whatever follows the image in the file (phones append videos there).
Not here: whether the pixels decode (images.py).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass


class ContainerRefused(ValueError):
    """Bytes that are not a whole JPEG, PNG or WebP still picture."""


@dataclass(frozen=True, slots=True)
class Container:
    """A cleaned file and what its headers say. Width and height are as coded: orientation is not applied to them."""

    content: bytes
    extension: str
    width: int
    height: int
    orientation: int


def read_container(received: bytes) -> Container:
    """Recognise the format by its first bytes, whatever the file was called. Raises ContainerRefused."""
    if received.startswith(b"\xff\xd8\xff"):
        return _clean_jpeg(received)
    if received.startswith(_PNG_SIGNATURE):
        return _clean_png(received)
    if received[:4] == b"RIFF" and received[8:12] == b"WEBP":
        return _clean_webp(received)
    raise ContainerRefused("not an image Winnow reads: expected JPEG, PNG or WebP content")


# JPEG: markers FF xx, most with a two-byte length; coded pixels follow SOS up to the next marker.

_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three others are tables


def _clean_jpeg(received: bytes) -> Container:
    kept = [b"\xff\xd8"]
    orientation = 1
    size: tuple[int, int] | None = None
    for marker, payload, coded in _jpeg_segments(received):
        if marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(payload[6:])
        if marker in _FRAMES:
            if len(payload) < 5:
                raise ContainerRefused("the JPEG image is damaged: its frame header is too short")
            height, width = struct.unpack(">HH", payload[1:5])
            size = (width, height)
        cleaned = _clean_jpeg_payload(marker, payload)
        if cleaned is not None:
            kept.append(struct.pack(">BBH", 0xFF, marker, len(cleaned) + 2) + cleaned + coded)
    if size is None or 0 in size:
        raise ContainerRefused("the JPEG image is damaged: it has no frame header with a size")
    if orientation != 1:
        exif = b"Exif\0\0" + _orientation_exif(orientation)
        # Right after SOI, or after JFIF, which wants to be first.
        place = 2 if len(kept) > 1 and kept[1][1] == 0xE0 else 1
        kept.insert(place, struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 2) + exif)
    return Container(b"".join([*kept, b"\xff\xd9"]), "jpg", *size, orientation)


def _jpeg_segments(received: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, payload, coded pixels after it) up to the end of the first picture. Raises where the file ends early."""
    at = 2
    while True:
        while received[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 2 > len(received):
            raise ContainerRefused("the JPEG image is truncated: the file ends before the image does")
        if received[at] != 0xFF:
            raise ContainerRefused(f"the JPEG image is damaged: expected a marker at byte {at}")
        marker = received[at + 1]
        if marker == _EOI:
            return
        if marker in _RESTARTS or marker in (_SOI, 0x00, 0x01):
            raise ContainerRefused(f"the JPEG image is damaged: unexpected marker {marker:02x} at byte {at}")
        length = int.from_bytes(received[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(received):
            raise ContainerRefused("the JPEG image is truncated: the file ends before the image does")
        payload = received[at + 4 : end]
        at = _coded_end(received, end) if marker == _SOS else end
        yield marker, payload, received[end:at]


def _coded_end(received: bytes, start: int) -> int:
    """Where the next marker after coded pixels stands. FF00 is a coded FF, FFD0 to FFD7 are restarts within."""
    at = start
    while (at := received.find(b"\xff", at)) >= 0 and at + 1 < len(received):
        if received[at + 1] != 0 and received[at + 1] not in _RESTARTS:
            return at
        at += 2
    raise ContainerRefused("the JPEG image is truncated: the file ends before the image does")


def _clean_jpeg_payload(marker: int, payload: bytes) -> bytes | None:
    """What stays of a segment, None for nothing."""
    if marker == 0xE0:
        # JFIF without its thumbnail; JFXX is nothing but one.
        return payload[:12] + b"\0\0" if payload.startswith(b"JFIF\0") and len(payload) >= 14 else None
    if marker == 0xE2:
        return payload if payload.startswith(b"ICC_PROFILE\0") else None
    if marker == 0xEE:
        return payload if payload.startswith(b"Adobe") else None  # says how the colours are coded
    if 0xE0 <= marker <= 0xEF or marker == _COM:
        return None
    return payload


# PNG: length, type, data, CRC.

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset(
    (
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"cHRM",
        b"gAMA",
        b"iCCP",
        b"sBIT",
        b"sRGB",
        b"cICP",
        b"bKGD",
        b"pHYs",
    )
)


def _clean_png(received: bytes) -> Container:
    kept: list[bytes] = []
    orientation = 1
    size: tuple[int, int] | None = None
    first_pixels: int | None = None
    for kind, data, whole in _png_chunks(received):
        if kind == b"IHDR" and len(data) == 13:
            size = struct.unpack(">II", data[:8])
        if kind == b"acTL":
            raise ContainerRefused("the PNG image is an animation: expected a still picture")
        if kind == b"eXIf":
            orientation = _exif_orientation(data)
        if kind == b"IDAT" and first_pixels is None:
            first_pixels = len(kept)
        if kind in _PNG_KEPT:
            kept.append(whole)
        elif not kind[0] & 0x20:
            raise ContainerRefused(f"the PNG image needs a chunk nobody knows: {kind!r}")
    if size is None or 0 in size or first_pixels is None:
        raise ContainerRefused("the PNG image is damaged: it has no header or no pixels")
    if orientation != 1:
        kept.insert(first_pixels, _png_chunk(b"eXIf", _orientation_exif(orientation)))
    return Container(b"".join([_PNG_SIGNATURE, *kept]), "png", *size, orientation)


def _png_chunks(received: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(type, data, the whole chunk) up to IEND. Raises where the file ends early or a checksum is wrong."""
    at = len(_PNG_SIGNATURE)
    while True:
        end = at + 12 + int.from_bytes(received[at : at + 4], "big")
        if at + 12 > len(received) or end > len(received):
            raise ContainerRefused("the PNG image is truncated: the file ends before the image does")
        kind, data = received[at + 4 : at + 8], received[at + 8 : end - 4]
        if zlib.crc32(received[at + 4 : end - 4]) != int.from_bytes(received[end - 4 : end], "big"):
            raise ContainerRefused(f"the PNG image is damaged: wrong checksum at byte {at}")
        yield kind, data, received[at:end]
        if kind == b"IEND":
            return
        at = end


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# WebP: a RIFF file of chunks, each a type, a length and data padded to an even number of bytes.

_WEBP_KEPT = frozenset((b"VP8X", b"ICCP", b"ALPH", b"VP8 ", b"VP8L"))
_WEBP_ANIMATED, _WEBP_XMP, _WEBP_EXIF = 0x02, 0x04, 0x08


def _clean_webp(received: bytes) -> Container:
    chunks = dict(_webp_chunks(received))
    header = chunks.get(b"VP8X")
    if b"ANIM" in chunks or (header and header[0] & _WEBP_ANIMATED):
        raise ContainerRefused("the WebP image is an animation: expected a still picture")
    orientation = 1
    if header:
        # Without a VP8X header no decoder looks for EXIF.
        orientation = _exif_orientation(chunks.get(b"EXIF", b"").removeprefix(b"Exif\0\0"))
        flags = header[0] & ~(_WEBP_XMP | _WEBP_EXIF) | (_WEBP_EXIF if orientation != 1 else 0)
        chunks[b"VP8X"] = bytes([flags]) + header[1:]
    kept = [(kind, data) for kind, data in chunks.items() if kind in _WEBP_KEPT]
    if orientation != 1:
        kept.append((b"EXIF", _orientation_exif(orientation)))
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for kind, d in kept)
    content = b"RIFF" + struct.pack("<I", len(body)) + body
    return Container(content, "webp", *_webp_size(chunks), orientation)


def _webp_chunks(received: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of the first chunk of each type. Raises where the file ends early."""
    end = 8 + int.from_bytes(received[4:8], "little")
    if end > len(received):
        raise ContainerRefused("the WebP image is truncated: the file ends before the image does")
    at = 12
    seen = set()
    while at + 8 <= end:
        kind, length = received[at : at + 4], int.from_bytes(received[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise ContainerRefused("the WebP image is truncated: the file ends before the image does")
        if kind not in seen:
            yield kind, received[at + 8 : at + 8 + length]
        seen.add(kind)
        at += 8 + length + length % 2


def _webp_size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    header, lossy, lossless = chunks.get(b"VP8X"), chunks.get(b"VP8 "), chunks.get(b"VP8L")
    if header and len(header) >= 10:
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if lossy and len(lossy) >= 10:
        width, height = struct.unpack("<HH", lossy[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if lossless and len(lossless) >= 5:
        bits = int.from_bytes(lossless[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ContainerRefused("the WebP image is damaged: it has no pixels")


# EXIF: a TIFF header and tables of fields; only one field of the first table matters here.

_ORIENTATION_TAG, _SHORT = 0x0112, 3


def _exif_orientation(tiff: bytes) -> int:
    """1 to 8; 1 (upright) where there is none or the block makes no sense, as viewers do."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (table,) = struct.unpack(order + "I", tiff[4:8])
    fields = tiff[table + 2 : table + 2 + 12 * 512]
    (count,) = struct.unpack(order + "H", tiff[table : table + 2].ljust(2, b"\0"))
    for at in range(0, min(12 * count, len(fields) - 11), 12):
        tag, kind, _number, value = struct.unpack(order + "HHIH", fields[at : at + 10])
        if tag == _ORIENTATION_TAG:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def _orientation_exif(orientation: int) -> bytes:
    """An EXIF block with this one field."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _ORIENTATION_TAG, _SHORT, 1, orientation, 0, 0)
