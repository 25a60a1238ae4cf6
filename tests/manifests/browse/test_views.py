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
from uhr.manifests.browse.filters import Filter
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


def expected(rows: list[dict[str, Any]], filter_: Filter, order: Order) -> list[int]:
    """The oracle: positions of the rows by a loop over all of them."""
    found = [
        place
        for place, row in enumerate(rows)
        if filter_.status in ("any", row["status"])
        and (not filter_.where or (row["flat_fraction"] is not None and row["flat_fraction"] > 0.3))
        and all(row[name] in values for name, values in filter_.values.items() if values)
    ]

    def key(place: int) -> Any:
        value = rows[place][order.by or "uri"]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    if order.by is None:
        return found
    filled = sorted((place for place in found if key(place) is not None), key=key, reverse=order.descending)
    # `reverse` keeps equal rows in their order
    return filled + [place for place in found if key(place) is None]


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
)
orders = st.builds(
    Order, by=st.sampled_from([None, "entropy", "height", "license"]), descending=st.booleans()
)


@settings(max_examples=20)
@given(filters, orders)
def test_rows_and_order_are_those_of_a_loop_over_all_rows(
    many: Manifest, rows: list[dict[str, Any]], filter_: Filter, order: Order
) -> None:
    assert Views(many).positions(filter_, order).tolist() == expected(rows, filter_, order)


@settings(max_examples=12)
@given(filters)
def test_counts_of_values_are_those_of_a_loop_and_leave_the_own_choice_out(
    many: Manifest, rows: list[dict[str, Any]], filter_: Filter
) -> None:
    for facet in Views(many).facets(filter_):
        left = filter_.without(facet.column)
        counts = Counter(rows[place][facet.column] for place in expected(rows, left, Order()))
        found = {value.value: value.rows for value in facet.values if value.rows}
        assert found == dict(counts), facet.column
        assert set(filter_.values.get(facet.column, ())) <= {value.value for value in facet.values}
        assert facet.others == 0


def test_many_values_are_counted_together(make: Make, make_row: Row, tmp_path: Path) -> None:
    rows = [make_row(number, aspect_bucket=f"{number % 20}:9") for number in range(100)]
    views = Views(make(tmp_path / "set", rows, previews=None))
    (facet,) = [facet for facet in views.facets(Filter()) if facet.column == "aspect_bucket"]
    assert len(facet.values) == 12
    assert facet.others == 100 - 12 * 5
    chosen = Filter(values={"aspect_bucket": ("19:9",)})
    (facet,) = [facet for facet in views.facets(chosen) if facet.column == "aspect_bucket"]
    assert "19:9" in [value.value for value in facet.values], "what is chosen stays in the list"


def test_ids_captions_and_hashes_are_not_offered(many: Manifest) -> None:
    assert not {"sample_id", "uri", "content_hash"} & set(Views(many).facets_of)
    assert Views(many).facets_of[:2] == ["status", "reason"]


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
        Views(many).positions(Filter(where=where), Order())
    assert "\n" not in str(caught.value)


def test_columns_that_have_no_order_or_no_values_are_named(many: Manifest) -> None:
    with pytest.raises(UserError, match=r"unknown column 'entropie'.*entropy"):
        Views(many).positions(Filter(), Order(by="entropie"))
    with pytest.raises(UserError, match=r"box is .*: sort by"):
        Views(many).positions(Filter(), Order(by="box"))
    with pytest.raises(UserError, match="entropy is double, not a text"):
        Views(many).positions(Filter(values={"entropy": ("1",)}), Order())


def test_a_saved_slice_has_the_rows_of_the_page(
    many: Manifest, tmp_path: Path, open_session: Callable[..., Session]
) -> None:
    session = open_session(many)
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
    assert shlex.split(page["command"])[-3] == page["where"]
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
