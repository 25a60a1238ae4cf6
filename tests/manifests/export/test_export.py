"""Exports, read back by the libraries that they are for, and compared with the manifest and its files."""

import io
import json
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.manifests.export import FORMATS, format_named
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.job import ExportRequest, ExportResult, export
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.pixels.decode import decode

SMALL = ExportOptions(shard_bytes=6000)


@pytest.fixture
def run(images: Manifest, tmp_path: Path) -> Callable[..., ExportResult]:
    def run(to: str, parent: Manifest = images, out: str = "out", **changes: Any) -> ExportResult:
        options = ExportOptions.model_validate({**SMALL.model_dump(), **changes})
        return export(ExportRequest(parent, tmp_path / out, format_named(to)(parent), options))

    return run


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def kept(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in manifest.table(where="status = 'kept'").to_pylist()}


def pixels(manifest: Manifest, row: dict[str, Any]) -> np.ndarray:
    box = None if row["box"] is None else tuple(row["box"])
    return decode((manifest.root / row["uri"]).read_bytes()).rgb(box)


def members(out: Path) -> Iterator[tuple[str, str, bytes]]:
    for file in sorted(out.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member)
                assert data is not None
                yield key, extension, data.read()


def test_webdataset_has_the_bytes_the_caption_and_the_row(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    result = run("webdataset")
    rows = kept(images)
    assert result.images == {"train": 13}
    found: dict[str, dict[str, bytes]] = {}
    for key, extension, data in members(tmp_path / "out"):
        assert extension not in found.setdefault(key, {})
        found[key][extension] = data
    assert found.keys() == rows.keys()
    for key, files in found.items():
        row = rows[key]
        assert files.pop("txt").decode() == (row["caption"] or "")
        assert json.loads(files.pop("json")) == {k: v for k, v in row.items() if v is not None}
        ((extension, data),) = files.items()
        if row["box"] is None:
            assert data == (images.root / row["uri"]).read_bytes()
            assert extension == {"JPEG": "jpg", "TIFF": "tif"}.get(row["format"], row["format"].lower())
        else:
            assert extension == "png"
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels(images, row))


def test_webdataset_reads_its_tars(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    run("webdataset")
    files = [str(file) for file in sorted((tmp_path / "out").glob("*.tar"))]
    found = {one["__key__"]: one for one in webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")}
    rows = kept(images)
    assert found.keys() == rows.keys()
    for key, one in found.items():
        row = rows[key]
        assert one["txt"] == (row["caption"] or "")
        assert (one["json"]["uri"], one["json"]["entropy"]) == (row["uri"], row["entropy"])
        (image,) = (one[kind] for kind in ("jpg", "png", "webp", "tif") if kind in one)
        if row["format"] != "JPEG" and row["uri"] != "b/8.png":  # that has alpha
            assert np.array_equal(image, pixels(images, row))


def test_datasets_reads_the_webdataset(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path, datasets_cache: None
) -> None:
    import datasets

    run("webdataset", shard_bytes=10**9)
    files = [str(file) for file in sorted((tmp_path / "out").glob("*.tar"))]
    rows = kept(images)
    read = {}
    for file in files:  # each tar has images of one kind
        for one in datasets.load_dataset("webdataset", data_files=file, split="train"):
            (kind,) = {"jpg", "png", "webp", "tif"} & one.keys()
            read[one["__key__"]] = (one[kind], one["txt"], one["json"])
    assert read.keys() == rows.keys()
    for key, (image, text, row) in read.items():
        assert text == (rows[key]["caption"] or "")
        assert row["uri"] == rows[key]["uri"]
        assert image.size[0] * image.size[1] == rows[key]["width"] * rows[key]["height"]


def test_datasets_reads_the_hf_export_with_its_splits(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path, datasets_cache: None
) -> None:
    import datasets

    halves = slice_manifest(images, tmp_path / "halves", SliceOptions(split={"train": 0.6, "val": 0.4}))
    result = run("hf", halves)
    read = datasets.load_dataset(str(tmp_path / "out"))
    rows = kept(halves)
    assert {name: len(split) for name, split in read.items()} == result.images
    assert sum(result.images.values()) == 13
    for split, part in read.items():
        assert isinstance(part.features["image"], datasets.Image)
        for one in part:
            row = rows[one["sample_id"]]
            assert row["split"] == split
            assert one["text"] == (row["caption"] or "")
            assert {name: one[name] for name in ("uri", "width", "entropy", "license", "box")} == {
                name: row[name] for name in ("uri", "width", "entropy", "license", "box")
            }
            if row["box"] is None:
                raw = part.cast_column("image", datasets.Image(decode=False))
                stored = next(r["image"]["bytes"] for r in raw if r["sample_id"] == one["sample_id"])
                assert stored == (images.root / row["uri"]).read_bytes()
            else:
                assert np.array_equal(np.asarray(one["image"]), pixels(images, row))
    card = (tmp_path / "out/README.md").read_text()
    assert f"| none recorded | {sum(row['license'] is None for row in rows.values())} |" in card
    assert images.id[:16] in card
    assert "| `entropy` | " in card


def test_datasets_reads_the_image_folder(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path, datasets_cache: None
) -> None:
    import datasets

    run("folder")
    read = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"))
    rows = kept(images)
    assert {one["sample_id"] for one in read["train"]} == rows.keys()
    for one in read["train"]:
        row = rows[one["sample_id"]]
        assert one["text"] == (row["caption"] or "")
        assert one["image"].size in ((row["width"], row["height"]), (row["height"], row["width"]))


@pytest.mark.parametrize("to", ["pairs", "kohya", "simpletuner"])
def test_other_trainers_get_upright_pixels(
    to: str, run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    run(to)
    rows = kept(images)
    files = {
        file.stem: file
        for file in (tmp_path / "out/train").rglob("*")
        if file.suffix in (".jpg", ".png", ".webp", ".tif")
    }
    assert files.keys() == rows.keys()
    for key, file in files.items():
        image, row = Image.open(file), rows[key]
        assert (image.size, image.mode) == ((row["width"], row["height"]), "RGB")
        original = (images.root / row["uri"]).read_bytes()
        assert file.read_bytes() == original or np.array_equal(np.asarray(image), pixels(images, row))
        if to != "simpletuner":
            assert file.with_suffix(".txt").read_text() == (row["caption"] or "")
    changed = {
        rows[key]["uri"]
        for key, file in files.items()
        if rows[key]["box"] is None and file.read_bytes() != (images.root / rows[key]["uri"]).read_bytes()
    }
    assert changed == {"a/2.jpg", "b/8.png", "d/11.tif"}


def test_kohyas_files_name_every_image_at_its_own_size(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    """sd-scripts joins the names to `image_dir`, refuses `bucket_no_upscale` beside sizes of buckets
    (`train_resolution`), and needs a resolution between the two limits, above whose area it scales down.
    """
    run("kohya")
    config = tomllib.loads((tmp_path / "out/train.toml").read_text())
    (dataset,) = config["datasets"]
    (subset,) = dataset["subsets"]
    found = json.loads(Path(subset["metadata_file"]).read_text())
    assert {Path(name).stem for name in found} == kept(images).keys()
    largest = 0
    for name, facts in found.items():
        assert Path(subset["image_dir"], name) == Path(name)
        assert Image.open(name).size == tuple(facts["image_size"])
        largest = max(largest, facts["image_size"][0] * facts["image_size"][1])
        assert facts["caption"] == (kept(images)[Path(name).stem]["caption"] or "")
        assert facts.keys() == {"caption", "image_size"}
    assert config["general"]["bucket_no_upscale"]
    assert dataset["min_bucket_reso"] <= dataset["resolution"] <= dataset["max_bucket_reso"]
    assert largest == 40 * 24
    assert dataset["resolution"] == 64


def test_kohya_gets_captions_of_one_line(
    run: Callable[..., ExportResult], images: Manifest, make: Callable[..., Manifest], tmp_path: Path
) -> None:
    rows = images.table(where="status = 'kept'").to_pylist()
    several = make(
        tmp_path / "several", [{**rows[0], "caption": "a lake \n\n in fog\r\nat dawn\n"}], root=images.root
    )
    run("kohya", several)
    (facts,) = json.loads((tmp_path / "out/train.json").read_text()).values()
    (text,) = (tmp_path / "out/train").rglob("*.txt")
    assert facts["caption"] == text.read_text() == "a lake in fog at dawn"


def test_simpletuners_backends_have_what_it_needs(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    """A local data set needs a place for latents; a configuration needs one data set of text embeddings."""
    run("simpletuner")
    backend, texts = json.loads((tmp_path / "out/train.json").read_text())
    names = backend["parquet"]
    table = parquet.read(Path(names["path"])).to_pylist()
    assert {row["sample_id"] for row in table} == kept(images).keys()
    for row in table:
        image = Image.open(Path(backend["instance_data_dir"]) / row[names["filename_column"]])
        assert image.size == (row[names["width_column"]], row[names["height_column"]])
        assert row[names["caption_column"]] == (kept(images)[row["sample_id"]]["caption"] or "")
    assert (texts["dataset_type"], texts["default"]) == ("text_embeds", True)
    assert len({backend["id"], texts["id"], backend["cache_dir_vae"], texts["cache_dir"]}) == 4


@pytest.mark.parametrize("to", list(FORMATS))
def test_a_killed_export_resumes_to_the_same_files(
    to: str,
    run: Callable[..., ExportResult],
    images: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(to, out="whole")
    assert whole.shards > 3
    kind = format_named(to)
    write, calls = kind.write, []

    def dies(self: Any, out: Path, shard: Any, samples: Any) -> Iterator[Any]:
        calls.append(shard.name)
        for number, entry in enumerate(write(self, out, shard, samples)):
            if len(calls) == 3 and number == 0:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(kind, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(to)
    assert not (tmp_path / "out/export.json").exists()
    (tmp_path / "out/.export/train-00001.json").unlink()  # as if it was killed right before this record
    result = run(to)
    assert len(calls) == whole.shards + 2
    assert result.images == whole.images

    def contents(folder: Path) -> dict[str, bytes]:
        found = {}
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "export.json":
                data = file.read_bytes().replace(str(folder).encode(), b"OUT")
                found[str(file.relative_to(folder))] = data.replace(
                    f"{folder.name}-train".encode(), b"OUT-train"
                )
        return found

    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = run(to)
    assert again.finished_before
    assert again.images == whole.images


def test_images_that_cannot_be_read_are_left_out_and_listed(
    images: Manifest, make: Callable[..., Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uhr.cli import main

    source = tmp_path / "source"
    rows = images.table(where="parent_id IS NULL").to_pylist()
    for row in rows[:8]:
        (source / row["uri"]).parent.mkdir(parents=True, exist_ok=True)
        (source / row["uri"]).write_bytes((images.root / row["uri"]).read_bytes())
    changed = source / rows[1]["uri"]
    changed.write_bytes(changed.read_bytes() + b"\0")
    (source / rows[2]["uri"]).unlink()
    set_ = make(tmp_path / "set", rows[:8], root=source)
    out = tmp_path / "out"
    assert main(["manifest", "export", str(set_.path), "--to", "webdataset", "--out", str(out)]) == 1
    text = capsys.readouterr()
    assert "2 images could not be exported" in text.err
    assert "6 images" in text.out
    record = json.loads((out / "export.json").read_text())
    assert [(fault["uri"], fault["kind"]) for fault in record["failed"]] == [
        (rows[1]["uri"], "changed"),
        (rows[2]["uri"], "unreadable"),
    ]
    assert record["parent"]["id"] == set_.id
    assert {key for key, _, _ in members(out)} == {r["sample_id"] for r in rows[:8]} - {
        rows[1]["sample_id"],
        rows[2]["sample_id"],
    }


def test_another_export_is_not_written_over(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    run("pairs")
    with pytest.raises(UserError, match="contains another export"):
        run("kohya")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"already contains something else \(photo.jpg\)"):
        run("pairs", out="mine")
    with pytest.raises(UserError, match=r"--captions author_caption: .*name one of caption"):
        run("pairs", out="new", captions=("author_caption",))
    with pytest.raises(UserError, match="did you mean webdataset"):
        format_named("webdatset")


def test_a_shard_holds_at_most_its_bytes(
    run: Callable[..., ExportResult], images: Manifest, tmp_path: Path
) -> None:
    rows = kept(images)
    limit = 2 * max(row["file_size"] for row in rows.values())
    run("webdataset", shard_bytes=limit)
    for file in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(file) as tar:
            keys = {member.name.partition(".")[0] for member in tar.getmembers()}
        assert sum(rows[key]["file_size"] for key in keys) <= limit
