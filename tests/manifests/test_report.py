import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.info import RuleInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import PREVIEW_SCHEMA
from uhr.manifests.report import gallery, write_report
from uhr.manifests.report.charts import HEIGHT, WIDTH, Axis, axis_for, histogram
from uhr.manifests.report.thresholds import Threshold, thresholds
from uhr.manifests.schema import sample_id
from uhr.manifests.selection.sets import difference
from uhr.manifests.selection.slicing import SliceOptions, slice_manifest
from uhr.manifests.sql import SqlCondition
from uhr.manifests.stats import compute

from .conftest import COLUMNS

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]
VOID = {"meta", "link", "br", "wbr", "img", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """A page as tags and texts; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(manifest: Manifest) -> Page:
    return Page(write_report(manifest, manifest.path / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_what_became_of_the_samples(manifest: Manifest) -> None:
    page = page_of(manifest)
    for text in ("36 kept", "54 rejected", "10 failed", "not an image", "no known image format"):
        assert text in page.text
    assert "not evaluated: no weights" in page.text
    assert "Rejected by entropy entropy >= 4 54 images" in page.text
    assert "entropy 3.1 bit" in page.text, "the value that decided is on the image"
    assert manifest.id[:16] in page.text
    assert "pyarrow" in page.text


def test_the_page_needs_nothing_from_outside(manifest: Manifest) -> None:
    html = write_report(manifest, manifest.path / "report.html").read_text(encoding="utf-8")
    for _, attributes in Page(html).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert not re.search(r"https?://|@import|url\(|<iframe|<object|<embed", html)
    policy = next(m["content"] for m in Page(html).all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_is_accessible(manifest: Manifest) -> None:
    page = page_of(manifest)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-label") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids


def test_hostile_names_captions_and_rules_stay_text(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = []
    for number_ in (3, 50, 59):
        uri = f"{number_}{HOSTILE}.jpg"
        row = make_row(number_) | {"uri": uri, "sample_id": sample_id(uri), "caption": HOSTILE}
        if row["status"] == "rejected":
            row["reason"] = HOSTILE
        if row["status"] == "failed":
            row |= {"reason": HOSTILE, "error": HOSTILE}
        rows.append(row | {"aspect_bucket": HOSTILE, "author": HOSTILE})
    rules = [
        RuleInfo(
            name=HOSTILE, where=f"caption <> '{HOSTILE.replace(chr(39), chr(39) * 2)}'", seen=2, rejected=1
        )
    ]
    rows.sort(key=lambda row: row["uri"])
    made = make(
        tmp_path / "set",
        rows,
        rules=[*rules, RuleInfo(name="idle", where="x", state="not evaluated", why=HOSTILE)],
        operation={"kind": "curate", "pipeline": {"name": HOSTILE, "note": "</pre>" + HOSTILE}},
        root=HOSTILE,
        versions={HOSTILE: HOSTILE},
        source={HOSTILE: 3},
    )
    page = page_of(made)
    assert len(page.all("script")) == 1, "our own"
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [image for image in page.all("img") if image["src"] == "x"] == []
    assert page.text.count(HOSTILE) > 10
    assert HOSTILE.replace("{{ 7*7 }}", "49") not in page.text, "templates in data are not filled in"


def test_the_same_manifest_gives_the_same_page(manifest: Manifest, tmp_path: Path) -> None:
    one = write_report(manifest, tmp_path / "one.html").read_bytes()
    two = write_report(Manifest.open(manifest.path), tmp_path / "deep" / "two.html").read_bytes()
    assert one == two


def test_a_slice_and_an_empty_gallery_have_pages_too(manifest: Manifest, tmp_path: Path) -> None:
    made = slice_manifest(
        manifest, tmp_path / "s", SliceOptions(where="entropy > 5", split={"train": 0.5, "val": 0.5})
    )
    text = page_of(made).text
    assert "Slice" in text
    assert "The rules and counts are those of the whole run" in text
    assert "Every file of the source is one row" not in text
    assert "in split train" in text
    rest = page_of(difference(manifest, made, tmp_path / "rest")).text
    assert "Difference · manifest" in rest
    assert "Every file of the source is one row" not in rest
    assert "Every file of the source is one row" in page_of(manifest).text
    assert manifest.id[:16] in text
    failed = slice_manifest(manifest, tmp_path / "f", SliceOptions(status="failed"))
    assert "10 failed" in page_of(failed).text


def test_a_folder_as_out_is_refused(manifest: Manifest) -> None:
    with pytest.raises(UserError, match="is a folder"):
        write_report(manifest, manifest.path)


def test_images_are_limited_by_number_and_bytes(
    make: Make, make_row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(number_) for number_ in range(400) if number_ % 10 != 9]
    jpegs = [
        {"sample_id": row["sample_id"], "jpeg": b"\xff\xd8" + b"x" * 998, "width": 1, "height": 1}
        for row in rows
    ]
    previews = [pa.RecordBatch.from_pylist(jpegs, schema=PREVIEW_SCHEMA)]
    made = make(tmp_path / "set", rows, previews=previews)
    found = {group.status: group for group in gallery.groups(made)}
    assert {status: len(group.images) for status, group in found.items()} == {"kept": 60, "rejected": 60}
    monkeypatch.setattr(gallery, "BUDGET", 132_000)  # 1,000 bytes as base64 and 1,300 of text each
    found = {group.status: group for group in gallery.groups(made)}
    assert {status: len(group.images) for status, group in found.items()} == {"kept": 25, "rejected": 25}
    assert all(image.source for group in found.values() for image in group.images)


def test_images_with_the_same_bytes_are_shown_once(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(40 + n, content_hash=f"{n // 5:064x}") for n in range(9)]
    (group,) = gallery.groups(make(tmp_path / "set", rows))
    assert sorted(image.copies for image in group.images) == [4, 5]


def test_what_was_never_decoded_is_listed_without_an_image(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(3, content_hash=None), make_row(50)]
    made = make(tmp_path / "set", rows, previews=None)
    page = page_of(made)
    assert page.all("img") == []
    assert "Rejected before they were decoded" in page.text
    assert rows[0]["uri"].split("/")[1] in page.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entropy >= 4", [(">=", 4.0)]),
        ("4 < entropy", [(">", 4.0)]),
        ("entropy BETWEEN 1 AND 2.5", [(">=", 1.0), ("<=", 2.5)]),
        ("entropy > -1 AND (entropy < 7 AND width > 3)", [(">", -1.0), ("<", 7.0)]),
        ("entropy = 0", [("=", 0.0)]),
        ("entropy > 4 OR width > 3", []),
        ("NOT entropy > 4", []),
        ("entropy * 2 > 4", []),
        ("entropy > width", []),
        ("caption > 'a'", []),
        ("entropy IS NOT NULL", []),
    ],
)
def test_thresholds_are_read_only_where_they_are_plain(text: str, expected: list[tuple[str, float]]) -> None:
    found = thresholds(SqlCondition.parse(text, "x"))
    assert [(t.sign, t.value) for t in found if t.column == "entropy"] == expected


def test_a_histogram_counts_every_value_and_marks_the_cut(manifest: Manifest) -> None:
    numeric = next(column for column in compute(manifest).numeric if column.name == "entropy")
    with manifest.connect() as connection:
        made = histogram(connection, COLUMNS["entropy"], numeric, [Threshold("entropy", ">=", 4.0)])
    assert made is not None
    counts = {"kept": 0, "rejected": 0, "failed": 0}
    for segment in made.segments:
        counts[segment.status] += int(segment.label.split(": ")[1].split()[0])
        assert 0 <= segment.x <= WIDTH
        assert 0 <= segment.y <= segment.y + segment.height <= HEIGHT + 0.02
    assert counts == {"kept": 36, "rejected": 54, "failed": 0}
    (mark,) = made.marks
    assert mark.label == ">= 4"
    for segment in made.segments:  # rejected rows are left of the line, kept ones right of it
        middle = segment.x + segment.width / 2
        assert (middle < mark.x) is (segment.status == "rejected")


def test_columns_without_spread_have_no_histogram(manifest: Manifest) -> None:
    numeric = {column.name: column for column in compute(manifest).numeric}
    assert axis_for(COLUMNS["entropy"], replace(numeric["entropy"], least=2.0, greatest=2.0), []) is None
    assert axis_for(COLUMNS["blockiness"], numeric["blockiness"], []) is None, "all are null"


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1e9), st.floats(0, 1), st.booleans())
def test_places_on_an_axis_agree_with_its_bins(low: float, factor: float, share_: float, log: bool) -> None:
    axis = Axis(low, low * factor, 40, log, low, low * factor)
    value = low + (low * factor - low) * share_
    bin_ = min(int(axis.place(value) / WIDTH * 40), 39)
    below, above = axis.edges(bin_)
    slack = 1e-6 * low * factor
    assert below - slack <= value <= above + slack


def test_a_report_deals_with_numbers_that_no_axis_can_show(make: Make, make_row: Row, tmp_path: Path) -> None:
    odd = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, None, 3.0]
    rows = [
        make_row(n, entropy=value, blockiness=value, status="rejected", reason="wild")
        for n, value in enumerate(odd)
    ]
    texts = ["entropy > 1e400", "entropy < 'nan'", "entropy >= '-inf'", "entropy / 0 > 'inf'", "entropy > 2"]
    rules = [RuleInfo(name=f"rule{n}", where=text) for n, text in enumerate(texts)]
    manifest = make(tmp_path / "set", rows, rules=[*rules, RuleInfo(name="wild", where="entropy > 2")])
    page = Page(write_report(manifest, tmp_path / "report.html").read_text())
    assert "Rejected by wild" in page.text
    (found,) = [group for group in gallery.groups(manifest) if group.reason == "wild"]
    order = [image.values[0][1].removesuffix(" bit") for image in found.images]
    assert order == ["-1e+308", "4.94e-324", "3", "1e+308", "nan", "inf", "-inf", "\u2013"]
