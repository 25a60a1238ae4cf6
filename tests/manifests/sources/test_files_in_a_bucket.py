"""Archives, tables and data sets in a bucket: the same items and bytes as of a folder, read by ranges."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import boto3
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.base import check_no_overlap
from uhr.manifests.sources.files import ranges
from uhr.pixels.types import PixelFault


@pytest.fixture(scope="module")
def images(forge) -> list[bytes]:
    return [forge.encode(forge.image(60 + n, 40, seed=n), "JPEG", quality=95) for n in range(5)]


@pytest.fixture
def upload(s3, tmp_path):
    """Copy a folder below `tmp_path` into the bucket, and return its address."""

    def call(name: str) -> str:
        client = boto3.client("s3")
        for file in (tmp_path / name).rglob("*"):
            if file.is_file():
                client.upload_file(str(file), s3.bucket, file.relative_to(tmp_path).as_posix())
        s3.requests.clear()
        s3.ranges.clear()
        return f"s3://{s3.bucket}/{name}"

    return call


def tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _webdataset(folder: Path, images: list[bytes]) -> None:
    for shard in range(3):
        files = {}
        for n, data in enumerate(images[:2]):
            facts = json.dumps({"caption": f"image {n}", "url": f"https://e.org/{n}.jpg"}).encode()
            files |= {f"{n:09d}.jpg": data, f"{n:09d}.json": facts, f"{n:09d}.cls": b"1"}
        tar(folder / f"s-{shard:03d}.tar", files | {f"é% {'x' * 120}.jpg": images[0]})
        pq.write_table(pa.table({"key": ["0"]}), folder / f"s-{shard:03d}.parquet")


def _archives(folder: Path, images: list[bytes]) -> None:
    tar(folder / "deep.TAR" / "a.tar", {"in/0.jpg": images[0], "in/0.txt": b"a lake"})
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as archive:
            archive.writestr("0.jpg", images[0] + bytes(100_000))
            archive.writestr("é%.jpg", images[1])
            archive.writestr("é%.txt", b"a hill")
    (folder / "cut.tar").write_bytes((folder / "deep.TAR" / "a.tar").read_bytes()[:1500])


def _parquet(folder: Path, images: list[bytes]) -> None:
    folder.mkdir()
    for part in range(2):
        cells = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)] + [None]
        columns = {"image": cells, "text": list("abcdef"), "width": range(60, 66)}
        pq.write_table(
            pa.table({k: pa.array(list(v)) for k, v in columns.items()}),
            folder / f"part-{part}.parquet",
            row_group_size=4,
        )


def _paths(folder: Path, images: list[bytes]) -> None:
    (folder / "photos").mkdir(parents=True)
    for n, data in enumerate(images):
        (folder / "photos" / f"{n} é%.jpg").write_bytes(data)
    names = ["photos/0 é%.jpg", "photos/gone.jpg", None, "photos/./1 é%.jpg", "photos/0 é%.jpg"]
    pq.write_table(pa.table({"path": names, "caption": list("abcde")}), folder / "list.parquet")


def _metadata(folder: Path, images: list[bytes]) -> None:
    (folder / "size_4096").mkdir(parents=True)
    for n, data in enumerate(images[:2]):
        (folder / "size_4096" / f"{n}.jpg").write_bytes(data)
    (folder / "size_4096" / "1.txt").write_text("a hill")
    rows = [{"file_name": "0.jpg", "text": "a lake"}, {"file_name": "9.jpg", "text": "nothing"}]
    (folder / "size_4096" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


LAYOUTS = {
    "webdataset": (_webdataset, "webdataset:{}"),
    "webdataset in braces": (_webdataset, "webdataset:{}/s-{{000..001}}.tar"),
    "webdataset in a pattern": (_webdataset, "webdataset:{}/s-00[12].tar"),
    "one shard": (_webdataset, "webdataset:{}/s-001.tar"),
    "archives": (_archives, "archives:{}"),
    "parquet": (_parquet, "parquet:{}"),
    "parquet in a pattern": (_parquet, "parquet:{}/part-*.parquet"),
    "one table": (_parquet, "parquet:{}/part-1.parquet"),
    "parquet of paths": (_paths, "parquet:{}"),
    "Aesthetic-4K": (_metadata, "{}"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_in_a_bucket_has_the_items_and_bytes_of_its_copy(upload, images, tmp_path, name):
    make, text = LAYOUTS[name]
    make(tmp_path / "set", images)
    here, there = (sources.parse(text.format(place)) for place in (tmp_path / "set", upload("set")))
    ours, theirs = here.list(), there.list()
    compared = [n for n in ours.items.schema.names if n not in ("source_version", "sidecar_versions")]
    faultless = [n for n in compared if n != "fault_words"]
    assert theirs.items.select(faultless) == ours.items.select(faultless)
    counts = {name: count for name, count in ours.not_opened.items() if count}
    assert (theirs.not_opened, len(theirs.unreadable)) == (counts, len(ours.unreadable))
    assert ours.items.num_rows > 0
    again = sources.build(there.origin, "manifest.json"), pickle.loads(pickle.dumps(there))
    for row, local in zip(theirs.items.to_pylist(), ours.items.to_pylist(), strict=True):
        names = [(row["uri"], row["source_version"], local["source_version"])]
        each = (row["sidecar_versions"] or "").split(","), (local["sidecar_versions"] or "").split(",")
        names += zip(row["sidecars"] or (), *each, strict=False)
        for uri, version, local_version in names:
            expected = _read(here, uri, local_version)
            for source in (there, *again):
                assert _read(source, uri, version) == expected
                assert _read(source, uri, None) == expected


def _read(source, uri: str, version: str | None) -> object:
    """The bytes of an item by several ways, or the kind of its fault."""
    blob = source.open({"uri": uri, "source_version": version})
    try:
        data = blob.read()
        assert blob.size == len(data)
        assert blob.at(10, 7) == data[10:17]
        assert blob.at(len(data) - 3, 10) == data[-3:], "no byte of the next member"
        if uri.endswith("jpg"):
            assert blob.header().height == 40
        blob.check_unchanged()
    except PixelFault as fault:
        return fault.kind
    return data


def test_a_name_in_a_bucket_may_look_like_a_pattern(upload, images, tmp_path):
    odd = "1 [a]? #50% ü"
    _webdataset(tmp_path / odd / "wds", images)
    _parquet(tmp_path / odd / "tables", images)
    tar(tmp_path / odd / "{0..2}.tar", {"0.jpg": images[0]})
    (tmp_path / odd / "list.txt").write_text("https://e.org/a?b.jpg#c")
    (tmp_path / odd.replace("?", "x")).mkdir()
    tar(tmp_path / odd.replace("?", "x") / "of the pattern.tar", {"9.jpg": images[0]})
    upload(odd.replace("?", "x"))
    place = upload(odd)
    below = f"{odd.replace('%', '%25')}/"
    for text, count, first in (
        (f"webdataset:{place}/wds", 9, f"{below}wds/s-000.tar/000000000.jpg"),
        (f"archives:{place}/{{0..2}}.tar", 1, f"{below}{{0..2}}.tar/0.jpg"),
        (f"parquet:{place}/tables", 12, f"{below}tables/part-0.parquet/00000000"),
        (f"urls:{place}/list.txt", 1, "https://e.org/a?b.jpg#c"),
    ):
        source = sources.parse(text)
        items = source.list().items.to_pylist()
        assert (len(items), items[0]["uri"]) == (count, first)
        if not source.fetches:
            assert source.open({"uri": first}).read() == images[0]


@pytest.mark.parametrize("name", ["a*", "a?", "a[1]", "a::b"])
def test_a_data_set_whose_path_is_a_pattern_is_refused(tmp_path, images, name):
    """`datasets` would read those of other folders."""
    (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / name / "train" / "0.jpg").write_bytes(images[0])
    with pytest.raises(UserError, match="a pattern to the package datasets: rename the folder"):
        sources.parse(f"hf:{tmp_path / name}").list()


@pytest.mark.parametrize("form", ["save_to_disk", "dict", "parquet"])
def test_a_data_set_in_a_bucket_is_copied_once(upload, s3, images, tmp_path, monkeypatch, form):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "hf")
    cells = {"image": [{"bytes": data, "path": None} for data in images], "text": list("abcde")}
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    made = datasets.Dataset.from_dict(cells, features=datasets.Features(features))
    if form == "parquet":
        (tmp_path / "set" / "data").mkdir(parents=True)
        made.to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
    else:
        (datasets.DatasetDict({"train": made}) if form == "dict" else made).save_to_disk(tmp_path / "set")
    source = sources.parse(f"hf:{upload('set')}")
    rows = source.list().items.to_pylist()
    assert [json.loads(row["given"])["text"] for row in rows] == list("abcde")
    fetched = [
        path for method, path in s3.requests if method == "GET" and path.endswith((".arrow", "parquet"))
    ]
    assert len(fetched) == 1
    for opened in (source, pickle.loads(pickle.dumps(source)), sources.build(source.origin, "m.json")):
        assert [opened.open(row).read() for row in rows] == images
    assert [p for m, p in s3.requests if m == "GET" and p.endswith((".arrow", "parquet"))] == fetched
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="set/README.md", Body=b"new")
    with pytest.raises(PixelFault, match="its data set in the bucket is another one now"):
        sources.build(source.origin, "m.json").open(rows[0]).read()


def test_listing_large_members_reads_only_blocks_with_headers(upload, s3, images, tmp_path):
    tar(tmp_path / "set" / "s.tar", {f"{n}.jpg": images[0] + bytes(500_000) for n in range(8)})
    source = sources.parse(f"webdataset:{upload('set')}")
    rows = source.list().items.to_pylist()
    read = [last - first + 1 for _, first, last in s3.ranges]
    assert len(rows) == 8
    assert max(read) <= ranges.FIRST
    assert len(read) <= 8 + 1
    assert len(s3.requests) == len(read) + 1, "and one request lists the shards"


def test_listing_small_members_is_a_few_requests(upload, s3, images, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "MOST", 256 * 1024)
    files = {f"{n}.{end}": bytes(3000) for n in range(300) for end in ("jpg", "txt")}
    tar(tmp_path / "set" / "s.tar", files)
    size = (tmp_path / "set" / "s.tar").stat().st_size
    assert sources.parse(f"webdataset:{upload('set')}").list().items.num_rows == 300
    read = [last - first + 1 for _, first, last in s3.ranges]
    assert read[:3] == [64 * 1024, 128 * 1024, 256 * 1024], "twice as many bytes as before"
    assert max(read) == 256 * 1024, "and no more than that are in memory"
    assert sum(read) <= size + 10
    assert len(read) <= size // (256 * 1024) + 4


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_member_is_one_request_for_its_own_bytes(upload, s3, images, tmp_path, form):
    data = images[0] + bytes(50_000)
    (tmp_path / "set").mkdir()
    if form == "tar":
        tar(tmp_path / "set" / "a.tar", {"0.jpg": bytes(70_000), "1.jpg": data, "2.jpg": bytes(70_000)})
    else:
        with zipfile.ZipFile(tmp_path / "set" / "a.zip", "w") as archive:
            for name, each in (("0.jpg", bytes(70_000)), ("1.jpg", data), ("2.jpg", bytes(70_000))):
                archive.writestr(name, each)
    source = sources.parse(f"archives:{upload('set')}")
    row = source.list().items.to_pylist()[1]
    s3.requests.clear()
    s3.ranges.clear()
    blob = pickle.loads(pickle.dumps(source)).open(row)
    assert (blob.header().width, blob.read()) == (60, data)
    (head, whole) = s3.ranges
    assert len(s3.requests) == 2
    assert head[2] - head[1] + 1 == 16 * 1024
    file = (tmp_path / "set" / f"a.{form}").read_bytes()
    assert file[whole[1] : whole[2] + 1] == data


def test_rows_of_a_table_are_read_on_from_the_last_one(upload, s3, images, tmp_path):
    _parquet(tmp_path / "set", images)
    source = sources.parse(f"parquet:{upload('set')}/part-0.parquet")
    rows = source.list().items.to_pylist()
    listed = sum(last - first + 1 for _, first, last in s3.ranges)
    assert listed <= 2 * (tmp_path / "set" / "part-0.parquet").stat().st_size
    assert [source.open(row).read() for row in rows[:5]] == images
    before = len(s3.ranges)
    assert [source.open(row).read() for row in rows[:5]] == images
    assert len(s3.ranges) == before, "what was read is kept"


def test_a_shard_that_changed_or_is_gone_fails_its_rows_alone(upload, s3, images, tmp_path):
    _webdataset(tmp_path / "set", images)
    (tmp_path / "set" / "sub").mkdir()
    _parquet(tmp_path / "set" / "sub" / "t", images)
    address, client = upload("set"), boto3.client("s3")
    shards, table = sources.parse(f"webdataset:{address}"), sources.parse(f"parquet:{address}/sub/t")
    rows = {row["uri"]: row for row in shards.list().items.to_pylist()}
    cells = table.list().items.to_pylist()
    client.delete_object(Bucket=s3.bucket, Key="set/s-000.tar")
    for key in ("set/s-001.tar", "set/sub/t/part-0.parquet"):
        client.put_object(Bucket=s3.bucket, Key=key, Body=b"another")
    client.delete_object(Bucket=s3.bucket, Key="set/sub/t/part-1.parquet")
    gone, changed, whole = (rows[f"s-{n:03d}.tar/000000000.jpg"] for n in range(3))
    again = pickle.loads(pickle.dumps(shards))
    for source, row, message in (
        (again, gone, "it was removed after it was listed"),
        (again, changed, "its ETag is another than when it was listed"),
        (table, cells[0], "its ETag is another"),
        (table, cells[-2], "it was removed"),
    ):
        for read in (lambda blob: blob.header(), lambda blob: blob.read()):
            with pytest.raises(PixelFault, match=message) as fault:
                read(source.open(row))
            assert fault.value.kind == "changed"
    assert again.open(whole).read() == images[0]
    with pytest.raises(PixelFault, match=r"s-000\.tar has no member 000000000\.jpg"):
        again.open({"uri": gone["uri"]}).read()
    with pytest.raises(UserError, match="no archive of"):
        again.open({"uri": "a.jpg"})
    with pytest.raises(UserError, match=r"2 of the 4 archives at s3://.* do not exist \(s3://.*s-000\.tar"):
        sources.parse(f"webdataset:{address}/s-{{000..003}}.tar").list()


def test_a_bucket_that_fails_names_the_shard_and_its_rows_are_unavailable(upload, s3, images, tmp_path):
    _webdataset(tmp_path / "set", images)
    _parquet(tmp_path / "set" / "t", images)
    tar(tmp_path / "set" / "deep.tar" / "a.tar", {"0.jpg": images[0]})
    address = upload("set")
    shards, table = sources.parse(f"webdataset:{address}"), sources.parse(f"parquet:{address}/t")
    deep = sources.parse(f"webdataset:{address}").list().items.to_pylist()[0]
    saved = {"uri": "train/00000000"}
    row, cell = shards.list().items.to_pylist()[1], table.list().items.to_pylist()[1]
    s3.fault = lambda method, path: 503 if method in ("GET", "HEAD") else None
    for source, item in ((shards, deep), (sources.parse(f"hf:{address}"), saved)):
        with pytest.raises(PixelFault, match="the store failed") as fault:
            source.open(item).read()
        assert fault.value.kind == "unavailable", "and not an error of the program's user"
    s3.fault = lambda method, path: 503 if method == "GET" and "/set/" in path else None
    for source, place in ((shards, r"list s3://\S+/a\.tar"), (table, r"the table s3://\S+/part-0\.parquet")):
        with pytest.raises(UserError, match=rf"^cannot (read )?{place}: the store failed") as e:
            source.list()
        assert "\n" not in str(e.value)
    for source, item in (
        (shards, row),
        (table, cell),
        (shards, {"uri": row["uri"]}),
        (table, {"uri": cell["uri"]}),
    ):
        with pytest.raises(PixelFault, match="the store failed") as fault:
            source.open(item).read()
        assert fault.value.kind == "unavailable"
        assert source.lane(item) == f"bucket {s3.bucket}"
    s3.fault = lambda method, path: None
    assert (shards.open(row).read(), table.open(cell).read()) == (images[0], images[1])


def test_a_table_is_read_in_blocks_and_on_after_its_bucket_failed(upload, s3, images, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "READ_AHEAD", 64 * 1024)
    monkeypatch.setattr(ranges, "MOST", 64 * 1024)
    cells = [images[n] + bytes(300_000) for n in range(4)]
    (tmp_path / "set").mkdir()
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 1}
    pq.write_table(pa.table({"image": cells}), tmp_path / "set" / "t.parquet", **options)
    source = sources.parse(f"parquet:{upload('set')}")
    rows = source.list().items.to_pylist()
    s3.ranges.clear()
    assert source.open(rows[0]).read() == cells[0]
    read = [last - first + 1 for _, first, last in s3.ranges]
    assert max(read) <= len(cells[0])
    assert sum(read) <= len(cells[0]) + 4 * 64 * 1024, "nothing of the other row groups"
    s3.fault = lambda method, path: 503 if "/set/" in path else None
    with pytest.raises(PixelFault, match="the store failed"):
        source.open(rows[3]).read()
    s3.fault = lambda method, path: None
    assert [source.open(row).read() for row in reversed(rows)] == cells[::-1]


def test_paths_may_be_addresses_and_never_files_of_this_machine(upload, s3, images, tmp_path):
    _paths(tmp_path / "set", images)
    address = upload("set")
    away = f"s3://{s3.bucket}-away"
    boto3.client("s3").create_bucket(Bucket=f"{s3.bucket}-away")
    boto3.client("s3").put_object(Bucket=f"{s3.bucket}-away", Key="x//y.jpg", Body=images[3])
    names = [
        f"{address}/photos/2 é%.jpg",
        f"{away}/x//y.jpg",
        "../../../up.jpg",
        str(tmp_path / "set" / "list.parquet"),
        "https://e.org/a.jpg",
    ]
    pq.write_table(pa.table({"path": names}), tmp_path / "set" / "list.parquet")
    address = upload("set")
    for source in (
        sources.parse(f"parquet:{address}"),
        sources.build(
            {"kind": "parquet", "path": f"{tmp_path}/set/list.parquet", "root": f"{address}/photos"}, "p.yaml"
        ),
    ):
        rows = source.list().items.to_pylist()
        read = {row["uri"]: source.open(row).read() for row in rows if row["fault"] is None}
        assert sorted(read.values()) == sorted([images[2], images[3]])
        assert f"{away}/x//y.jpg" in read
        assert all(source.open({"uri": uri}).read() == data for uri, data in read.items())
        words = [row["fault_words"] for row in rows if row["fault"] is not None]
        assert len(words) == 3
        assert all("is no object of" in each for each in words), words


def test_out_may_not_be_below_a_prefix_that_is_listed(s3):
    for kind in ("webdataset", "archives", "parquet"):
        with pytest.raises(UserError, match="overlap"):
            check_no_overlap(sources.parse(f"{kind}:s3://{s3.bucket}/set"), f"s3://{s3.bucket}/set/out")
        check_no_overlap(sources.parse(f"{kind}:s3://{s3.bucket}/set"), f"s3://{s3.bucket}/out")
    check_no_overlap(sources.parse(f"webdataset:s3://{s3.bucket}/a.tar"), f"s3://{s3.bucket}/out")


@pytest.mark.parametrize("end", ["set", "set/a.tar", "set/{0..3}.tar", "set/a.parquet", "set/a.txt"])
@pytest.mark.parametrize("kind", ["webdataset", "archives", "parquet", "urls", "hf", "manifest", "s3"])
def test_a_bucket_that_does_not_exist_is_named(s3, kind, end):
    place = f"s3://{s3.bucket}-no"
    with pytest.raises(UserError) as error:
        sources.parse(f"{kind}:{place}/{end}").list()
    assert str(error.value) == f"{place}: there is no such bucket: make the bucket, or name another"


def test_a_row_that_names_a_bucket_which_does_not_exist_fails_alone(s3, upload, images, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "0.jpg").write_bytes(images[0])
    names = ["0.jpg", f"s3://{s3.bucket}-no/1.jpg"]
    pq.write_table(pa.table({"path": names}), tmp_path / "set" / "list.parquet")
    rows = sources.parse(f"parquet:{upload('set')}").list().items.to_pylist()
    assert [row["fault"] for row in rows] == [None, "unreadable"]


def test_a_manifest_of_shards_in_a_bucket_is_used_by_every_command(upload, s3, forge, uhr, tmp_path):
    files = {}
    for n in range(3):
        facts = json.dumps({"caption": f"image {n}", "license": "CC0"}).encode()
        files |= {f"{n}.jpg": forge.encode(forge.image(480, 320, seed=n), "JPEG"), f"{n}.json": facts}
    tar(tmp_path / "set" / "s.tar", files)
    source = f"webdataset:{upload('set')}/s.tar"
    pipeline = tmp_path / "cut.yaml"
    patches = "{stage: patches, size: 128, count: 1, flat: 1, stages: [header], rules: {}}"
    pipeline.write_text(f"stages: [header, decode, {patches}]\nrules: {{}}\n")
    out = f"s3://{s3.bucket}/out"
    code, _, errors = uhr(
        "curate", "run", pipeline, "--source", source, "--out", out, "--engine", "local", "--workers", 1
    )
    assert code == 0, errors
    manifest = Manifest.open(out)
    rows = manifest.table().to_pylist()
    assert [row["uri"] for row in rows if row["box"] is None] == [f"s.tar/{n}.jpg" for n in range(3)]
    assert sum(row["box"] is not None for row in rows) == 3
    assert {row["caption"] for row in rows if row["box"] is None} == {f"image {n}" for n in range(3)}
    code, printed, errors = uhr("manifest", "verify", out, "--pixels")
    assert code == 0, printed + errors
    code, printed, errors = uhr("curate", "explain", out, rows[0]["sample_id"])
    assert code == 0, errors
    assert "s.tar/0.jpg" in printed
    code, printed, errors = uhr("manifest", "export", out, "--to", "folder", "--out", tmp_path / "export")
    assert code == 0, errors
    exported = [file.read_bytes() for file in (tmp_path / "export").rglob("*.jpg")]
    assert {files[f"{n}.jpg"] for n in range(3)} <= set(exported)
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="set/s.tar", Body=b"another")
    code, printed, _ = uhr("manifest", "verify", out, "--pixels")
    assert code == 1
    assert "s.tar/0.jpg" in printed
