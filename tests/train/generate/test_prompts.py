import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests.schema import sample_id
from uhr.train.generate.prompts import Line, read_prompts, without_caption

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1
).filter(lambda text: text.strip() and not text.startswith("﻿"))
LINES = st.builds(
    lambda prompt, negative, seed, size: {
        "prompt": prompt.strip(),
        "negative": negative,
        "seed": seed,
        "width": size and size[0],
        "height": size and size[1],
    },
    WORDS,
    st.none() | WORDS,
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)),
)


def write(path, rows):
    """The same rows as .jsonl, .csv or .parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        types = {"seed": pa.int64(), "width": pa.int32(), "height": pa.int32()}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(LINES, min_size=1, max_size=5))
def test_every_form_reads_back_what_was_written(tmp_path, suffix, rows):
    read = read_prompts(write(tmp_path / f"prompts.{suffix}", rows))
    assert [placed.line for placed in read] == [Line(**row) for row in rows]


def test_a_text_file_has_a_prompt_per_line_and_only_blank_ones_are_passed_over(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa lake\r\n\r\n  # not a comment \n\t\nsea\u2028side, \x0b waves".encode())
    read = read_prompts(file)
    assert [placed.line.prompt for placed in read] == [
        "a lake",
        "# not a comment",
        "sea\u2028side, \x0b waves",
    ]
    assert [placed.where for placed in read] == [f"{file} line {n}" for n in (1, 3, 5)]


def test_the_captions_of_a_manifests_kept_rows_are_prompts_under_their_sample_ids(tmp_path, manifest_of):
    row = {"height": 20, "width": 20}
    captions = {"a.png": "a lake", "b.png": None, "c.png": " ", "d.png": "a hill"}
    images = [{**row, "name": name, "caption": caption} for name, caption in captions.items()]
    turned_down = {**row, "name": "e.png", "caption": "not kept", "status": "rejected"}
    manifest = manifest_of(tmp_path, [*images, turned_down])
    read = read_prompts(manifest.path)
    assert {placed.line.name: placed.line.prompt for placed in read} == {
        sample_id("a.png"): "a lake",
        sample_id("d.png"): "a hill",
    }
    assert without_caption(manifest.path) == 2
    file = tmp_path / "prompts.txt"
    file.write_text("a lake\n\n")
    assert without_caption(file) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"promt": "y"}',
            "a.jsonl line 2: unknown key 'promt': did you mean prompt",
        ),
        ("a.jsonl", '{"prompt": "x", "seed": -1}', "line 1: 'seed' .*-1"),
        ("a.jsonl", '{"prompt": "x", "seed": "one"}', "line 1: 'seed' .*'one'"),
        ("a.jsonl", '{"prompt": "x", "width": 512}', "line 1: width and height go together"),
        ("a.jsonl", '{"prompt": "  "}', "line 1: 'prompt' is empty"),
        ("a.jsonl", '{"seed": 1}', "line 1: 'prompt' is missing"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt"', "line 3 is not JSON"),
        ("a.jsonl", '["x"]', "line 1 is .*not an object"),
        ("a.csv", "prompt,sead\nx,1", "line 1: unknown column 'sead': did you mean seed"),
        ("a.csv", "name\nx", "line 1 has no column 'prompt'"),
        ("a.csv", "prompt,prompt\nx,y", "twice"),
        ("a.csv", "prompt,seed\nx,1\na, b, 2", "line 3 has 3 cells"),
        ("a.csv", 'prompt,seed\n"x"y,1', "line 2 is not CSV"),
        ("a.csv", "", "no column 'prompt'"),
        ("a.txt", "\n \n", "a.txt contains no prompt"),
        ("a.yaml", "x", "unknown form"),
        ("a.parquet", "x", "a.parquet cannot be read"),
    ],
)
def test_a_mistake_is_reported_with_file_line_and_value(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(tmp_path / name)
    assert error.value.fix
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a lake\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt line 2 is not UTF-8"):
        read_prompts(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["nowhere.txt", "folder"])
def test_a_file_that_is_not_there_and_a_folder_that_is_no_manifest_are_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=name):
        read_prompts(tmp_path / name)


def test_numbers_that_pandas_made_floats_of_are_read_and_its_not_a_number_is_nothing(tmp_path):
    table = pa.table({"prompt": ["a", "b"], "seed": [3.0, float("nan")]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [placed.line.seed for placed in read_prompts(tmp_path / "a.parquet")] == [3, None]
