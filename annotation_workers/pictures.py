"""Images as a model gets them: upright, at most so many pixels long, inside the request or as a signed address.

Not here: making them small and keeping them so (annotation_server/samples/renditions.py).
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from django.conf import settings

from annotation_server.runs.models import Endpoint
from annotation_server.samples import signed_links
from annotation_server.samples.models import Image
from annotation_server.samples.renditions import fitting
from annotation_workers.model_client import EndpointUnusable

_KEPT = 64
"""The four tasks of a sample follow one another: a dozen samples' images in memory are plenty."""
_RENEWED_AFTER = signed_links.LASTS_SECONDS / 2
"""One address for as long as it is good: an endpoint that caches what it has read knows an image by its address."""


class PictureMissing(Exception):
    """An image's bytes are gone, or can no longer be read; the message is one line."""


class Pictures:
    """Images for one endpoint's messages. May be asked from several threads."""

    def __init__(self, endpoint: Endpoint, *, by_address: bool | None = None) -> None:
        """`by_address`: other than the endpoint has it."""
        self._side = endpoint.image_side
        self._by_address = endpoint.images_as == Endpoint.ImagesAs.URL if by_address is None else by_address
        if self._by_address and not settings.PUBLIC_URL:
            raise EndpointUnusable(
                f"endpoint {endpoint.name} fetches its images, and PUBLIC_URL is not set where the workers run"
            )
        self._ready: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._lock = Lock()

    def ready(self, images: Sequence[Image]) -> list[str] | None:
        """They, where nothing has to be read or made small for it: then it takes no time."""
        found = [self._kept(image) for image in images]
        return found if all(found) else None

    def urls(self, images: Sequence[Image]) -> list[str]:
        """Images for a message, each as a data URI or an address. Raises PictureMissing."""
        return [self._kept(image) or self._make(image) for image in images]

    def _kept(self, image: Image) -> str:
        with self._lock:
            ready, made_at = self._ready.get(image.sha256, ("", 0.0))
            if not ready or (self._by_address and time.monotonic() - made_at >= _RENEWED_AFTER):
                return ""
            self._ready.move_to_end(image.sha256)
            return ready

    def _make(self, image: Image) -> str:
        url = self._prepare(image)
        with self._lock:
            self._ready[image.sha256] = url, time.monotonic()
            while len(self._ready) > _KEPT:
                self._ready.popitem(last=False)
        return url

    def _prepare(self, image: Image) -> str:
        if image.withdrawn_at is not None:
            raise PictureMissing(f"image {image} was withdrawn")
        try:
            # By address, too: it is then made before the endpoint asks for it, and known to be there.
            content_type, content = fitting(image, self._side)
        except OSError as error:
            raise PictureMissing(f"image {image.path} cannot be read: {error}") from None
        if self._by_address:
            return signed_links.address(signed_links.SignedLink(image.sha256, self._side))
        return data_uri(content_type, content)


def data_uri(content_type: str, content: bytes) -> str:
    """A picture inside a request."""
    return f"data:{content_type};base64,{base64.b64encode(content).decode()}"
