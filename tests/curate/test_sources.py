"""The source of a run, and its place relative to OUT."""

from __future__ import annotations

import pytest

from uhr.base.errors import UserError
from uhr.curate.sources import check_no_overlap
from uhr.manifests.sources.folder import Folder


def test_out_and_source_may_not_be_inside_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for source, out in (("a", "a"), ("a", "a/out"), ("a/b", "a"), ("a", "link/out"), ("link", "a/x")):
        with pytest.raises(UserError, match="is inside"):
            check_no_overlap(Folder.at(tmp_path / source), tmp_path / out)
    check_no_overlap(Folder.at(tmp_path / "a"), tmp_path / "ab")
