"""Images with a patch and a copy, and a chain of manifests of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uhr.base.files import sha256_file
from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report
from uhr.manifests.schema import patch_id, sample_id
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest

Make = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(forge: Any, tmp_path: Path) -> list[dict[str, Any]]:
    """Six images on disk; b.jpg has a patch, and c.jpg has the same bytes as b.jpg."""
    rows = []
    for number, name in enumerate("abcdef"):
        file = tmp_path / "source" / f"{name}.jpg"
        file.parent.mkdir(exist_ok=True)
        seed = 1 if name == "c" else number
        file.write_bytes(forge.encode(forge.image(64, 48, seed=seed), "JPEG"))
        facts = {"format": "JPEG", "width": 64, "height": 48, "content_hash": sha256_file(file)}
        facts |= {"uri": file.name, "sample_id": sample_id(file.name), "status": "kept", "caption": name}
        facts |= {"author": "A" if name == "e" else "B", "source_url": f"https://example.org/{name}"}
        facts["file_size"] = file.stat().st_size
        rows.append(facts)
        if name == "b":
            box = (0, 0, 32, 32)
            patch = {"sample_id": patch_id(facts["sample_id"], box), "parent_id": facts["sample_id"]}
            rows.append(facts | patch | {"box": list(box), "width": 32, "height": 32})
    return rows


@pytest.fixture
def chain(make: Make, rows: list[dict[str, Any]], tmp_path: Path) -> dict[str, Manifest]:
    """A manifest with a report, a slice with its pixels, one by reference of that, and one of two others."""
    top = make(tmp_path / "set", rows)
    write_report(top, top.path / "report.html")
    stored = slice_manifest(top, tmp_path / "stored", SliceOptions(materialise="pixels"))
    inner = slice_manifest(
        stored,
        tmp_path / "inner",
        SliceOptions(where="uri < 'f'", split={"x": 0.5, "y": 0.5}, materialise="none"),
    )
    other = slice_manifest(stored, tmp_path / "other", SliceOptions(where="uri > 'd'"))
    return {"set": top, "stored": stored, "inner": inner, "other": other}
