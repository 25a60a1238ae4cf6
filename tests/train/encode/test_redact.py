"""`uhr manifest forget` takes samples out of encoded data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uhr.cli import main
from uhr.manifests.manifest import Manifest
from uhr.manifests.verify.verification import verify
from uhr.train.data.reader import EncodedData


def _by_uri(folder: Path) -> dict[str, Any]:
    """Latents, embeddings and caption of every row, as the trainer reads them."""
    data = EncodedData.open(folder)
    found = {}
    for bucket, info in enumerate(data.buckets):
        for row in range(info.rows):
            one = data.read(bucket, [row])
            found[one.uris[0]] = (one.mean, one.std, one.texts["t5"], one.captions)
    return found


def test_latents_and_captions_of_a_sample_go_and_all_others_stay(small_set: Any, tmp_path: Path) -> None:
    """a-square shares its caption with b-square, c-square does not share its own."""
    shutil.copytree(small_set.manifest.path, tmp_path / "manifest")
    encoded = tmp_path / "encoded"
    shutil.copytree(small_set.folder, encoded)
    before = _by_uri(encoded)
    rows = {row["uri"]: row["sample_id"] for row in Manifest.open(encoded).table().to_pylist()}
    gone = ("a-square.png", "c-square.png", "j-small.png")
    call = ["manifest", "forget", str(tmp_path / "manifest"), "--ids", ",".join(rows[name] for name in gone)]
    assert main(call) == 0
    after = _by_uri(encoded)
    assert set(after) == set(before) - set(gone)
    for name, (mean, std, text, captions) in after.items():
        assert torch.equal(mean, before[name][0])
        assert torch.equal(std, before[name][1])
        assert torch.equal(text, before[name][2])
        assert captions == before[name][3]
    data = EncodedData.open(encoded)
    assert data.info.counts["encoded"] == 7
    assert (data.info.id, data.info.left_out.reasons) == (Manifest.open(encoded).id, [])
    numbers = data.select("bucket IS NOT NULL")
    assert [len(each) for each in numbers] == [bucket.rows for bucket in data.buckets]
    captions = pa.concat_tables(pq.read_table(file) for file in (encoded / "texts").iterdir())["caption"]
    assert "a blue circle" not in captions.to_pylist()
    assert "a red square" in captions.to_pylist(), "another image has it"
    for folder in (encoded, tmp_path / "manifest"):
        # the set of these tests has an image that no rule rejects
        assert [fault.what[:38] for fault in verify(folder).faults if "k-turned" not in fault.what] == []
        for file in folder.rglob("*"):
            if file.is_file():
                assert not any(rows[name].encode() in file.read_bytes() for name in gone), file


def test_encoded_data_in_a_bucket_are_refused_before_anything_changes_unless_they_have_none_of_the_samples(
    s3: Any, small_set: Any, tmp_path: Path, uhr: Any
) -> None:
    encoded = tmp_path / "encoded"
    shutil.copytree(small_set.folder, encoded)
    shutil.copytree(small_set.manifest.path, tmp_path / "manifest")
    client, address = boto3.client("s3"), f"s3://{s3.bucket}/encoded"
    for file in encoded.rglob("*.*"):
        client.upload_file(str(file), s3.bucket, f"encoded/{file.relative_to(encoded).as_posix()}")
    shutil.rmtree(encoded)
    rows = {row["uri"]: row["sample_id"] for row in small_set.manifest.table().to_pylist()}
    before = _by_uri(address)
    call = ("manifest", "forget", tmp_path / "manifest", "--in", f"s3://{s3.bucket}", "--ids")
    code, _, err = uhr(*call, rows["a-square.png"])
    assert (code, "is encoded data in a bucket, from which no samples can be taken out" in err) == (1, True)
    assert len(Manifest.open(tmp_path / "manifest").table()) == len(rows)
    # a rejected image was never encoded, but the slice that was encoded is another one without it
    code, _, err = uhr(*call, rows["k-turned-down.png"])
    assert code == 0, err
    after = EncodedData.open(address).info
    assert after.id == Manifest.open(address).id != small_set.info.id
    assert after.manifest.id == Manifest.open(tmp_path / "manifest").id != small_set.manifest.id
    assert set(_by_uri(address)) == set(before)
