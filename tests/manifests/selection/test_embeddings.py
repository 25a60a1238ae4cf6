"""Selection by an embedding, against brute force on vectors in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import uhr.manifests
from uhr.base.errors import UserError
from uhr.manifests.lineage import summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import schema_of
from uhr.manifests.selection.embeddings import read_vector, unit_vector
from uhr.manifests.selection.options import Similar, SliceOptions, parse_similar
from uhr.manifests.selection.select import select

from ..conftest import COLUMNS

DIM = 6
KEPT = {"status": "kept", "reason": None, "error": None}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Five clusters of directions, float32 [120, DIM], of any length; two of them equal."""
    draw = np.random.default_rng(3)
    centres = draw.normal(size=(5, DIM))
    points = centres[draw.integers(5, size=120)] + 0.3 * draw.normal(size=(120, DIM))
    points[17] = points[60]
    return (points * draw.uniform(0.5, 3, size=(120, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def parent(
    vectors: np.ndarray, make: Callable[..., Manifest], make_row: Callable[..., Any], tmp_path_factory: Any
) -> Manifest:
    """120 kept rows, every tenth without a vector."""
    schema = schema_of(c for c in COLUMNS.values() if c.name != "split")
    schema = schema.append(pa.field("clip_embedding", pa.list_(pa.float32(), DIM)))
    rows = [
        make_row(n, **KEPT) | {"clip_embedding": None if n % 10 == 5 else vectors[n].tolist()}
        for n in range(120)
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    return make(tmp_path_factory.mktemp("vectors") / "set", rows, schema=schema, batches=[batch])


@pytest.fixture(scope="module")
def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def chosen(parent: Manifest, **steps: Any) -> list[int]:
    ids = set(select(parent, SliceOptions(**steps)).ids.to_pylist())
    return [n for n, one in enumerate(parent.table(["sample_id"])["sample_id"].to_pylist()) if one in ids]


HAVE = [n for n in range(120) if n % 10 != 5]


@pytest.mark.parametrize("count", [1, 8, 200])
def test_similar_takes_the_largest_cosines(count: int, parent: Manifest, cosines: np.ndarray) -> None:
    ids = parent.table(["sample_id"])["sample_id"].to_pylist()
    order = sorted(HAVE, key=lambda n: (-round(cosines[60, n], 9), ids[n]))
    found = chosen(parent, similar=Similar(to="folder/00060.jpg", rows=count))
    assert found == sorted(order[:count])
    assert count != 200 or found == HAVE


def test_similar_comes_after_where_and_before_top(parent: Manifest, cosines: np.ndarray) -> None:
    left = [n for n in HAVE if (n % 80) / 10 < 4]
    order = sorted(left, key=lambda n: -cosines[60, n])[:10]
    found = uhr.manifests.open(parent.path).top("entropy", rows=3).where("entropy < 4")
    table = found.similar("folder/00060.jpg", 10).table()
    best = sorted(order, key=lambda n: -((n % 80) / 10))[:3]
    assert table["uri"].to_pylist() == [f"folder/{n:05d}.jpg" for n in sorted(best)]


@pytest.mark.parametrize("count", [1, 2, 5, 12, 108])
def test_diverse_rows_cover_the_set_within_twice_the_best(
    count: int, parent: Manifest, cosines: np.ndarray
) -> None:
    found = chosen(parent, diverse=count)
    assert len(found) == count
    assert set(found) <= set(HAVE)
    if count in (2, 5):
        distance = np.sqrt(np.maximum(2 - 2 * cosines[np.ix_(HAVE, HAVE)], 0))
        radius = distance[:, [HAVE.index(n) for n in found]].min(axis=1).max()
        few = list(range(0, len(HAVE), 1 if count == 2 else 9))
        best = min(distance[:, list(some)].min(axis=1).max() for some in itertools.combinations(few, count))
        assert radius <= 2 * best + 1e-9


def test_diverse_takes_a_copy_last(parent: Manifest) -> None:
    """Rows 17 and 60 are equal: the second of them covers nothing."""
    assert len(set(chosen(parent, diverse=107)) & {17, 60}) == 1


def test_a_vector_is_a_query(parent: Manifest, vectors: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    from uhr.cli import main

    query = vectors[60].astype(np.float64) * 7
    made = uhr.manifests.open(parent.path).similar(query, 8).write(tmp_path / "python")
    np.save(tmp_path / "query.npy", query)
    command = ["manifest", "slice", str(parent.path), "--out", str(tmp_path / "command")]
    assert main([*command, "--similar", f"{tmp_path}/query.npy=8"]) == 0
    ids = parent.table(["sample_id"])["sample_id"].to_pylist()
    expected = [ids[n] for n in chosen(parent, similar=Similar(to="folder/00060.jpg", rows=8))]
    for folder in ("python", "command"):
        assert Manifest.open(tmp_path / folder).table(["sample_id"])["sample_id"].to_pylist() == expected
    operation = Manifest.open(tmp_path / "command").info.operation
    vector = operation["similar"]["vector"][:16]
    assert f"similar query.npy=8 (vector {vector}), " in summary(operation)
    assert operation["similar"] == {
        "to": "query.npy",
        "rows": 8,
        "vector": made.info.operation["similar"]["vector"],
    }
    assert str(tmp_path) not in str(operation)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--similar", "a lake=5"], "no sample 'a lake'.*with --clip WEIGHTS, an image or a text"),
        (["--similar", "a lake"], "is not a query and a number of rows"),
        (["--similar", "folder/00005.jpg=3"], "folder/00005.jpg has no clip_embedding"),
        (["--diverse", "109"], "109 is more than the 108 rows with a clip_embedding"),
        (["--diverse", "3", "--embedding", "entropy"], "entropy is double, not a vector"),
        (["--diverse", "3", "--embedding", "dino"], "no column dino"),
        (["--diverse", "3", "--where", "uri = 'folder/00005.jpg'"], "none of the 1 rows that are left has a"),
        (["--clip", "x", "--sample", "3"], "--clip without --similar"),
    ],
)
def test_a_selection_that_cannot_be_says_why(
    arguments: list[str], says: str, parent: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    from uhr.cli import main

    assert main(["manifest", "slice", str(parent.path), "--out", str(tmp_path / "out"), *arguments]) != 0
    assert re.search(says, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


def test_a_vector_of_another_length_is_refused(parent: Manifest) -> None:
    with pytest.raises(UserError, match=r"--similar has 3 numbers, and clip_embedding has 6"):
        uhr.manifests.open(parent.path).similar(np.ones(3), 2).count()


def _with_vectors(folder: Path, make: Callable[..., Manifest], make_row: Any, vectors: list[Any]) -> Manifest:
    schema = schema_of(c for c in COLUMNS.values() if c.name != "split")
    schema = schema.append(pa.field("clip_embedding", pa.list_(pa.float32())))
    rows = [make_row(n, **KEPT) | {"clip_embedding": one} for n, one in enumerate(vectors)]
    return make(folder / "set", rows, schema=schema)


def test_vectors_without_a_direction_are_left_out(
    make: Callable[..., Manifest], make_row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan, inf = float("nan"), float("inf")
    faulty = [[nan, 1.0], [inf, 1.0], [1.0, None], [0.0, 0.0], None]
    made = _with_vectors(tmp_path, make, make_row, [[1.0, 0.0], *faulty, [0.0, 1.0], [-1.0, 0.1]])
    assert chosen(made, diverse=3) == [0, 6, 7]
    assert chosen(made, similar=Similar(to="folder/00000.jpg", rows=8)) == [0, 6, 7]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("null, zero or not finite on 5 of 8 rows") == 2
    with pytest.raises(UserError, match="4 is more than the 3 rows"):
        chosen(made, diverse=4)
    with pytest.raises(UserError, match=r"folder/00004.jpg is all zeros, or not finite"):
        chosen(made, similar=Similar(to="folder/00004.jpg", rows=1))


@pytest.mark.parametrize("vectors", [[[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], [[1.0], [1.0, 2.0]]])
def test_vectors_of_several_lengths_are_refused(
    vectors: list[Any], make: Callable[..., Manifest], make_row: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"clip_embedding has vectors of \d and of \d numbers"):
        chosen(_with_vectors(tmp_path, make, make_row, vectors), diverse=1)


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b"]), np.array([1j, 2.0]), np.zeros(3), np.array([1.0, np.nan]), np.ones((2, 2)), None],
    ids=["texts", "complex", "zeros", "nan", "matrix", "empty file"],
)
def test_a_file_that_is_no_vector_is_refused(array: np.ndarray | None, tmp_path: Path) -> None:
    file = tmp_path / "query.npy"
    file.write_bytes(b"")
    if array is not None:
        np.save(file, array)
    with pytest.raises(UserError, match=r"query\.npy"):
        read_vector(file)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_a_unit_vector_does_not_depend_on_the_size(size: float) -> None:
    assert np.allclose(unit_vector(size * np.array([3.0, 4.0]), "query"), [0.6, 0.8], rtol=1e-15)


@pytest.mark.parametrize("text", ["a lake=\u00b2", "a lake=0", "=3"])
def test_an_invalid_number_of_similar_rows_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a query and a number of rows"):
        parse_similar(text)


def test_a_query_may_contain_equals_signs() -> None:
    assert parse_similar("e = mc2=12") == Similar(to="e = mc2", rows=12)
