import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uhr.cli import main
from uhr.manifests.manifest import Manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`uhr manifest ARGUMENTS` in this process: exit code, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        code = main(["manifest", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_show_prints_counts_funnel_quantiles_and_values(run: Run, manifest: Manifest) -> None:
    code, out, _ = run("show", manifest.path)
    assert code == 0
    assert "100 rows: 36 kept, 54 rejected, 10 failed" in out
    assert "not evaluated: no weights" in out
    assert "4:3" in out
    whole = "rules and counts of the whole run that the rows come from"
    assert whole not in out
    run("slice", manifest.path, "--sample", 3, "--out", manifest.path.parent / "three")
    assert whole in run("show", manifest.path.parent / "three")[1]
    answer = json.loads(run("show", manifest.path, "--json")[1])
    assert answer["counts"]["kept"] == 36
    assert answer["rules"][0]["left"] == 60
    assert {column["name"] for column in answer["numeric"]} >= {"entropy", "width"}


def test_slice_writes_once_and_says_so_the_second_time(run: Run, manifest: Manifest, tmp_path: Path) -> None:
    arguments = (
        "slice",
        manifest.path,
        "--where",
        "entropy >= 5",
        "--split",
        "a=0.5,b=0.5",
        "--out",
        tmp_path / "s",
    )
    code, out, _ = run(*arguments)
    assert code == 0
    assert "27 rows" in out
    assert "a " in out
    assert "b " in out
    before = (tmp_path / "s" / "manifest.json").read_bytes()
    code, out, _ = run(*arguments)
    assert code == 0
    assert "is already finished" in out
    assert (tmp_path / "s" / "manifest.json").read_bytes() == before
    code, _, error = run(*arguments, "--seed", 7)
    assert code == 1
    assert "already contains another manifest" in error


def test_slice_answers_in_json(run: Run, manifest: Manifest, tmp_path: Path) -> None:
    code, out, _ = run(
        "slice", manifest.path, "--status", "any", "--sample", 7, "--out", tmp_path / "s", "--json"
    )
    answer = json.loads(out)
    assert code == 0
    assert answer["counts"]["rows"] == 7
    assert answer["id"] == Manifest.open(tmp_path / "s").id


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--where", "entropy >"], "not an SQL condition"),
        (["--where", "read_csv('x') IS NULL"], "calls read_csv"),
        (["--sample", "1000"], "more than the 36 rows"),
        (["--split", "a=1,b=1"], "adds up to 2"),
        (["--status", "keep"], "did you mean kept"),
    ],
)
def test_a_wrong_slice_is_one_clear_line(
    arguments: list[str], says: str, run: Run, manifest: Manifest, tmp_path: Path
) -> None:
    code, _, error = run("slice", manifest.path, *arguments, "--out", tmp_path / "s")
    assert code == 1
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_verify_is_silent_about_nothing(run: Run, manifest: Manifest) -> None:
    code, out, _ = run("verify", manifest.path)
    assert code == 0
    assert "sound; 100 rows" in out
    (manifest.path / "previews" / "part-00000.parquet").unlink()
    code, out, _ = run("verify", manifest.path, "--pixels")
    assert code == 1
    assert "is missing" in out
    code, out, _ = run("verify", manifest.path, "--json")
    assert code == 1
    assert json.loads(out)["faults"][0]["check"] == "parts"


def test_lineage_prints_the_chain_and_names_lost_parents(
    run: Run, manifest: Manifest, tmp_path: Path
) -> None:
    top = ("--top", "entropy=62.5%", "--per", "format,mode")
    run("slice", manifest.path, "--where", "entropy >= 5", *top, "--out", tmp_path / "a")
    run("slice", tmp_path / "a", "--sample", 5, "--seed", 3, "--out", tmp_path / "b")
    code, out, _ = run("lineage", tmp_path / "b")
    lines = out.splitlines()
    assert code == 0
    details = [
        line.strip() for line in lines if re.match(r" +(source|stages|rules|versions|made|lic\w+): ", line)
    ]
    lines = [line for line in lines if line.strip() not in details]
    assert len(lines) == 3
    rows = Manifest.open(tmp_path / "b").table(["license"])["license"].to_pylist()
    counts = sorted(Counter(rows).items(), key=lambda one: (-one[1], one[0]))
    assert details.count(f"licences: {', '.join(f'{name} {count}' for name, count in counts)}") == 1
    assert details.count("stages: entropy 1") == details.count("rules: entropy (entropy >= 4)") == 1
    assert f"source: {manifest.root}" in details
    assert "sample 5" in lines[0]
    assert "seed 3" in lines[0]
    assert "where entropy >= 5" in lines[1]
    assert lines[1].endswith("top entropy=62.5% per format, mode")
    assert manifest.id[:16] in lines[2]
    assert "curate test" in lines[2]
    manifest.path.rename(tmp_path / "gone")
    links = json.loads(run("lineage", tmp_path / "b", "--json")[1])
    assert [link["found"] for link in links] == [True, True, False]
    assert links[2]["id"] == manifest.id


def test_what_is_no_manifest_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    for name in ("show", "verify", "lineage", "report"):
        code, _, error = run(name, tmp_path / "nowhere")
        assert code == 1
        assert "no manifest at" in error


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("set/inside", "is inside the manifest"),
        ("set/samples", "is inside the manifest"),
        ("set", "already contains another manifest"),
        ("mine", "already contains something else (notes.txt)"),
        ("stopped", "already contains something else (units)"),
        ("mine/notes.txt", "is a file"),
        ("mine/notes.txt/deeper", "cannot be written to"),
    ],
)
def test_a_slice_never_mixes_with_what_is_there(
    inside: str, says: str, run: Run, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "stopped" / "units").mkdir(parents=True)
    before = _tree(tmp_path)
    code, _, error = run("slice", manifest.path, "--out", tmp_path / inside)
    assert code == 1
    assert says in error
    assert error.count("\n") == 1
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("name", ["manifest.json", "samples/report.html", "other.html"])
def test_a_report_never_overwrites_a_part_of_a_manifest(
    name: str, run: Run, manifest: Manifest, tmp_path: Path
) -> None:
    before = _tree(tmp_path)
    code, _, error = run("report", manifest.path, "--out", manifest.path / name)
    assert code == 1
    assert f"is inside the manifest {manifest.path}: name a place outside it" in error
    assert _tree(tmp_path) == before
    assert run("report", manifest.path, "--out", manifest.path / "report.html")[0] == 0


def test_a_slice_into_what_cannot_be_written_to_is_one_line(run: Run, manifest: Manifest) -> None:
    code, _, error = run("slice", manifest.path, "--out", "/proc/x")
    assert code == 1
    assert "--out /proc/x cannot be written to" in error
    assert error.count("\n") == 1


def test_a_killed_slice_can_be_started_again(run: Run, manifest: Manifest, tmp_path: Path) -> None:
    arguments = ("slice", manifest.path, "--where", "entropy >= 5", "--out", tmp_path / "s")
    run(*arguments)
    whole = _tree(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    code, _, error = run("show", tmp_path / "s")
    assert code == 1
    assert "unfinished manifest: repeat the command that writes it\n" in error
    assert run(*arguments)[0] == 0
    again = _tree(tmp_path / "s")
    assert {name: data for name, data in again.items() if name.endswith("parquet")} == {
        name: data for name, data in whole.items() if name.endswith("parquet")
    }
