"""The rows of a filter, their order and the counts of values are those of plain Python over all rows."""

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.browse.filters import Filter, Range
from uhr.manifests.browse.ranges import BINS, Ranges
from uhr.manifests.browse.reviewed import ReviewedRows
from uhr.manifests.browse.reviews import Journal, Review, write
from uhr.manifests.browse.rows import Cache, Rows
from uhr.manifests.browse.session import Decision, Page, Saving, Session
from uhr.manifests.browse.views import Order, Views
from uhr.manifests.manifest import Manifest

Make = Callable[..., Manifest]
Row = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, make: Make, make_row: Row) -> Manifest:
    """300 rows, with missing and infinite values."""
    rows = [make_row(number) for number in range(300)]
    for number in range(0, 300, 7):
        rows[number]["entropy"] = None
    rows[8]["entropy"], rows[12]["entropy"] = float("nan"), float("inf")
    return make(tmp_path_factory.mktemp("many") / "set", rows, previews=None)


@pytest.fixture(scope="module")
def rows(many: Manifest) -> list[dict[str, Any]]:
    """All rows of `many`."""
    return many.table().to_pylist()


def views_of(manifest: Manifest) -> Views:
    """Views without reviews."""
    return Views(reviewed(manifest))


def reviewed(manifest: Manifest, file: Path = Path("/nowhere/reviews.jsonl")) -> ReviewedRows:
    return ReviewedRows(manifest, Journal(file, manifest))


def expected(rows: list[dict[str, Any]], filter_: Filter, order: Order) -> list[int]:
    """The oracle: positions of the rows by a loop over all of them."""
    found = [
        place
        for place, row in enumerate(rows)
        if filter_.status in ("any", row["status"])
        and (not filter_.where or (row["flat_fraction"] is not None and row["flat_fraction"] > 0.3))
        and all(row[name] in values for name, values in filter_.values.items() if values)
        and all(is_in(row[name], range_) for name, range_ in filter_.ranges.items())
    ]

    def key(place: int) -> Any:
        value = rows[place][order.by or "uri"]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    if order.by is None:
        return found
    filled = sorted((place for place in found if key(place) is not None), key=key, reverse=order.descending)
    # `reverse` keeps equal rows in their order
    return filled + [place for place in found if key(place) is None]


def is_in(value: float | None, range_: Range) -> bool:
    if range_.low is None and range_.high is None:
        return True
    if value is None or not np.isfinite(value):
        return False
    return (range_.low is None or value >= range_.low) and (range_.high is None or value <= range_.high)


ends = st.none() | st.sampled_from([0.05, 2.5, 4.0, 7, 48.0, 1e300])
ranges = st.dictionaries(
    st.sampled_from(["entropy", "flat_fraction", "height"]), st.builds(Range, low=ends, high=ends), max_size=2
)
filters = st.builds(
    Filter,
    status=st.sampled_from(["kept", "rejected", "failed", "any"]),
    where=st.sampled_from(["", "flat_fraction > 0.3"]),
    values=st.dictionaries(
        st.sampled_from(["aspect_bucket", "license", "reason", "status"]),
        st.lists(
            st.sampled_from(["1:1", "4:3", "CC0", "CC1", None, "entropy", "kept", "it's"]), unique=True
        ).map(tuple),
        max_size=3,
    ),
    ranges=ranges,
)
orders = st.builds(
    Order, by=st.sampled_from([None, "entropy", "height", "license"]), descending=st.booleans()
)


@settings(max_examples=20)
@given(filters, orders)
def test_rows_and_order_are_those_of_a_loop_over_all_rows(
    many: Manifest, rows: list[dict[str, Any]], filter_: Filter, order: Order
) -> None:
    assert views_of(many).positions(filter_, order).tolist() == expected(rows, filter_, order)


@settings(max_examples=12)
@given(filters)
def test_counts_of_values_are_those_of_a_loop_and_leave_the_own_choice_out(
    many: Manifest, rows: list[dict[str, Any]], filter_: Filter
) -> None:
    for facet in views_of(many).facets(filter_):
        left = filter_.without(facet.column)
        counts = Counter(rows[place][facet.column] for place in expected(rows, left, Order()))
        found = {value.value: value.rows for value in facet.values if value.rows}
        assert found == dict(counts), facet.column
        assert set(filter_.values.get(facet.column, ())) <= {value.value for value in facet.values}
        assert facet.others == 0


@settings(max_examples=12)
@given(filters)
def test_a_histogram_counts_the_rows_of_each_interval_and_leaves_the_own_range_out(
    many: Manifest, rows: list[dict[str, Any]], filter_: Filter
) -> None:
    names = ["entropy", "height"]
    for found in Ranges(reviewed(many)).distributions(filter_, names):
        values = np.array([row[found.column] for row in rows], np.float64)
        finite = values[np.isfinite(values)]
        assert (found.low, found.high) == (finite.min(), finite.max())
        chosen = values[expected(rows, filter_.without_range(found.column), Order())]
        left = chosen[np.isfinite(chosen)]
        assert [found.start, found.end] == pytest.approx(np.quantile(finite, [0.01, 0.99]))
        places = np.floor((left - found.start) / ((found.end - found.start) / BINS)).clip(0, BINS - 1)
        assert found.counts == np.bincount(places.astype(int), minlength=BINS).tolist()
        assert found.missing == len(chosen) - len(left)


def test_a_column_of_one_value_or_none_has_a_histogram(make: Make, make_row: Row, tmp_path: Path) -> None:
    made = make(tmp_path / "set", [make_row(n, entropy=None, height=7) for n in range(5)], previews=None)
    ranges = Ranges(reviewed(made))
    empty, flat = ranges.distributions(Filter(), ["entropy", "height"])
    assert (empty.low, empty.high, sum(empty.counts), empty.missing) == (None, None, 0, 5)
    assert (flat.low, flat.high, flat.counts[0], flat.missing) == (7, 7, 5, 0)
    with pytest.raises(UserError, match=r"unknown column 'entropie'.*entropy"):
        ranges.distributions(Filter(), ["entropie"])
    with pytest.raises(UserError, match="caption is string, not a number"):
        ranges.distributions(Filter(), ["caption"])
    with pytest.raises(UserError, match="caption is string, not a number"):
        views_of(made).positions(Filter(ranges={"caption": Range(low=1)}), Order())


def test_a_range_is_a_condition_of_the_slice(many: Manifest) -> None:
    filter_ = Filter(
        where="entropy < 9", ranges={"entropy": Range(low=4.25), "height": Range(low=1, high=1e6)}
    )
    condition = filter_.condition(many.schema)
    assert condition is not None
    assert (
        condition.text == '(entropy < 9) AND ("entropy" >= 4.25) AND ("height" >= 1 AND "height" <= 1000000)'
    )


@pytest.mark.parametrize("has_columns", [False, True])
def test_reviews_that_are_not_saved_choose_rows_as_saved_ones_do(
    has_columns: bool, manifest: Manifest, tmp_path: Path
) -> None:
    """The oracle is the manifest that the reviews are saved in. Rows that have reviews already keep them."""
    ids = manifest.table(["sample_id"])["sample_id"].to_pylist()
    base = manifest
    if has_columns:
        before = [review_of(ids[3], "accepted", "night"), review_of(ids[4], "rejected")]
        base = write(manifest, before, tmp_path / "base", lambda n=1, note=None: None)
    journal = Journal(tmp_path / "reviews.jsonl", base)
    journal.add([review_of(ids[5], "accepted", "it's"), review_of(ids[6], "rejected", "night", "it's")])
    journal.add(
        [review_of(ids[3], "none"), review_of(ids[7], "none", "night"), review_of(ids[5], "rejected")]
    )
    journal.close()
    saved = write(base, list(journal.reviews.values()), tmp_path / "saved", lambda n=1, note=None: None)
    now, then = ReviewedRows(base, journal), reviewed(saved)
    chosen = [
        Filter(values={"review": ("rejected",), "review_tags": ("it's", None)}),
        Filter(values={"review": (None,), "review_tags": ("night",)}),
        Filter(where="review_by is not null"),
    ]
    for filter_ in chosen:
        found = [Views(rows).positions(filter_, Order(by="review")).tolist() for rows in (now, then)]
        assert found[0] == found[1] != []
    assert Views(now).facets(chosen[0]) == Views(then).facets(chosen[0])


def review_of(id_: str, verdict: str, *tags: str) -> Review:
    return Review(
        sample_id=id_,
        verdict=None if verdict == "none" else verdict,
        tags=tags,
        name="Ada",
        reason="" if verdict == "none" else "why",
        time="2026-01-01T00:00:00+00:00",
    )


def test_pages_of_a_filter_keep_their_rows_while_they_are_reviewed(
    many: Manifest, tmp_path: Path, open_session: Callable[..., Session]
) -> None:
    session = open_session(many)
    session.journal.file = tmp_path / "reviews.jsonl"
    filter_ = Filter(where="review is null")
    begun = session.facts()["reviews"]["version"]
    first = session.page(Page(filter=filter_, count=60, reviews=begun))["rows"]
    session.review(
        Decision(
            positions=tuple(row["position"] for row in first), verdict="accepted", name="Ada", reason="sharp"
        )
    )
    second = session.page(Page(filter=filter_, start=60, count=60, reviews=begun))
    assert [row["position"] for row in second["rows"]] == list(range(60, 120))
    assert session.page(Page(filter=filter_))["total"] == 240
    facet = next(facet for facet in session.facets(Filter()) if facet["column"] == "review")
    assert {value["value"]: value["rows"] for value in facet["values"]} == {"accepted": 60, None: 240}
    page = session.page(
        Page(filter=Filter(values={"review": ("accepted",)}), order=Order(by="review_reason"))
    )
    assert (page["total"], page["command"], page["rows"][0]["value"]) == (60, None, "sharp")
    with pytest.raises(UserError, match="reviews that are not saved: save the reviews as a manifest"):
        session.save_slice(Saving(name="accepted", filter=Filter(values={"review": ("accepted",)})))


def test_many_values_are_counted_together(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(number, aspect_bucket=f"{number % 20}:9") for number in range(100)]
    views = views_of(make(tmp_path / "set", rows, previews=None))
    (facet,) = [facet for facet in views.facets(Filter()) if facet.column == "aspect_bucket"]
    assert len(facet.values) == 12
    assert facet.others == 100 - 12 * 5
    chosen = Filter(values={"aspect_bucket": ("19:9",)})
    (facet,) = [facet for facet in views.facets(chosen) if facet.column == "aspect_bucket"]
    assert "19:9" in [value.value for value in facet.values], "what is chosen stays in the list"


def test_many_groups_of_two_are_not_offered_but_few_are(make: Make, make_row: Row, tmp_path: Path) -> None:
    for groups, offered in ((30, False), (5, True)):
        pairs = [
            {"aspect_bucket": f"{number // 2}" if number < 2 * groups else None} for number in range(100)
        ]
        rows = [make_row(number, **pair) for number, pair in enumerate(pairs)]
        views = views_of(make(tmp_path / f"{groups}", rows, previews=None))
        assert ("aspect_bucket" in views.facets_of) is offered


def test_ids_captions_and_hashes_are_not_offered(many: Manifest) -> None:
    assert not {"sample_id", "uri", "content_hash"} & set(views_of(many).facets_of)
    assert views_of(many).facets_of[:2] == ["status", "reason"]


@pytest.mark.parametrize(
    "where",
    [
        "entropy >",
        "entropy > 1) OR (true",
        "1; DROP TABLE samples",
        "entropy > (SELECT max(entropy) FROM samples)",
        "read_text('/etc/passwd') = ''",
        "no_such_column > 1",
        "entropy",
        "status = kept",
        "entropy > 1 -- all",
        "caption > 3",
    ],
)
def test_what_is_no_condition_over_the_columns_is_one_line(many: Manifest, where: str) -> None:
    with pytest.raises(UserError, match="condition") as caught:
        views_of(many).positions(Filter(where=where), Order())
    assert "\n" not in str(caught.value)


def test_columns_that_have_no_order_or_no_values_are_named(many: Manifest) -> None:
    with pytest.raises(UserError, match=r"unknown column 'entropie'.*entropy"):
        views_of(many).positions(Filter(), Order(by="entropie"))
    with pytest.raises(UserError, match=r"box is .*: sort by"):
        views_of(many).positions(Filter(), Order(by="box"))
    with pytest.raises(UserError, match="entropy is double, not a text"):
        views_of(many).positions(Filter(values={"entropy": ("1",)}), Order())


@pytest.mark.parametrize("what", ["rows", "none"])
def test_a_saved_slice_has_the_rows_of_the_page(
    what: str, many: Manifest, tmp_path: Path, open_session: Callable[..., Session]
) -> None:
    session = open_session(many, materialise=what)
    session.into = tmp_path
    filter_ = Filter(
        where="flat_fraction > 0.3", values={"status": ("rejected",), "aspect_bucket": ("1:1", None)}
    )
    page = session.page(Page(filter=filter_, count=240))
    assert 0 < page["total"] <= 240
    made = session.save_slice(Saving(name="found", filter=filter_))
    saved = Manifest.open(tmp_path / "found")
    assert made["id"] == saved.id
    assert [row["sample_id"] for row in page["rows"]] == saved.table(["sample_id"])["sample_id"].to_pylist()
    assert saved.info.operation["where"] == page["where"]
    assert saved.info.by_reference == (what == "none")
    words = shlex.split(page["command"])
    assert words[words.index("--where") + 1] == page["where"]
    assert ("none" in words) == saved.info.by_reference
    with pytest.raises(UserError, match="already contains"):
        session.save_slice(Saving(name="found", filter=filter_))
    for name in ("", "..", "a/b", ".hidden", "/tmp/x", "a\0"):
        with pytest.raises(UserError, match="no name of a folder"):
            session.save_slice(Saving(name=name, filter=filter_))


def test_pages_divide_the_rows_without_gap_or_repetition(
    many: Manifest, rows: list[dict[str, Any]], open_session: Callable[..., Session]
) -> None:
    session = open_session(many)
    order = Order(by="entropy")
    pages = [session.page(Page(order=order, start=start, count=70)) for start in range(0, 300, 70)]
    found = [row["position"] for page in pages for row in page["rows"]]
    assert found == expected(rows, Filter(), order)
    values = [row["value"] for page in pages for row in page["rows"]]
    assert values[-1] is None
    assert session.page(Page(start=10_000))["rows"] == []


def test_rows_are_read_from_the_group_that_has_them(
    many: Manifest, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, tuple[str, ...]]] = []
    read = Manifest.row_group

    def counted(self: Manifest, group: Any, columns: Any = None) -> Any:
        reads.append((group.number, tuple(columns)))
        return read(self, group, columns)

    monkeypatch.setattr(Manifest, "row_group", counted)
    reader = Rows(many)
    assert [row["uri"] for row in reader.at([5, 299, 0], ["uri"])] == [rows[n]["uri"] for n in (5, 299, 0)]
    reader.at([7], ["uri", "entropy"])
    reader.at([8], ["entropy"])
    assert reads == [(0, ("uri",)), (0, ("entropy",))], "a column is read once"
    for position in (-1, 300):
        with pytest.raises(IndexError):
            reader.at([position], ["uri"])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=40))
def test_a_cache_stays_within_its_limit(steps: list[tuple[int, int]]) -> None:
    cache: Cache[int] = Cache(100, lambda size: size)
    for key, size in steps:
        assert cache.put(key, size) == size
        assert cache.get(key) == size
        assert cache.total <= 100


def test_a_sample_is_explained_with_its_rules_and_columns(
    many: Manifest, open_session: Callable[..., Session]
) -> None:
    session = open_session(many)
    found = session.sample(3)
    assert found["status"] == "rejected"
    assert [rule["outcome"] for rule in found["rules"]] == ["fail", "not evaluated"]
    assert found["rules"][0]["values"] == {"entropy": 0.3}
    columns = {column["column"]: column["value"] for column in found["columns"]}
    assert columns["entropy"] == 0.3
    assert {column["column"] for column in session.sample(8)["columns"]} == set(columns)
    assert next(c["value"] for c in session.sample(8)["columns"] if c["column"] == "entropy") is None, "NaN"


def test_tags_leave_a_verdict_with_the_one_who_gave_it(
    manifest: Manifest, open_session: Callable[[Manifest], Session], tmp_path: Path
) -> None:
    session = open_session(manifest)
    session.review(Decision(positions=(3,), verdict="accepted", name="Ada", reason="sharp"))
    (first,) = session.journal.reviews.values()
    session.journal.add([first.model_copy(update={"time": "2026-01-01T00:00:00+00:00"})])
    session.review(Decision(positions=(3,), add_tags=("night",), name="Bob"))
    made = session.save_reviews(Saving(name="reviewed"))
    again = open_session(Manifest.open(made["path"]))
    again.review(Decision(positions=(3,), add_tags=("lake",), name="Eve"))
    found = again.sample(3)["review"]
    assert (found["name"], found["reason"], found["time"]) == ("Ada", "sharp", "2026-01-01T00:00:00+00:00")
    assert found["review_tags"] == ["lake", "night"]


def test_reviews_are_shown_with_the_rows(
    many: Manifest, tmp_path: Path, open_session: Callable[..., Session]
) -> None:
    session = open_session(many)
    first = session.page(Page(count=1))["rows"][0]
    rows = (first["position"],)
    session.review(Decision(positions=rows, verdict="accepted", name="Ada", reason="sharp"))
    session.review(Decision(positions=rows, add_tags=("portrait", "night"), name="Ada"))
    row = session.page(Page(count=1))["rows"][0]
    assert (row["review"], row["review_tags"], row["pending"]) == ("accepted", ["night", "portrait"], True)
    session.review(Decision(positions=rows, remove_tags=("night",), name="Bob"))
    review = session.sample(0)["review"]
    assert (review["review"], review["review_tags"], review["name"]) == ("accepted", ["portrait"], "Ada")
    assert review["reason"] == "sharp", "tags leave a verdict as it is"
    with pytest.raises(IndexError):
        session.review(Decision(positions=(300,), verdict="accepted", name="Ada", reason="sharp"))
