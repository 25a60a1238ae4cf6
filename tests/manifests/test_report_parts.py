"""The parts of a report against plain Python over the rows."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.report import gallery, page, scatter, write_report
from uhr.manifests.report.charts import HEIGHT, WIDTH
from uhr.manifests.report.coverage import coverage, faults
from uhr.manifests.report.duplicates import GROUPS, PER_GROUP, duplicates
from uhr.manifests.report.gallery import Spent
from uhr.manifests.report.maps import SIDE, maps
from uhr.manifests.report.thresholds import Threshold
from uhr.manifests.schema import Column, sample_id
from uhr.manifests.stats import compute

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


def test_coverage_is_the_share_of_rows_with_a_value(manifest: Manifest) -> None:
    rows = manifest.table().to_pylist()
    kept = [row for row in rows if row["status"] == "kept"]
    with manifest.connect() as connection:
        found = {one.name: one for one in coverage(connection, manifest)}
    assert list(found) == manifest.schema.names
    for name, one in found.items():
        assert one.all == sum(row[name] is not None for row in rows) / len(rows), name
        assert one.kept == sum(row[name] is not None for row in kept) / len(kept), name


def test_maps_count_every_image_once_in_its_place(make: Make, make_row: Row, tmp_path: Path) -> None:
    sizes = [(400, 300), (4000, 3000), (4000, 3000), (3000, 4000), (8192, 512), (1, 1)]
    rows = [make_row(40 + n, width=w, height=h) for n, (w, h) in enumerate(sizes)]
    rows += [make_row(48, width=None, height=None)]
    manifest = make(tmp_path / "set", rows)
    with manifest.connect() as connection:
        by_size, by_ratio = maps(connection, manifest.schema.names)
    for one in (by_size, by_ratio):
        counts = [int(cell.label.split(": ")[1].split()[0]) for cell in one.cells]
        assert sum(counts) == len(sizes)
        assert max(counts) == 2
        for cell in one.cells:
            assert 0 <= cell.x <= cell.x + cell.size <= SIDE
            assert 0 <= cell.y <= cell.y + cell.size <= SIDE + 0.01
    square, wide = (max(by_size.cells, key=key) for key in (lambda c: c.y, lambda c: c.x))
    assert (square.x, wide.y) < (wide.x, square.y), "width is to the right, height is up"
    middle = next(line for line in by_size.lines if line.label == "1:1")
    assert (middle.x1, middle.y1, middle.x2, middle.y2) == (0, SIDE, SIDE, 0)


def test_one_size_and_no_size_have_maps_too(make: Make, make_row: Row, tmp_path: Path) -> None:
    manifest = make(tmp_path / "one", [make_row(50)])
    with manifest.connect() as connection:
        assert [len(one.cells) for one in maps(connection, manifest.schema.names)] == [1, 1]
        assert maps(connection, ["uri"]) == []
    manifest = make(tmp_path / "none", [make_row(50, width=None, height=None)])
    with manifest.connect() as connection:
        assert maps(connection, manifest.schema.names) == []


def test_a_scatter_has_the_rows_with_two_values_or_a_sample(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["entropy", "flat_fraction", "height"]
    cuts = [Threshold("entropy", ">=", 4.0), Threshold("width", ">", 1.0)]
    rows = sorted(manifest.table().to_pylist(), key=lambda row: row["sample_id"])
    rows = [row for row in rows if row["entropy"] is not None]
    with manifest.connect() as connection:
        found = scatter.scatter(connection, names, cuts)
        monkeypatch.setattr(scatter, "POINTS", 10)
        few = scatter.scatter(connection, names, cuts)
        assert scatter.scatter(connection, ["entropy"], cuts) is None
        assert scatter.scatter(connection, ["blockiness", "luma_mean"], cuts) is None
    assert found is not None
    assert few is not None
    assert (found.shown, found.rows) == (len(rows), len(rows))
    assert (few.shown, few.rows) == (10, len(rows))
    points = json.loads(found.points)
    assert json.loads(few.points) == points[:10]
    assert json.loads(found.cuts) == [[0, ">=", 4.0]]
    for row, (status, entropy, flat, height) in zip(rows, points, strict=True):
        assert ("kept", "rejected", "failed")[status] == row["status"]
        assert (entropy, flat, height) == pytest.approx(
            (row["entropy"], row["flat_fraction"], row["height"]), 1e-3
        )


def test_faults_with_one_cause_are_together(make: Make, make_row: Row, tmp_path: Path) -> None:
    errors = [
        "the PNG ends at byte 12",
        "the PNG ends at byte 345",
        "'a.jpg' has 3 planes",
        "'b' has 4 planes",
        "x",
    ]
    rows = [
        make_row(number, status="failed", reason="truncated" if number < 4 else "corrupt", error=error)
        for number, error in enumerate(errors)
    ]
    rows += [make_row(9 + 10 * number) for number in range(6)]
    manifest = make(tmp_path / "set", rows)
    with manifest.connect() as connection:
        found = faults(connection)
    assert [(fault.kind, fault.count) for fault in found] == [
        ("not an image", 6),
        ("truncated", 4),
        ("corrupt", 1),
    ]
    assert [(cause.text, cause.count) for cause in found[1].causes] == [
        ("'a.jpg' has 3 planes", 2),
        ("the PNG ends at byte 12", 2),
    ]
    assert len(found[0].causes[0].examples) == 4
    assert found[1].causes[1].examples == [rows[0]["uri"], rows[1]["uri"]]


def with_groups(make: Make, make_row: Row, out: Path, sizes: list[int], name: str = "near_group") -> Manifest:
    from uhr.manifests.schema import schema_of

    from .conftest import COLUMNS

    columns = [COLUMNS[one] for one in ("width", "height", "format", "content_hash", "file_size")]
    schema = schema_of([*columns, Column(name, pa.string(), "a group")])  # of a stage, or of exact duplicates
    rows, number = [], 0
    for group, size in enumerate(sizes):
        for _ in range(size):
            row = make_row(number)
            rows.append({key: row.get(key) for key in schema.names} | {name: f"{group:04d}"})
            number += 1
    for row in rows:
        row["status"], row["reason"], row["error"] = "kept", None, None
    return make(out, rows, schema=schema, stages=[])


def test_the_largest_groups_are_shown_side_by_side(make: Make, make_row: Row, tmp_path: Path) -> None:
    sizes = [2, 9, 3, *[2] * 30, 1]
    manifest = with_groups(make, make_row, tmp_path / "set", sizes)
    with manifest.connect() as connection:
        (found,) = duplicates(connection, manifest, Spent(10**7))
        (none,) = duplicates(connection, manifest, Spent(100))
    assert (found.total, found.rows) == (33, sum(sizes) - 1)
    assert [group.total for group in found.groups] == [9, 3, *[2] * (GROUPS - 2)]
    assert len(found.groups[0].images) == PER_GROUP
    uris = [row["uri"] for row in manifest.table(["uri"]).to_pylist()]
    assert [image.uri for image in found.groups[1].images] == uris[11:14]
    assert none.groups == []
    html = write_report(manifest, tmp_path / "report.html").read_text()
    assert "Near-duplicates" in html
    assert "the 24 largest are shown" in html


@pytest.mark.parametrize("column", ["near_group", "semantic_group", "dup_group"])
def test_groups_of_every_stage_are_shown(make: Make, make_row: Row, tmp_path: Path, column: str) -> None:
    manifest = with_groups(make, make_row, tmp_path / "set", [2, 3], column)
    html = write_report(manifest, tmp_path / "report.html").read_text()
    assert f"2 groups of <code>{column}</code> with 5 images." in html


def test_a_set_without_groups_has_no_duplicates(manifest: Manifest) -> None:
    with manifest.connect() as connection:
        assert duplicates(connection, manifest, Spent(10**7)) == []


def test_captions_of_one_length_are_one_bar(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(40 + number, caption="a lake at night") for number in range(3)]
    manifest = make(tmp_path / "set", rows)
    with manifest.connect() as connection:
        (chart,) = page._captions(connection, manifest)
    (bar,) = chart.segments
    assert (bar.label, bar.height) == ("3.5 to 4.5: 3 kept", HEIGHT)
    assert chart.low == chart.high == (WIDTH / 2, "4")
    write_report(manifest, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    drawn = text[text.index("Histogram of caption") :]
    assert drawn[: drawn.index("</svg>")].count(">4</text>") == 1
    # a column of one value is not drawn
    assert "Histogram of width" not in text


def test_captions_are_counted_in_words(make: Make, make_row: Row, tmp_path: Path) -> None:
    captions = ["a lake", "  a  lake\nat night ", "", None, "one two three four five six", "a b"]
    manifest = make(tmp_path / "set", [make_row(40 + n, caption=text) for n, text in enumerate(captions)])
    with manifest.connect() as connection:
        (chart,) = page._captions(connection, manifest)
    counts = Counter[str]()
    for bar in chart.segments:
        low, _, rest = bar.label.partition(" to ")
        counts[str(float(low) + 0.5)] += int(rest.split(": ")[1].split()[0])
    assert counts == {"2.0": 2, "4.0": 1, "6.0": 1}
    assert "Caption lengths" in write_report(manifest, tmp_path / "report.html").read_text()


def test_a_page_stays_below_its_limit_and_says_what_it_leaves_out(
    make: Make, make_row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for number in range(600):
        uri = f"{number:05d}/{'long-name-' * 40}.jpg"
        row = make_row(number) | {
            "uri": uri,
            "sample_id": sample_id(uri),
            "error": None,
            "entropy": number / 10,
        }
        rows.append(row | {"status": "rejected", "reason": f"rule {number % 10}", "caption": "<&>" * 100})
    jpegs = [
        {"sample_id": row["sample_id"], "jpeg": b"\xff" * 45_000, "width": 1, "height": 1} for row in rows
    ]
    made = make(tmp_path / "set", rows, previews=[pa.RecordBatch.from_pylist(jpegs, schema=PREVIEW_SCHEMA)])
    html = write_report(made, tmp_path / "report.html").read_bytes()
    assert 5_000_000 < len(html) < page.LARGEST
    assert b" shown</span>" in html
    monkeypatch.setattr(page, "LARGEST", 4_000_000)
    few = write_report(made, tmp_path / "report.html").read_bytes()
    assert len(few) < 4_000_000
    assert few.count(b"data:image/jpeg") < html.count(b"data:image/jpeg")


def test_scores_of_images_are_in_the_order_of_the_names(manifest: Manifest) -> None:
    names = ["entropy", "height", "blockiness"]
    rows = {row["uri"]: row for row in manifest.table().to_pylist()}
    for group in gallery.groups(manifest, names):
        for image in group.images:
            row = rows[image.uri]
            assert json.loads(image.scores) == [pytest.approx(row["entropy"], 1e-3), row["height"], None]


def test_the_funnel_has_the_share_that_each_rule_rejected(manifest: Manifest, tmp_path: Path) -> None:
    html = write_report(manifest, tmp_path / "report.html").read_text()
    (rule, _) = compute(manifest).rules
    assert (rule["seen"], rule["rejected"]) == (100, 40)
    assert '<td class="num">40 %</td>' in html
