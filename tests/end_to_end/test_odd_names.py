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


def curation(pipeline: Path, source: Path, out: Path) -> list[str]:
    return ["curate", "run", str(pipeline), f"--source={source}", f"--out={out}", "--workers", "0"]


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


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the pipeline."""
    file = tmp_path_factory.mktemp("pipeline") / "pipeline.yaml"
    file.write_text(PIPELINE)
    return file


@pytest.fixture(scope="module")
def plain(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of two images under ordinary names."""
    folder = tmp_path_factory.mktemp("plain")
    fill(folder / "in", ["a", "b"])
    assert main(curation(pipeline, folder / "in", folder / "out")) == 0
    return rows_without_names(Manifest.open(folder / "out"))


TEXT = [
    b"license=cc0 status=failed",
    b" %41%2e 100% [a-z]*? {a,b} #1 ~ $HOME `id`",
    b"'quoted\" two\nlines esc\x1b[31m tab\t a\\nb",
    "\u202ereversed \u2028line <b>{{ 7*7 }}".encode(),
]
"""Names whose characters mean something to SQL, globs, URLs, shells, terminals or HTML."""

WORDS = [b"s3:caf\xe9", b"\xff\xfe", b"-rf x.parquet ", b"manifest.json"]
"""Names that are no UTF-8, or that look like an option, an address, or a file of the manifest."""

ALONE = [b"width=9999", b"content_hash=1", b"**", b"file:x", b"C:x", b"http:", b"...", b"~", b"x.parquet"]
"""Names that may mean something only where nothing else is in them."""

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name.strip(b"."))


@pytest.mark.parametrize("names", [TEXT, WORDS], ids=["text", "words"])
def test_the_whole_workflow_gives_the_same_rows_under_odd_names(uhr, pipeline, plain, tmp_path, names):
    folder, first, second, out = map(os.fsdecode, names)
    place = tmp_path / "run" / folder
    source, out = place / folder, place / out / "set"
    command = curation(pipeline, source, out)
    fill(source, [f"1{first}", f"2{second}"])
    check_rows(uhr, plain, command, source, out)
    assert "is already finished" in uhr(*command)[1]
    _check_what_reads_it(uhr, out, source / f"1{first}.png")
    _check_slices(uhr, out, place)


@pytest.mark.parametrize("name", ALONE, ids=ascii)
def test_curation_gives_the_same_rows_where_all_names_are_odd(uhr, pipeline, plain, tmp_path, name):
    name = os.fsdecode(name)
    source, out = tmp_path / "run" / name / name, tmp_path / "run" / name / f"{name}-set"
    fill(source, [name, f"{name}2"])
    check_rows(uhr, plain, curation(pipeline, source, out), source, out)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_curation_gives_the_same_rows_under_random_names(uhr, pipeline, plain, tmp_path, names):
    folder, first, second, out = map(os.fsdecode, names)
    place = tmp_path / f"run{len(list(tmp_path.iterdir()))}" / folder
    source, out = place / folder, place / out / "set"
    fill(source, [f"1{first}", f"2{second}"])
    check_rows(uhr, plain, curation(pipeline, source, out), source, out)


def check_rows(uhr: Uhr, plain: list[dict], command: list[str], source: Path, out: Path) -> None:
    """Curate, and compare the rows with those under ordinary names."""
    code, printed, errors = uhr(*command)
    assert code == 0, errors
    assert is_harmless(printed + errors)
    manifest = Manifest.open(out)
    assert rows_without_names(manifest) == plain
    assert manifest.root == source
    # plain JSON in UTF-8, without halves of characters that other readers refuse
    text = (out / "manifest.json").read_bytes().decode()
    json.dumps(json.loads(text), ensure_ascii=False).encode()


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
