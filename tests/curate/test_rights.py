"""Rights of each image: what its file says, policies of licences, and lists of what must not be there."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.config import load
from uhr.curate.measures.blocklists import Blocklist
from uhr.manifests.manifest import Manifest
from uhr.pixels.phash import phash

from .conftest import photograph

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:cc="http://creativecommons.org/ns#" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
 plus:DataMining="http://ns.useplus.org/ldf/vocab/{mining}">
<cc:license rdf:resource="http://creativecommons.org/{licence}/"/></rdf:Description></rdf:RDF></x:xmpmeta>"""


def save(path, seed: int, licence: str | None = None, mining: str = "DMI-UNSPECIFIED", **options) -> bytes:
    xmp = {} if licence is None else {"xmp": XMP.format(licence=licence, mining=mining).encode()}
    Image.fromarray(photograph(seed)).save(path, **xmp, **options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, the files of their licences, a policy, and lists of three of them."""
    place = tmp_path_factory.mktemp("rights")
    images = place / "images"
    images.mkdir()
    save(images / "a.jpg", 1, "licenses/by/4.0")
    save(images / "b.webp", 2, "publicdomain/zero/1.0", "DMI-PROHIBITED")
    save(images / "conflict.jpg", 3, "licenses/by-nc/4.0")
    save(images / "none.png", 4)
    sha256 = hashlib.sha256(save(images / "sha256.png", 5, "licenses/by/4.0")).hexdigest()
    md5 = hashlib.md5(save(images / "md5.jpg", 6, "licenses/by/4.0")).hexdigest()
    listed = io.BytesIO()
    scene = Image.fromarray(np.random.default_rng(7).integers(0, 255, (9, 12, 3), np.uint8)).resize(
        (400, 300)
    )
    scene.resize((200, 150)).save(listed, "JPEG", quality=60)
    scene.save(
        images / "alike.jpg", quality=95, xmp=XMP.format(licence="licenses/by/4.0", mining="").encode()
    )
    (images / "conflict.json").write_text(json.dumps({"license": "CC0"}))
    (images / "b.json").write_text(json.dumps({"license": "Pexels License"}))
    (place / "policy.yaml").write_text(
        "allow: [CC-BY-4.0, CC0-1.0, LicenseRef-Pexels]\naliases: {pexels license: LicenseRef-Pexels}\n"
        "conflict: reject\n"
    )
    (place / "takedowns.txt").write_text(f"# by request\n{sha256.upper()}  # a.b.\n\n")
    pq.write_table(pa.table({"MD5": [md5, None]}), place / "md5.parquet")
    small = cv2.imdecode(np.frombuffer(listed.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)
    (place / "alike.csv").write_text(f"phash,note\n{phash(small):016x},seen elsewhere\n")
    return place


PIPELINE = """
stages: [header, geometry, decode]
licences: {place}/policy.yaml
blocklist: {{files: [{place}/takedowns.txt, {place}/md5.parquet, {place}/alike.csv], radius: 6}}
pixels: all
"""


@pytest.fixture(scope="module")
def curated(folder, tmp_path_factory) -> Manifest:
    from uhr.cli import main

    place = tmp_path_factory.mktemp("curated")
    pipeline = place / "rights.yaml"
    pipeline.write_text(PIPELINE.format(place=folder))
    arguments = ["curate", "run", pipeline, "--source", folder / "images", "--out", place / "out"]
    assert main([str(each) for each in [*arguments, "--engine", "local", "--workers", 0]]) == 0
    return Manifest.open(place / "out")


def rows(manifest: Manifest) -> dict[str, dict]:
    return {row["uri"]: row for row in manifest.table().to_pylist()}


def test_images_without_a_good_licence_and_listed_ones_are_rejected(curated):
    reasons = {name: row["reason"] for name, row in rows(curated).items()}
    assert reasons == {
        "a.jpg": None,
        "b.webp": "licence",
        "conflict.jpg": "licence",
        "none.png": "licence",
        "sha256.png": "blocklist",
        "md5.jpg": "blocklist",
        "alike.jpg": "blocklist",
    }


def test_each_row_says_why(curated):
    found = rows(curated)
    problems = {name: found[name]["license_problem"] for name in ("a.jpg", "b.webp", "none.png")}
    assert problems == {
        "a.jpg": None,
        "b.webp": "conflict: LicenseRef-Pexels is stated, and CC0-1.0 embedded",
        "none.png": "missing",
    }
    assert found["b.webp"]["data_mining"] == "DMI-PROHIBITED"
    assert found["a.jpg"]["embedded_license"] == "http://creativecommons.org/licenses/by/4.0/"
    assert found["a.jpg"]["c2pa"] is False
    assert found["sha256.png"]["blocklist_match"] == "takedowns.txt: sha256"
    assert found["md5.jpg"]["blocklist_match"] == "md5.parquet: md5"
    assert found["alike.jpg"]["blocklist_match"].startswith("alike.csv: phash ")


def test_of_a_listed_image_neither_preview_nor_bytes_are_stored(curated):
    found = rows(curated)
    listed = {name for name, row in found.items() if row["reason"] == "blocklist"}
    previews = curated.previews([row["sample_id"] for row in found.values()])
    assert {row["uri"] for row in found.values() if row["sample_id"] in previews} == set(found) - listed
    stored = set()
    for part in curated.info.attachments:
        stored |= set(pq.read_table(curated.path / part.path, columns=["content_hash"])[0].to_pylist())
    assert stored == {
        found[name]["content_hash"] for name in set(found) - listed if found[name]["content_hash"]
    }
    assert found["a.jpg"]["content_hash"] in stored


def test_browse_shows_no_listed_image(curated):
    from uhr.manifests.browse.thumbnails import Fault, Thumbnails

    found = rows(curated)
    thumbnails = Thumbnails(curated)
    try:
        assert thumbnails.large(found["none.png"]), "rejected, and read from the source"
        for name in ("sha256.png", "md5.jpg", "alike.jpg"):
            for method in (thumbnails.thumbnail, thumbnails.large):
                with pytest.raises(Fault, match="on a blocklist: not shown"):
                    method(found[name])
    finally:
        thumbnails.close()


def test_the_lists_and_the_policy_are_in_the_lineage(curated, folder):
    files = {name.rpartition("/")[2]: digest for name, digest in curated.info.files.items()}
    wanted = {"policy": "policy.yaml", "takedowns.txt": "takedowns.txt", "alike.csv": "alike.csv"}
    for name, file in wanted.items():
        assert files[name] == hashlib.sha256((folder / file).read_bytes()).hexdigest()


def test_a_changed_list_is_another_run(folder, tmp_path):
    from uhr.curate.planning.plan import CurationPlan

    listed = shutil.copy(folder / "takedowns.txt", tmp_path)
    config = load("quickstart", [f"blocklist={listed}"])
    assert config.stages[0].stage == "blocklist"
    assert next(iter(config.rules)) == "blocklist"
    before = CurationPlan.of(config).fingerprint
    (tmp_path / "takedowns.txt").write_text("0" * 32)
    assert CurationPlan.of(config).fingerprint != before


@pytest.mark.parametrize("key", ["licences", "blocklist"])
def test_a_key_reaches_the_stage_that_a_pipeline_has_already(folder, tmp_path, key):
    file, stage, name, value = {
        "licences": ("policy.yaml", "licence", "policy", f"{folder}/policy.yaml"),
        "blocklist": ("takedowns.txt", "blocklist", "files", [f"{folder}/takedowns.txt"]),
    }[key]
    pipeline, chosen = tmp_path / "p.yaml", f"{key}={folder}/{file}"
    pipeline.write_text(f"stages: [header, rights, decode, {stage}]")
    config = load(str(pipeline), [chosen])
    (entry,) = [each for each in config.stages if each.stage == stage]
    assert entry.params[name] == value
    # as the lineage records it
    pipeline.write_text(json.dumps(config.model_dump(mode="json")))
    assert load(str(pipeline)).stages == config.stages
    pipeline.write_text(f"stages: [header, rights, decode, {{stage: {stage}, {name}: another}}]")
    with pytest.raises(UserError, match=f"{key} names other files than its stage '{stage}'"):
        load(str(pipeline), [chosen])


def test_a_stated_licence_rejects_before_an_image_is_read(folder, tmp_path, uhr):
    """The image is not even one: its licence is judged first."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"no image")
    (images / "a.json").write_text(json.dumps({"license": "CC-BY-NC-4.0"}))
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        f"stages: [{{stage: licence, policy: {folder}/policy.yaml, embedded: false}}, header]\n"
        "rules: {licence: license_problem IS NULL}\n"
    )
    out = tmp_path / "out"
    assert (
        uhr("curate", "run", pipeline, "--source", images, "--out", out, "--engine", "local", "--workers", 0)[
            0
        ]
        == 0
    )
    assert rows(Manifest.open(out))["a.jpg"]["reason"] == "licence"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "12345", "row 1 is '12345': write a sha256, md5 or phash, in hexadecimal"),
        ("a.csv", "md5\n" + "a" * 64, "write 32 digits of md5"),
        ("a.csv", "name\nx", "no column sha256, md5, phash or hash"),
        ("a.txt", "# nothing", "has no hash"),
        ("a.pdf", "x", "is not a table"),
    ],
)
def test_a_mistake_in_a_list_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        Blocklist.read([str(tmp_path / name)])
    assert message in str(caught.value)


def test_a_list_that_is_missing_stops_the_plan(tmp_path, uhr, folder):
    out = tmp_path / "out"
    arguments = ("--source", folder / "images", "--out", out, "--set", f"blocklist={tmp_path}/gone.txt")
    code, _, error = uhr("curate", "run", "quickstart", *arguments)
    assert code == 1
    assert "gone.txt" in error
    assert not out.exists()


def test_the_files_of_the_documentation_work(folder, tmp_path, uhr):
    """The policy and the pipeline of docs/rights.md, on a generated image that may not be mined."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "rights.md").read_text()
    for name in ("mining.yaml", "policy.yaml"):
        (tmp_path / name).write_text(text.split(f"<!-- {name}")[1].split("```yaml\n")[1].split("```")[0])
    run = ("--source", folder / "images", "--engine", "local", "--workers", 0, "--set", "preview=0")
    mined = tmp_path / "mined"
    policy = ("--set", f"licences={tmp_path}/policy.yaml", "--set", "rules.mining=null")
    assert uhr("curate", "run", tmp_path / "mining.yaml", "--out", mined, *run)[0] == 0
    assert rows(Manifest.open(mined))["b.webp"]["reason"] == "mining"
    assert uhr("curate", "run", tmp_path / "mining.yaml", "--out", tmp_path / "policy", *run, *policy)[0] == 0
    reasons = {name: row["reason"] for name, row in rows(Manifest.open(tmp_path / "policy")).items()}
    assert (reasons["a.jpg"], reasons["none.png"]) == (None, "licence")


def test_a_damaged_image_fails_in_the_stage_that_decodes_also_after_a_blocklist(folder, tmp_path, uhr):
    (tmp_path / "images").mkdir()
    data = save(tmp_path / "whole.jpg", 8)
    (tmp_path / "images" / "cut.jpg").write_bytes(data[: len(data) // 2])
    errors = set()
    for stages, more in (
        ("[header, decode, entropy]", ()),
        ("[header, decode, entropy]", ("--set", f"blocklist={folder / 'takedowns.txt'}")),
        ("[header, rights, {stage: decode, name: decode}, entropy]", ()),
    ):
        pipeline = tmp_path / "p.yaml"
        pipeline.write_text(f"stages: {stages}")
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        run = ("--source", tmp_path / "images", "--engine", "local", "--workers", 0, "--out", out, *more)
        assert uhr("curate", "run", pipeline, *run)[0] == 0
        (row,) = Manifest.open(out).table().to_pylist()
        errors.add((row["status"], row["reason"], row["error"]))
    assert len(errors) == 1
    assert errors.pop()[2].startswith("decode: ")
