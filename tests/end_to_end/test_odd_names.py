"""Names of files and folders are data: whatever they are, the same images give the same rows."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uhr.cli import main
from uhr.manifests.manifest import Manifest

PIPELINE = """
stages: [header, geometry, decode, exposure, exact_duplicates]
rules: {bright: luma_mean > 1, copies: dup_rank = 0}
"""

BESIDE = {"license": "All rights reserved", "author": "somebody"}

Uhr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def uhr(capfd: pytest.CaptureFixture[str]) -> Uhr:
    """A command in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments])
        return code, *capfd.readouterr()

    return call


def curate(uhr: Uhr, source: Path | str, out: Path | str) -> tuple[int, str, str]:
    pipeline = Path(__file__).with_suffix(".yaml").name
    return uhr(
        "curate",
        "run",
        Path(os.environ["UHR_TEST"]) / pipeline,
        f"--source={source}",
        f"--out={out}",
        "--workers",
        0,
    )


def is_harmless(text: str) -> bool:
    """Whether a terminal that prints the text does nothing but print it."""
    return all(
        c == "\n" or (unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c != "\u202e") for c in text
    )


def rows_without_names(manifest: Manifest) -> list[dict]:
    rows = manifest.table().drop_columns(["uri", "sample_id", "source_version", "dup_group"]).to_pylist()
    return sorted(rows, key=lambda row: row["content_hash"])


def fill(folder: Path, names: Sequence[str]) -> None:
    """An image of its own under each name, and what it says beside it."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        gray = np.random.default_rng(number).integers(40, 200, (40, 60)).astype("u1")
        with open(folder / f"{name}.png", "wb") as file:
            Image.fromarray(gray).save(file, "PNG")
        (folder / f"{name}.json").write_text(json.dumps(BESIDE))


@pytest.fixture
def plain(uhr: Uhr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The rows of two images under ordinary names."""
    monkeypatch.setenv("UHR_TEST", str(tmp_path))
    (tmp_path / "test_odd_names.yaml").write_text(PIPELINE)
    fill(tmp_path / "plain" / "in", ["a", "b"])
    assert curate(uhr, tmp_path / "plain" / "in", tmp_path / "plain" / "out")[0] == 0
    return rows_without_names(Manifest.open(tmp_path / "plain" / "out"))


ODD = [
    [b"license=cc0", b"status=failed", b"width=9999", b"content_hash=1"],
    [b"caf\xe9", b"\xff\xfe", b"100%", b"%41%2e"],
    [b"[a-z]*?", b"{a,b}", b"**", b"x.parquet"],
    [b"#1", b"~", b"$HOME", b"`id`"],
    [b"'quoted\"", b"two\nlines", b"esc\x1b[31m", b"tab\there"],
    [b"s3:", b"file:x", b"C:x", b"http:"],
    [b" space ", b"...", b"a\\nb", b"manifest.json"],
    ["\u202ereversed".encode(), "\u2028line".encode(), b"-rf", b"<b>{{ 7*7 }}"],
]
"""Names of the folder of images, of two images, and of the folder of the manifest."""

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name.strip(b"."))


@pytest.mark.parametrize("names", ODD, ids=ascii)
def test_the_whole_road_is_the_same_under_any_name(uhr, plain, tmp_path, names):
    _walk(uhr, plain, tmp_path, names)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_the_whole_road_is_the_same_under_names_that_nobody_thought_of(uhr, plain, tmp_path, names):
    _walk(uhr, plain, tmp_path, names)


def _walk(uhr: Uhr, plain: list[dict], tmp_path: Path, names: Sequence[bytes]) -> None:
    folder, first, second, out = map(os.fsdecode, names)
    place = tmp_path / f"run{len(list(tmp_path.iterdir()))}" / folder
    source, out = place / folder, place / out / "set"
    fill(source, [f"1{first}", f"2{second}"])
    code, printed, errors = curate(uhr, source, out)
    assert code == 0, errors
    assert is_harmless(printed + errors)
    manifest = Manifest.open(out)
    assert rows_without_names(manifest) == plain
    assert manifest.root == source
    # plain JSON in UTF-8, without halves of characters that other readers refuse
    text = (out / "manifest.json").read_bytes().decode()
    json.dumps(json.loads(text), ensure_ascii=False).encode()
    assert "is already finished" in curate(uhr, source, out)[1]
    _check_what_reads_it(uhr, out, source / f"1{first}.png")
    _check_slices(uhr, out, place)


def _check_what_reads_it(uhr: Uhr, out: Path, image: Path) -> None:
    for arguments in (
        ("manifest", "verify", out, "--pixels"),
        ("manifest", "show", out),
        ("manifest", "lineage", out),
    ):
        code, printed, errors = uhr(*arguments)
        assert code == 0, printed + errors
        assert is_harmless(printed + errors), arguments
        assert json.loads(uhr(*arguments, "--json")[1])
    shown_text = json.loads(uhr("curate", "explain", out, image, "--json")[1])
    assert shown_text["status"] == "kept"
    assert is_harmless(uhr("curate", "explain", out, image)[1])
    page = (out / "report.html").read_bytes().decode()
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<b>{{" not in page
    assert "<b>49" not in page
    image.unlink()
    code, printed, _ = uhr("manifest", "verify", out, "--pixels")
    assert code == 1
    assert is_harmless(printed)
    assert "is missing below" in printed


def _check_slices(uhr: Uhr, out: Path, place: Path) -> None:
    before = Path.cwd()
    os.chdir(place)
    try:
        relative = Path(os.path.relpath(out))
        code, _, errors = uhr("manifest", "slice", "--where", "luma_mean > 1", "--out=slice", "--", relative)
        assert code == 0, errors
        chain = json.loads(uhr("manifest", "lineage", "slice", "--json")[1])
        assert [link["found"] for link in chain] == [True, True]
        assert Manifest.open(place / "slice").root == Manifest.open(out).root
        code, _, errors = uhr("manifest", "report", "--out=page.html", "--", relative)
        assert code == 0, errors
        assert (place / "page.html").read_bytes().decode().startswith("<!doctype html>")
    finally:
        os.chdir(before)
