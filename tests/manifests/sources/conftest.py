"""A site that the tests of fetching fetch from."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def _server(http_site):
    server = http_site.Site()
    yield server
    server.stop()


@pytest.fixture
def site(_server, forge):
    _server.reset()
    _server.images["/a.jpg"] = forge.encode(forge.image(64, 48), "JPEG")
    return _server
