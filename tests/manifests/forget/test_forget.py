"""`uhr manifest forget`: samples leave every manifest of their chain, exports and reports."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.cli import main
from uhr.manifests import places
from uhr.manifests.export import FORMATS, format_named
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.job import ExportRequest, export
from uhr.manifests.forget import exports, job
from uhr.manifests.forget.targets import ForgetRequest
from uhr.manifests.manifest import Manifest
from uhr.manifests.report import write_report
from uhr.manifests.schema import schema_of
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.sets import difference, union
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.selection.tombstones import tombstones_of
from uhr.manifests.verify.audit import audit
from uhr.manifests.verify.verification import verify

from ..conftest import COLUMNS

Make = Callable[..., Manifest]

NEAR = ("near_group",)


GONE = {"b.jpg", "c.jpg"}


def _everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes()


def _check(chain: dict[str, Manifest], before: dict[str, list[dict[str, Any]]]) -> None:
    """Every manifest has exactly its other rows, verifies, and is marked as redacted."""
    for name, manifest in chain.items():
        again = Manifest.open(manifest.path)
        expected = [row for row in before[name] if row["uri"] not in GONE]
        assert again.table().to_pylist() == expected, name
        result = verify(manifest.path, pixels=True)
        assert result.faults == [], name
        assert any(note.startswith("redacted ") for note in result.notes), name
        assert again.info.redactions[-1].before == manifest.id
        shown = again.previews([row["sample_id"] for row in before[name]])
        assert set(shown) <= {row["sample_id"] for row in expected}
        assert not list(manifest.path.glob(".forget-*"))


@pytest.mark.parametrize("record", ["manifest.json", "export.json"])
def test_a_record_of_the_chain_that_cannot_be_read_is_named(
    record: str, make: Make, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it describes would keep the samples, and the command would say that they are gone."""
    top = make(tmp_path / "set", rows)
    if record == "manifest.json":
        slice_manifest(top, tmp_path / "child", SliceOptions())
    else:
        export(ExportRequest(top, tmp_path / "child", format_named("folder")(top), ExportOptions()))
    write_json(tmp_path / "page/manifest.json", {"name": "a web page", "icons": []})
    (tmp_path / "child" / record).write_bytes((tmp_path / "child" / record).read_bytes()[:-3])
    assert main(["manifest", "forget", str(top.path), "--ids", rows[0]["sample_id"]]) == 1
    line = capsys.readouterr().err
    assert f"{tmp_path}/child/{record} names one of these manifests, and " in line
    assert line.count(str(tmp_path)) == 1, "the place is said once"
    assert Manifest.open(top.path).id == top.id, "nothing was changed"
    shutil.rmtree(tmp_path / "child")
    assert main(["manifest", "forget", str(top.path), "--ids", rows[0]["sample_id"]]) == 0


def test_a_sample_leaves_the_whole_chain(
    chain: dict[str, Manifest], rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: manifest.table().to_pylist() for name, manifest in chain.items()}
    bytes_of_b = (tmp_path / "source/b.jpg").read_bytes()
    preview = chain["set"].previews([rows[1]["sample_id"]])
    for name, report in (("stored", "pages/of stored.html"), ("other", "other.html")):
        (tmp_path / report).parent.mkdir(exist_ok=True)
        write_report(chain[name], tmp_path / report)
    untouched = (tmp_path / "other.html").read_bytes()
    (tmp_path / "pages/notes.html").write_text("<title>mine</title>")
    assert any(bytes_of_b in data for _, data in _everything(tmp_path / "stored"))
    call = ["manifest", "forget", str(chain["stored"].path), "--ids", rows[2]["sample_id"], "--json"]
    assert main([*call, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {Path(each["path"]).name: each["rows"] for each in planned["manifests"]} == {
        "set": 3,
        "stored": 3,
        "inner": 3,
        "other": 0,
    }
    assert [each["pixels"] for each in planned["manifests"]] == [0, 1, 0, 0]
    assert {name: Manifest.open(one.path).id for name, one in chain.items()} == {
        name: one.id for name, one in chain.items()
    }, "a dry run changes nothing"
    assert main([*call, "--reason", "on request"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["samples"] == 3, "the patch, its image, and the copy"
    page = tmp_path / "pages/of stored.html"
    assert done["reports"] == planned["reports"] == [str(page)]
    assert page.read_bytes() == write_report(Manifest.open(tmp_path / "stored"), tmp_path / "x").read_bytes()
    assert (tmp_path / "other.html").read_bytes() == untouched, "it has none of the samples"
    _check(chain, before)
    for folder in ("set", "stored", "inner", "other", "pages"):
        for name, data in _everything(tmp_path / folder):
            assert bytes_of_b not in data, name
            assert all(jpeg not in data for jpeg in preview.values()), name
            assert rows[1]["sample_id"].encode() not in data, name
    assert (tmp_path / "source/b.jpg").exists(), "sources are the user's"
    info = Manifest.open(tmp_path / "set").info
    assert info.redactions[0].reason == "on request"
    assert set(tombstones_of(rows[1])) <= set(info.redactions[0].tombstones)
    # a second time there is nothing to forget
    assert main(call) == 1
    assert f"has no sample {rows[2]['sample_id']}: name the id" in capsys.readouterr().err


@pytest.mark.parametrize("kill", ["replace", "tidy", "report", "exports", "journal"])
def test_a_kill_at_any_step_is_finished_by_the_same_command(
    kill: str, chain: dict[str, Manifest], rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    before = {name: manifest.table().to_pylist() for name, manifest in chain.items()}
    folder = tmp_path / "tars"
    export(ExportRequest(chain["stored"], folder, format_named("webdataset")(chain["stored"])))
    request = ForgetRequest(url="https://example.org/b")
    owner, name = {
        "replace": (places, "replace"),
        "tidy": (places, "tidy"),
        "report": (__import__("uhr.manifests.report", fromlist=["x"]), "write_report"),
        "exports": (exports, "_card"),
        "journal": (places.Path, "unlink"),
    }[kill]
    real, calls = getattr(owner, name), []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if kill == "journal":
            if arguments[0].name == "forget.json":
                raise KeyboardInterrupt
            return real(*arguments, **options)
        if len(calls) == (2 if kill in ("replace", "tidy") else 1):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        job.forget(chain["set"].path, request)
    monkeypatch.setattr(owner, name, real)
    assert any("is not finished" in note for note in verify(chain["set"].path).notes)
    with pytest.raises(
        UserError,
        match=r"was not finished.*finish it first with: uhr manifest forget .*/set --url https://example.org/b",
    ):
        job.forget(chain["set"].path, ForgetRequest(author="A"))
    done = job.forget(chain["set"].path, request)
    assert done.samples == 3
    _check(chain, before)
    assert not any("not finished" in note for note in verify(chain["set"].path).notes)
    for redacted in chain.values():
        assert len(Manifest.open(redacted.path).info.redactions) == 1
    assert not (chain["set"].path / "forget.json").exists()
    assert not exports.matching(folder, frozenset(done.ids))


def test_a_folder_that_is_named_is_searched_to_its_end(
    chain: dict[str, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = tmp_path / "far" / "1/2/3/4/5/6" / "copy"
    shutil.copytree(chain["set"].path, far)
    request = ["--where", "uri = 'b.jpg'", "--dry-run", "--json"]
    command = ["manifest", "forget", str(chain["set"].path), *request]
    for more, found in (([], False), (["--in", str(tmp_path / "far")], True)):
        assert main([*command, *more]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (str(far) in [each["path"] for each in answer["manifests"]]) == found


def test_copies_and_slices_of_the_same_content_lose_it_too(
    make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path / "set", rows)
    for name in ("one", "two"):
        slice_manifest(made, tmp_path / name, SliceOptions(where="uri < 'd'"))
    shutil.copytree(tmp_path / "set", tmp_path / "backups/set")
    done = job.forget(made.path, ForgetRequest(url="https://example.org/b"))
    places_ = [tmp_path / name for name in ("set", "backups/set", "one", "two")]
    assert sorted(change.path for change in done.manifests) == sorted(map(str, places_))
    for place in places_:
        assert GONE.isdisjoint(Manifest.open(place).table(["uri"])["uri"].to_pylist()), place
        assert verify(place).faults == []


def test_a_chain_beside_it_that_has_the_same_names_is_not_touched(
    make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    foreign = make(
        tmp_path / "foreign",
        [row | {"content_hash": row["content_hash"][::-1]} for row in rows],
        root="/other",
    )
    job.forget(foreign.path, ForgetRequest(url="https://example.org/f"))
    child = slice_manifest(Manifest.open(foreign.path), tmp_path / "child", SliceOptions())
    made = make(tmp_path / "set", rows)
    job.forget(made.path, ForgetRequest(url="https://example.org/a"))
    assert Manifest.open(child.path).id == child.id
    assert Manifest.open(made.path).info.counts["rows"] == 6


def test_every_row_of_a_slice_can_go(make: Make, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    made = make(tmp_path / "set", rows)
    for what in ("rows", "pixels", "none"):
        slice_manifest(made, tmp_path / what, SliceOptions(where="uri = 'b.jpg'", materialise=what))
    job.forget(made.path, ForgetRequest(url="https://example.org/b"))
    for what in ("rows", "pixels", "none"):
        assert Manifest.open(tmp_path / what).table().num_rows == 0, what
        assert verify(tmp_path / what).faults == [], what
        audited = audit(Manifest.open(tmp_path / what), tmp_path / f"{what}.parquet")
        assert audited.lines == pq.read_table(audited.path).num_rows == 0


def test_one_command_at_a_time_changes_a_chain(
    chain: dict[str, Manifest], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    left = tmp_path / "set/.forget-killed/new/samples"
    left.mkdir(parents=True)
    request = ForgetRequest(url="https://example.org/b")
    for name in ("set", "other"):
        with places.locked(str(chain[name].path)), pytest.raises(UserError, match="another run is at work"):
            job.forget(chain["set"].path, request)
    assert Manifest.open(chain["set"].path).id == chain["set"].id
    job.forget(chain["set"].path, request)
    assert not left.exists(), "it may have what a later command forgets"


def test_an_id_that_is_not_there_is_not_passed_over(
    chain: dict[str, Manifest], rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["manifest", "forget", str(chain["set"].path), "--ids", f"{rows[0]['sample_id']},{'0' * 32}"]
    assert main(call) == 1
    assert f"has no sample {'0' * 32}" in capsys.readouterr().err
    assert Manifest.open(chain["set"].path).id == chain["set"].id


def test_an_unfinished_export_is_named_first(chain: dict[str, Manifest], tmp_path: Path) -> None:
    write_json(tmp_path / "tars/.export/plan.json", {"plan": "x", "parent": chain["stored"].id})
    with pytest.raises(UserError, match="tars contains an unfinished export"):
        job.forget(chain["set"].path, ForgetRequest(url="https://example.org/b"))


def test_a_slice_by_reference_elsewhere_does_not_show_it(
    make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path / "set", rows)
    for name, where in (("first", "uri <= 'b.jpg'"), ("last", "uri >= 'e.jpg'")):
        far = tmp_path / "1/2/3/4/5/6" / name
        slice_manifest(made, far, SliceOptions(where=where, materialise="none")).table()
    job.forget(made.path, ForgetRequest(where="uri = 'b.jpg' OR uri = 'f.jpg'"))
    for name in ("first", "last"):
        with pytest.raises(UserError, match=r"had before samples were forgotten: make it anew"):
            Manifest.open(tmp_path / "1/2/3/4/5/6" / name)


@pytest.mark.parametrize("names", [("train", "train-hard"), ("a", "a-0")])
def test_images_that_are_left_are_counted_in_their_split(
    names: tuple[str, str], make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path / "set", [row for row in rows if row.get("parent_id") is None])
    split = slice_manifest(made, tmp_path / "split", SliceOptions(split={names[0]: 0.5, names[1]: 0.5}))
    out = tmp_path / "tars"
    export(ExportRequest(split, out, format_named("webdataset")(split)))
    job.forget(made.path, ForgetRequest(author="A"))
    left = Manifest.open(split.path).table(["split"])["split"].to_pylist()
    assert json.loads((out / "export.json").read_text())["images"] == dict(Counter(left))


@pytest.mark.parametrize("name", FORMATS)
def test_exports_lose_the_samples_and_keep_the_others(
    name: str, chain: dict[str, Manifest], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    stored = chain["stored"]
    out = tmp_path / "export"
    export(ExportRequest(stored, out, format_named(name)(stored), ExportOptions()))
    done = job.forget(stored.path, ForgetRequest(hash=rows[1]["content_hash"]))
    assert list(done.exports) == [str(out)]
    gone = [row["sample_id"].encode() for row in rows if row["uri"] in GONE]
    for file, data in _everything(out):
        assert not any(each in data or each.decode() in file for each in gone), file
    record = json.loads((out / "export.json").read_text())
    assert record["images"] == {"train": 4}
    assert record["redactions"]
    kept = [row["sample_id"] for row in rows if row["uri"] not in GONE]
    text = " ".join(file for file, _ in _everything(out))
    if name == "webdataset":
        with tarfile.open(next(out.glob("*.tar"))) as tar:
            text = " ".join(tar.getnames())
    elif name == "hf":
        text = " ".join(pq.read_table(out / "data")["sample_id"].to_pylist())
    assert all(each in text for each in kept)


@pytest.mark.parametrize(
    ("request_", "samples"),
    [
        ({"author": "A"}, {"e.jpg"}),
        ({"where": "uri = 'a.jpg' OR uri = 'd.jpg'"}, {"a.jpg", "d.jpg"}),
        ({"url": "f.jpg"}, {"f.jpg"}),
    ],
)
def test_samples_are_named_in_several_ways(
    request_: dict[str, Any], samples: set[str], chain: dict[str, Manifest], tmp_path: Path
) -> None:
    job.forget(chain["set"].path, ForgetRequest(**request_))
    left = set(Manifest.open(chain["set"].path).table(["uri"])["uri"].to_pylist())
    assert left == {f"{name}.jpg" for name in "abcdef"} - samples


def test_other_rows_of_an_author_in_parents_are_named_with_the_command_that_forgets_them(
    chain: dict[str, Manifest], tmp_path: Path, uhr: Callable[..., tuple[int, str, str]]
) -> None:
    other = chain["other"].path
    for flag in ("--dry-run", "--json"):
        code, printed, errors = uhr("manifest", "forget", other, "--author", "B", flag)
        assert code == 0
        done, total = errors.splitlines()[-1].split()[1].split("/")
        assert done == total != "0", "the last line of the progress"
        if flag == "--dry-run":
            line = next(line for line in printed.splitlines() if "other rows" in line)
            assert line.startswith(f"4 other rows of the same author in {tmp_path / 'set'} are left")
    done = json.loads(printed)
    assert done["samples"] == 2
    (left,) = done["remaining"]
    assert (left["path"], left["rows"], left["option"]) == (str(tmp_path / "set"), 4, "author")
    assert left["command"] == f"uhr manifest forget {tmp_path / 'set'} --author B"
    assert uhr(*shlex.split(left["command"])[1:])[0] == 0
    for name in ("set", "stored", "inner", "other"):
        authors = Manifest.open(tmp_path / name).table(["author"])["author"].to_pylist()
        assert set(authors) <= {"A"}, name


def test_an_author_that_only_parents_have_is_no_dead_end(chain: dict[str, Manifest], tmp_path: Path) -> None:
    made = slice_manifest(chain["stored"], tmp_path / "few", SliceOptions(where="author = 'A'"))
    says = (
        rf"few has no such sample, and {tmp_path}/set has 6: .*uhr manifest forget {tmp_path}/set --author B"
    )
    with pytest.raises(UserError, match=says):
        job.forget(made.path, ForgetRequest(author="B"))


def test_caches_of_this_machine_are_listed(
    s3: Any,
    make: Make,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uhr: Callable[..., tuple[int, str, str]],
) -> None:
    address = f"s3://{s3.bucket}/set"
    top = make(tmp_path / "set", rows)
    stored = slice_manifest(top, address, SliceOptions(materialise="pixels"))
    stored.source.open(stored.table().to_pylist()[0]).read()
    (tmp_path / "home/ada/.cache/uhr").mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home/me")
    call = ("manifest", "forget", address, "--url", "https://example.org/b")
    planned = json.loads(uhr(*call, "--dry-run", "--json")[1])
    assert len(planned["caches"]) == 2, "the copy, and the pixels that were read"
    assert all(Path(folder).is_dir() for folder in planned["caches"])
    assert planned["other_caches"] == [str(tmp_path / "home/ada/.cache/uhr")]
    printed = uhr(*call)[1]
    for folder in planned["caches"]:
        assert f"cache removed: {folder}" in printed
        assert not Path(folder).exists()
    assert "caches on other machines are not reached" in printed


def test_near_duplicates_go_too(make: Make, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    import pyarrow as pa

    from uhr.manifests.schema import Column

    schema = schema_of([*COLUMNS.values(), Column("near_group", pa.string(), "")])
    group = rows[0]["sample_id"]
    near = [row | {"near_group": group if row["uri"] in ("a.jpg", "f.jpg") else None} for row in rows]
    made = make(tmp_path / "set", near, schema=schema)
    job.forget(made.path, ForgetRequest(ids=(group,)))
    left = set(Manifest.open(made.path).table(["uri"])["uri"].to_pylist())
    assert left == {"b.jpg", "c.jpg", "d.jpg", "e.jpg"}


def test_checkpoints_that_were_trained_on_a_sample_are_named(
    chain: dict[str, Manifest], rows: list[dict[str, Any]], tmp_path: Path, capsys: Any
) -> None:
    for run, name in (("run-a", "inner"), ("run-b", "other"), ("run-c", "inner"), ("run-d", "inner")):
        folder = tmp_path / run / "checkpoints/step-00000001"
        folder.mkdir(parents=True)
        write_json(folder / "checkpoint.json", {"data": [{"id": "x", "manifest_id": chain[name].id}]})
    damaged = tmp_path / "run-c/checkpoints/step-00000001/checkpoint.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (tmp_path / "run-d/checkpoints/step-00000001/checkpoint.json").write_text('{"step": 1}')
    call = ["manifest", "forget", str(chain["set"].path), "--url", "https://example.org/b"]
    assert main([*call, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"run-a/checkpoints/step-00000001", printed)
    assert not re.search(r"run-[bd]", printed)
    assert f"its record could not be read, so it may have seen them: {damaged.parent}\n" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no condition of what to forget"),
        (["--author", "A", "--url", "x"], "several conditions"),
        (["--author", "nobody"], "has no such sample"),
        (["--where", "uri = 'b.jpg'", "--in", "nowhere"], "--in nowhere is no folder"),
        (["--where", "author"], "is VARCHAR, not true or false"),
        (["--where", "1); DELETE FROM x"], "is not an SQL condition"),
    ],
)
def test_wrong_requests_are_one_line(
    options: list[str], says: str, chain: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", "forget", str(chain["set"].path), *options]) == 1
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


def test_a_union_with_an_older_copy_does_not_bring_a_sample_back(
    make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path / "set", rows)
    old = make(tmp_path / "1/2/3/4/5/6/old", rows, root=made.root)
    job.forget(made.path, ForgetRequest(url="https://example.org/b"))
    both = union([Manifest.open(made.path), old], tmp_path / "both")
    assert set(both.table(["uri"])["uri"].to_pylist()) == {f"{name}.jpg" for name in "adef"}
    assert verify(both.path).faults == []


def test_a_difference_does_not_bring_a_sample_back(
    make: Make, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make(tmp_path / "set", rows)
    old = make(tmp_path / "1/2/3/4/5/6/old", rows, root=made.root)
    less = slice_manifest(made, tmp_path / "less", SliceOptions(where="uri < 'f'"))
    job.forget(made.path, ForgetRequest(url="https://example.org/b"))
    rest = difference(old, Manifest.open(less.path), tmp_path / "rest")
    assert rest.table(["uri"])["uri"].to_pylist() == ["f.jpg"]
    assert rest.info.redactions


def test_a_blocklist_of_the_manifest_knows_the_forgotten_bytes(
    chain: dict[str, Manifest], rows: list[dict[str, Any]]
) -> None:
    from uhr.curate.measures.blocklists import Blocklist

    folder = chain["set"].path
    with pytest.raises(UserError, match="has no hash"):
        Blocklist.read([str(folder / "manifest.json")])
    job.forget(folder, ForgetRequest(url="https://example.org/b"))
    listed = Blocklist.read([str(folder / "manifest.json")])
    matches = [listed.match(bytes, row["content_hash"], int, 4) for row in rows]
    assert [match is not None for match in matches] == [row["uri"] in GONE for row in rows]
