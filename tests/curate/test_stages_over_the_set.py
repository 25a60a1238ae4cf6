"""Stages that look at the whole set: their SQL, run on DuckDB over a relation called `live`."""

import math

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.curate.stages.sets.exact_duplicates import ExactDuplicatesStage
from uhr.curate.stages.sets.rank import RankStage

HASHES = st.lists(st.sampled_from(("aa", "bb", "cc", "dd", None)), min_size=1, max_size=30)
VALUES = st.lists(
    st.one_of(
        st.none(), st.floats(-5, 5), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3)
    ),
    min_size=1,
    max_size=30,
)


def run(stage, live: pa.Table) -> dict[str, dict]:
    """sample_id -> the columns that the stage adds, from rows in their own and in reversed order."""
    outcomes = []
    for rows in (live, live.take(pa.array(range(live.num_rows)[::-1]))):
        with duckdb.connect() as connection:
            connection.register("live", rows)
            found = connection.sql(stage.compute(connection.table("live"), None)).to_arrow_table()
        assert found.column_names == ["sample_id", *(column.name for column in stage.adds)]
        for column in stage.adds:
            assert found.schema.field(column.name).type == column.type
        outcomes.append({row.pop("sample_id"): row for row in found.to_pylist()})
    assert outcomes[0] == outcomes[1], "the order of the rows changes nothing"
    return outcomes[0]


def live(**columns) -> pa.Table:
    count = len(next(iter(columns.values())))
    uris = [f"{(7 * i) % 31:02d}/{i}.jpg" for i in range(count)]
    return pa.table({"sample_id": [f"s{i}" for i in range(count)], "uri": uris} | columns)


@given(HASHES)
def test_of_equal_bytes_the_first_by_uri_has_rank_zero(hashes) -> None:
    rows = live(content_hash=pa.array(hashes, pa.string()))
    found = run(ExactDuplicatesStage(), rows)
    for row in rows.to_pylist():
        same = sorted(r["uri"] for r in rows.to_pylist() if r["content_hash"] == row["content_hash"])
        result = found[row["sample_id"]]
        if row["content_hash"] is None:
            assert result == {"dup_group": None, "dup_rank": None}
        else:
            assert result["dup_rank"] == same.index(row["uri"])
            assert result["dup_group"] == (row["content_hash"] if len(same) > 1 else None)


@given(VALUES, st.booleans())
def test_rank_is_the_share_of_rows_that_are_better_ties_by_uri(values, descending) -> None:
    rows = live(score=pa.array([None if v is None else float(v) for v in values], pa.float64()))
    stage = RankStage(RankStage.Params(of="score", descending=descending))
    assert stage.needs == ("score",)
    found = run(stage, rows)
    valued = [r for r in rows.to_pylist() if r["score"] is not None and math.isfinite(r["score"])]
    order = sorted(valued, key=lambda r: (-r["score"] if descending else r["score"], r["uri"]))
    for place, row in enumerate(order):
        assert found[row["sample_id"]]["score_rank"] == pytest.approx(place / len(order), abs=1e-15)
    absent = set(found) - {r["sample_id"] for r in order}
    assert all(found[sample]["score_rank"] is None for sample in absent)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 1])
def test_a_rule_over_the_rank_keeps_exactly_that_share(share) -> None:
    rows = live(score=pa.array([float(i % 7) for i in range(200)]))
    found = run(RankStage(RankStage.Params(of="score")), rows)
    assert sum(row["score_rank"] < share for row in found.values()) == 200 * share


def test_a_whole_number_column_can_be_ranked() -> None:
    rows = live(width=pa.array([10, 30, 20], pa.int32()))
    found = run(RankStage(RankStage.Params(of="width")), rows)
    assert [found[f"s{i}"]["width_rank"] for i in range(3)] == pytest.approx([2 / 3, 0, 1 / 3])


def test_a_column_name_cannot_leave_its_quotes() -> None:
    rows = live(**{'od"d': pa.array([1.0, 2.0])})
    assert run(RankStage(RankStage.Params(of='od"d')), rows)["s1"] == {'od"d_rank': 0.0}
