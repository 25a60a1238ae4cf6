import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.uris import path_of, uri_of

names = st.binary(min_size=1, max_size=20).filter(
    lambda raw: b"\0" not in raw and b"/" not in raw and raw not in (b".", b"..")
)


@given(st.lists(names, min_size=1, max_size=4))
def test_any_file_name_comes_back_from_its_uri(parts: list[bytes]) -> None:
    relative = Path(os.fsdecode(b"/".join(parts)))
    uri = uri_of(relative)
    uri.encode("utf-8")
    assert path_of(Path("/root"), uri) == Path("/root") / relative


def test_only_percent_and_broken_bytes_are_encoded() -> None:
    assert uri_of("a b/ü#?.jpg") == "a b/ü#?.jpg"
    assert uri_of("100%.jpg") == "100%25.jpg"
    assert uri_of(os.fsdecode(b"\xff.jpg")) == "%FF.jpg"


@pytest.mark.parametrize("uri", ["../secret", "a/../../b", "/etc/passwd", "%2E%2E/b", "%2Fetc"])
def test_a_uri_that_leaves_the_root_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="is outside"):
        path_of(Path("/root"), uri)
