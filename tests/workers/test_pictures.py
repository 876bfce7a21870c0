"""Images as a model gets them: as stored where that will do, else a rendition; inside the request or by address."""

from __future__ import annotations

import base64
import io

import httpx2
import pytest
from django.test import Client
from django.utils import timezone
from PIL import Image as Pillow
from pytest_django.fixtures import Settings
from pytest_django.live_server_helper import LiveServer

from annotation_server.runs.models import Endpoint
from annotation_server.samples import signed_links, storage
from annotation_server.samples.models import Image
from annotation_server.samples.signed_links import SignedLink
from annotation_workers.model_client import EndpointUnusable
from annotation_workers.pictures import PictureMissing, Pictures
from tests.workers.scenes import stored_picture

pytestmark = pytest.mark.django_db


def pictures(side: int, images_as: str = Endpoint.ImagesAs.DATA_URI) -> Pictures:
    return Pictures(Endpoint(name="fake", image_side=side, images_as=images_as))


def opened(uri: str) -> Pillow.Image:
    return Pillow.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_small_upright_picture_goes_out_as_it_is_stored() -> None:
    image = stored_picture(77, (40, 30))
    with storage.open_stored(image.path) as stored:
        assert pictures(64).urls([image])[0] == f"data:image/jpeg;base64,{base64.b64encode(stored.read()).decode()}"


def test_a_large_picture_shrinks_to_the_endpoints_side() -> None:
    assert opened(pictures(64).urls([stored_picture(77, (400, 300))])[0]).size == (64, 48)


def test_a_small_picture_that_lies_on_its_side_is_turned_upright() -> None:
    shown = opened(pictures(64).urls([stored_picture(77, (40, 30), orientation=6)])[0])
    assert shown.size == (30, 40)
    assert shown.getexif().get(0x0112, 1) == 1


def test_it_is_the_pages_rendition_made_once_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    image = stored_picture(78, (400, 300))
    first = pictures(64).urls([image])[0]
    kept = storage.local_path(f"renditions/64/{image.sha256[:2]}/{image.sha256}.jpg")
    assert opened(first).tobytes() == Pillow.open(kept).tobytes()
    monkeypatch.setattr("annotation_server.samples.renditions._scaled", _not_again)
    assert pictures(64).urls([image])[0] == first


def test_a_picture_is_prepared_once_and_missing_bytes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    image = stored_picture(77)
    ready = pictures(64)
    first = ready.urls([image])[0]
    monkeypatch.setattr("annotation_server.samples.storage.open_stored", _gone)
    assert ready.urls([image])[0] is first
    with pytest.raises(PictureMissing, match="cannot be read"):
        pictures(64).urls([image])[0]


def test_a_model_fetches_an_image_by_its_address_without_signing_in(
    live_server: LiveServer, settings: Settings
) -> None:
    settings.PUBLIC_URL = live_server.url
    image = stored_picture(79, (400, 300))
    address = pictures(64, Endpoint.ImagesAs.URL).urls([image])[0]
    assert address.startswith(f"{live_server.url}/signed-images/")
    answer = httpx2.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert Pillow.open(io.BytesIO(answer.content)).size == (64, 48)
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers


def test_an_address_is_for_one_image_at_one_size_for_an_hour(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL = "https://winnow.example"
    image, other = stored_picture(80), stored_picture(180)
    address = pictures(64, Endpoint.ImagesAs.URL).urls([image])[0].removeprefix("https://winnow.example")
    assert client.get(address).status_code == 200

    of_other = signed_links.address(SignedLink(other.sha256, 64)).rpartition("/")[2]
    mixed = of_other.partition(":")[0] + ":" + address.rpartition("/")[2].partition(":")[2]
    assert client.get(f"/signed-images/{mixed}").status_code == 404

    assert client.get(address).status_code == 200
    monkeypatch.setattr(signed_links, "LASTS_SECONDS", -1)
    assert client.get(address).status_code == 404


def test_an_image_that_was_taken_down_is_no_longer_fetched(client: Client, settings: Settings) -> None:
    settings.PUBLIC_URL = "https://winnow.example"
    image = stored_picture(82)
    address = pictures(64, Endpoint.ImagesAs.URL).urls([image])[0].removeprefix("https://winnow.example")
    Image.objects.filter(pk=image.pk).update(withdrawn_at=timezone.now())
    assert client.get(address).status_code == 404


def test_without_a_public_address_images_cannot_go_by_address(settings: Settings) -> None:
    settings.PUBLIC_URL = ""
    with pytest.raises(EndpointUnusable, match="PUBLIC_URL is not set"):
        pictures(64, Endpoint.ImagesAs.URL)


def _gone(name: str) -> object:
    raise FileNotFoundError(name)


def _not_again(*args: object) -> object:
    raise AssertionError("it is kept: nobody makes it again")
