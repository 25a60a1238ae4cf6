"""Each stage describes its own columns, and `docs/schema.md` has all of them."""

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from uhr.base.errors import UserError
from uhr.curate import schema_doc
from uhr.curate.config import load
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.stages import NAMES, example, stage_adding
from uhr.manifests.schema import COLUMNS, Column
from uhr.manifests.verify.checks import outside_range

ROOT = Path(__file__).resolve().parents[2]
OF_STAGES = [(name, column) for name in NAMES for column in example(name).adds]


def test_the_page_about_the_schema_is_current() -> None:
    page = (ROOT / schema_doc.FILE).read_text(encoding="utf-8")
    assert page == schema_doc.render(), "run: python -m uhr.curate.schema_doc"


def test_the_generator_writes_the_page_it_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    schema_doc.main()
    assert schema_doc.FILE.read_text(encoding="utf-8") == schema_doc.render()


def test_the_page_has_every_column_once() -> None:
    found = Counter(re.findall(r"^\| `(\w+)` \|", schema_doc.render(), re.MULTILINE))
    assert found == dict.fromkeys([*COLUMNS, *(c.name for _, c in OF_STAGES if c.name not in COLUMNS)], 1)


def test_a_column_of_a_stage_says_what_it_means_and_which_stage_adds_it() -> None:
    for name, column in OF_STAGES:
        assert column.meaning, column.name
        assert column.stage == name, column.name
        assert Column.from_field(column.field()) == column
        if column.name in COLUMNS:
            assert COLUMNS[column.name] == column


def test_every_stated_range_of_a_number_is_one_that_verify_can_check() -> None:
    numeric = [c for _, c in OF_STAGES if pa.types.is_floating(c.type) or pa.types.is_integer(c.type)]
    stated = [column for column in numeric if column.range and not column.range.startswith("about")]
    assert len(stated) > 20
    assert all(outside_range(column) for column in stated)


def test_a_rule_over_the_column_of_a_stage_that_is_not_in_the_pipeline_names_the_stage() -> None:
    assert stage_adding("blockiness") == "sharpness"
    assert stage_adding("content_hash") == "decode"
    assert stage_adding("status") is None
    for column, stage in (("license_problem", "licence"), ("dup_of", "near_duplicates")):
        with pytest.raises(UserError, match=f"no stage adds column '{column}': put stage '{stage}' into"):
            CurationPlan.of(load("quickstart", [f"rules.own={column} IS NULL"]))
