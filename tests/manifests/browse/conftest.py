"""A session over a small manifest, and the server of its page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from uhr.curate.explain import explain_row
from uhr.manifests.browse.reviews import Journal
from uhr.manifests.browse.server import BrowseServer
from uhr.manifests.browse.session import Session
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.schema import sample_id

OPTIONS = {"previews": PREVIEW_SCHEMA}


def image(number: int, width: int = 64, height: int = 48) -> bytes:
    """A JPEG whose colour depends on the number."""
    pixels = np.full((height, width, 3), (37 * number % 256, 90, 255 - 11 * number % 256), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.fixture(scope="session", name="image")
def image_fixture() -> Callable[..., bytes]:
    return image


@pytest.fixture
def open_session() -> Iterator[Callable[[Manifest], Session]]:
    """A session of a manifest; new manifests and the journal are in `into`, by default beside it. Closed at
    the end.
    """
    made: list[Session] = []

    def opened(manifest: Manifest, into: Path | None = None, **changes: Any) -> Session:
        into = into or manifest.path.parent
        file = into / f"{manifest.path.name}-reviews.jsonl"
        made.append(Session(manifest, into, Journal(file, manifest), explain_row, **changes))
        return made[-1]

    yield opened
    for session in made:
        session.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Session], BrowseServer]]:
    """A server of a session, running in a thread. Closed at the end."""
    made: list[BrowseServer] = []

    def started(session: Session) -> BrowseServer:
        made.append(BrowseServer(session))
        threading.Thread(target=made[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return made[-1]

    yield started
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture
def with_files(
    tmp_path: Path, make: Callable[..., Manifest], make_row: Callable[..., dict[str, Any]]
) -> Manifest:
    """Six rows without previews: image files, one that is no image, one that is gone, and a patch."""
    root = tmp_path / "source" / "folder"
    root.mkdir(parents=True)
    for number in (40, 41, 42):
        (root / f"{number:05d}.jpg").write_bytes(image(number, 400, 300))
    (root / "00043.jpg").write_bytes(b"no image")
    rows = [make_row(number) for number in (40, 41, 42, 43, 44)]
    patch = make_row(42, parent_id=rows[2]["sample_id"], box=[100, 50, 64, 32])
    patch["sample_id"] = sample_id("a patch")
    rows.insert(3, patch)
    return make(tmp_path / "set", rows, previews=None)
