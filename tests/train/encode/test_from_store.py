"""A manifest in an object store, whose images are there too, is encoded and evaluated as that of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
import torch

from uhr.base.store import StoreError
from uhr.manifests.manifest import Manifest
from uhr.train.data.reader import EncodedData
from uhr.train.evaluate.images import find_references
from uhr.train.evaluate.overlap.embeddings import NearestImages
from uhr.train.evaluate.prompts import read_items
from uhr.train.evaluate.protocol import load

SIZES = {"a.png": (150, 150), "b.png": (140, 220), "c.png": (160, 150)}


@pytest.fixture
def curate(uhr, blobs, save, tmp_path, monkeypatch):
    """Curate the images in the folder `images` at another place."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        save(file := tmp_path / "images" / name, blobs(height, width, seed))
        file.with_suffix(".txt").write_text(f"image {seed % 2}")
    Path("p.yaml").write_text("name: p\nstages: [header, decode]\nrules: {}\n")

    def run(source, out, *more):
        given = ("--source", source, "--out", out, "--workers", 0, *more)
        code, _, err = uhr("curate", "run", "p.yaml", *given)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def address(s3, curate, tmp_path) -> str:
    """The address of a manifest whose images are in the bucket too."""
    for file in (tmp_path / "images").iterdir():
        boto3.client("s3").upload_file(str(file), s3.bucket, f"images/{file.name}")
    return curate(f"s3://{s3.bucket}/images", f"s3://{s3.bucket}/set")


@pytest.fixture
def folder(curate, tmp_path) -> Path:
    """The manifest of the same images in a folder."""
    return curate("images", tmp_path / "set")


@pytest.fixture
def encode(uhr, tiny_flux):
    def run(manifest, out, *more):
        options = ("--model", tiny_flux, "--set", "aspects=[1/1,3/2]", "--device", "cpu", "--workers", 0)
        return uhr("train", "encode", manifest, *options, "--out", out, *more)

    return run


def rows_of(folder: Path) -> dict[str, tuple[str, torch.Tensor, torch.Tensor]]:
    data = EncodedData.open(folder)
    found = {}
    for bucket, info in enumerate(data.buckets):
        rows = data.read(bucket, range(info.rows))
        for at, uri in enumerate(rows.uris):
            found[uri] = rows.captions[at], rows.mean[at], rows.texts["t5"][at]
    return found


def test_what_is_encoded_from_a_bucket_is_what_is_encoded_from_a_folder(
    address, folder, encode, uhr, tmp_path
):
    code, said, err = encode(address, tmp_path / "ours", "--budget", "--json")
    assert (code, '"selected": 3' in said) == (0, True), err
    for manifest, out in ((address, "ours"), (folder, "theirs")):
        code, _, err = encode(manifest, tmp_path / out)
        assert code == 0, err
    ours, theirs = rows_of(tmp_path / "ours"), rows_of(tmp_path / "theirs")
    assert sorted(ours) == sorted(SIZES)
    for uri, (caption, mean, text) in theirs.items():
        assert ours[uri][0] == caption == f"image {list(SIZES).index(uri) % 2}"
        assert torch.equal(ours[uri][1], mean)
        assert torch.equal(ours[uri][2], text)
    # the record leads back to the bucket, not to the copy of the manifest on this machine
    info = EncodedData.open(tmp_path / "ours").info
    assert info.manifest.path == address
    assert [parent.path for parent in Manifest.open(tmp_path / "ours").info.parents] == [address]
    code, said, err = uhr("manifest", "lineage", tmp_path / "ours")
    assert (code, address in said) == (0, True), err


def test_a_bucket_that_does_not_answer_ends_the_encode_and_leaves_no_image_out(address, encode, s3, tmp_path):
    s3.fault = lambda method, path: 503 if path.endswith("images/b.png") else None
    code, _, err = encode(address, tmp_path / "out")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("uhr: ")]
    assert f"b.png cannot be read: {address.removesuffix('set')}images/b.png: " in line
    assert line.endswith("fix the cause; the same command resumes the run")
    s3.fault = lambda method, path: None
    code, _, err = encode(address, tmp_path / "out")
    assert code == 0, err
    assert EncodedData.open(tmp_path / "out").info.counts["encoded"] == 3


def test_stored_images_whose_bucket_does_not_answer_end_the_encode_too(s3, curate, encode, tmp_path):
    curate("images", address := f"s3://{s3.bucket}/set", "--set", "pixels=kept")
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    s3.fault = lambda method, path: 503 if "/set/pixels/" in path else None
    code, _, err = encode(address, tmp_path / "out")
    assert (code, err.count("uhr: "), f"uhr: {address}/pixels/" in err) == (1, 1, True), err
    s3.fault = lambda method, path: None
    code, _, err = encode(address, tmp_path / "out")
    assert code == 0, err
    assert EncodedData.open(tmp_path / "out").info.counts["encoded"] == 3


def test_an_image_that_is_not_in_the_bucket_any_more_is_left_out_with_its_reason(
    address, encode, s3, tmp_path
):
    boto3.client("s3").delete_object(Bucket=s3.bucket, Key="images/b.png")
    code, said, err = encode(address, tmp_path / "out")
    assert (code, "left out, unreadable: 1 (b.png: there is no such object)" in said) == (0, True), err


def test_references_and_training_data_in_a_bucket_are_those_of_the_folder(
    address, folder, uhr, blobs, save, tmp_path
):
    protocol = {
        "name": "p",
        "about": "small",
        "size": "150x150",
        "prompts": {"layout": "file", "file": "prompts.txt", "count": 3},
        "references": {"kind": "set"},
        "metrics": [{"metric": "random-frechet"}],
    }
    Path("p.yaml").write_text(json.dumps(protocol))
    Path("prompts.txt").write_text("image 0\nimage 1\na boat\n")
    images = tmp_path / "generated"
    for at in range(3):
        save(images / f"{at:04d}.png", blobs(150, 150, 10 + at))
    found = []
    for place, out in ((address, "ours"), (folder, "theirs")):
        given = ("--images", images, "--references", place, "--trained-on", place, "--out", out)
        code, said, err = uhr("eval", "run", "p.yaml", *given, "--workers", 0, "--json")
        assert code == 0, err
        found.append(json.loads(said))
    ours, theirs = found
    assert ours["references"]["place"] == ours["overlap"]["training"][0]["path"] == address
    assert ours["references"]["id"] == theirs["references"]["id"]
    assert ours["metrics"] == theirs["metrics"]
    exact = [each["overlap"]["references_exact"]["names"] for each in found]
    assert exact == [sorted(SIZES)] * 2


def test_images_whose_bucket_does_not_answer_are_not_called_damaged_or_free_of_overlap(address, s3):
    model = SimpleNamespace(
        weights_hash="0" * 64,
        view=SimpleNamespace(of=lambda pixels: pixels),
        embed=lambda views: torch.full((1, 4), 0.5),
    )
    trained = NearestImages(model, [Manifest.open(address)])
    trained.add(np.zeros((8, 8, 3), np.uint8))
    (reference, *_) = find_references(address, "set", ()).refs
    s3.fault = lambda method, path: 503 if "/images/" in path else None
    with pytest.raises(StoreError, match=r"a\.png cannot be read: .*a\.png: the store failed"):
        reference.pixels()
    with pytest.raises(StoreError, match=r"\.png cannot be read: .*\.png: the store failed"):
        trained.near()
    s3.fault = lambda method, path: None
    assert reference.pixels()[0].shape == (150, 150, 3)
    assert trained.near().tolist() == [True]


def test_the_captions_of_a_manifest_in_a_bucket_are_the_prompts_of_a_protocol(address, folder, uhr):
    protocol = {
        "name": "p",
        "about": "small",
        "size": "64x64",
        "prompts": {"layout": "file"},
        "references": {"kind": "set"},
        "metrics": [{"metric": "random-frechet"}],
    }
    Path("p.yaml").write_text(json.dumps(protocol))
    ours, theirs = (read_items(load("p.yaml"), place) for place in (address, folder))
    assert ours == theirs
    assert [item.prompt for item in ours] == ["image 0", "image 1", "image 0"]
    Path("p.yaml").write_text(json.dumps({**protocol, "prompts": {"layout": "text-files"}}))
    code, _, err = uhr("eval", "run", "p.yaml", "--prompts", address, "--images", "i", "--out", "o")
    assert (code, err) == (
        1,
        f"uhr: --prompts {address}: prompts of layout 'text-files' are read from this machine: copy them "
        "here, and name their path\n",
    )
