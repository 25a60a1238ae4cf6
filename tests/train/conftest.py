"""A small set of images, its manifest, and the manifest encoded with the tiny model."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from uhr.base.files import sha256_file
from uhr.curate.stages.frames.geometry import GEOMETRY
from uhr.curate.stages.frames.header import HEADER
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import sample_id, schema_of
from uhr.manifests.writer import Provenance, write_manifest
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.stored.encoded import EncodedInfo
from uhr.train.recipes import resolve
from uhr.train.run.job import Job, start


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on two threads than on one, many times so where others use the cores."""
    torch.set_num_threads(1)


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = _beside("short_texts")


@pytest.fixture(scope="session")
def short_texts() -> ModuleType:
    """`short_texts.py` beside this file: tiny models that read fewer text tokens."""
    return TEXTS


@pytest.fixture(scope="module", autouse=True)
def texts_of_tests(tiny_flux, tiny_flux2) -> Iterator[None]:
    """Short texts in all tests of this folder. The checkpoints are made before: other folders share them."""
    with TEXTS.text_length():
        yield


@pytest.fixture
def full_texts() -> Iterator[None]:
    """The tiny models read as many text tokens as the real ones."""
    with TEXTS.text_length(TEXTS.REAL_LENGTH):
        yield


@dataclass
class Image:
    """An image to put into a manifest; the file is written unless it exists."""

    name: str
    height: int
    width: int
    caption: str | None = None
    license: str | None = None
    status: str = "kept"
    box: tuple[int, int, int, int] | None = None
    known_size: bool = True
    known_hash: bool = True


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: soft blobs and some grain, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    soft = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(soft + rng.integers(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)


def save(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


@pytest.fixture(scope="session", name="blobs")
def blobs_fixture() -> Callable[[int, int, int], np.ndarray]:
    return blobs


@pytest.fixture(scope="session", name="save")
def save_fixture() -> Callable[[Path, np.ndarray], None]:
    return save


@pytest.fixture(scope="session")
def manifest_of() -> Callable[[Path, Sequence[dict]], Manifest]:
    """`manifest_of(folder, images)`: draw missing images below folder/images, write folder/manifest.

    An image is a dict of what `Image` takes.
    """

    def make(folder: Path, images: Sequence[dict]) -> Manifest:
        root = folder / "pictures"
        rows = []
        for index, image in enumerate(sorted((Image(**p) for p in images), key=lambda p: p.name)):
            file = root / image.name
            if not file.exists():
                save(file, blobs(image.height, image.width, index))
            row = {
                "sample_id": sample_id(image.name + (str(image.box) if image.box else "")),
                "uri": image.name,
                "box": image.box,
                "content_hash": sha256_file(file) if image.known_hash else None,
                "status": image.status,
                "caption": image.caption,
                "license": image.license,
            }
            if image.known_size:
                row |= {"width": image.width, "height": image.height}
            rows.append(row)
        schema = schema_of([*HEADER, *GEOMETRY])
        batch = pa.RecordBatch.from_pylist(rows, schema)
        provenance = Provenance(root, {"kind": "test", "rows": len(rows)})
        return write_manifest(folder / "manifest", schema, [batch], provenance)

    return make


@pytest.fixture(scope="session")
def with_columns() -> Callable[..., Manifest]:
    """`with_columns(manifest, folder, name=[...])`: the same rows with more text columns, by uri."""

    def make(manifest: Manifest, folder: Path, **columns: Sequence[str | None]) -> Manifest:
        table = manifest.table()
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, pa.string()))
        provenance = Provenance(manifest.root, {"kind": "test", "columns": sorted(columns)})
        return write_manifest(folder, table.schema, table.to_batches(), provenance)

    return make


IMAGES = [
    {"name": "a-square.png", "height": 150, "width": 150, "caption": "a red square", "license": "CC0"},
    {"name": "b-square.png", "height": 200, "width": 200, "caption": "a red square", "license": "CC0"},
    {"name": "c-square.png", "height": 128, "width": 128, "caption": "a blue circle", "license": "CC-BY"},
    {"name": "d-wide.png", "height": 150, "width": 240, "caption": "a wide field", "license": "CC-BY"},
    {"name": "e-wide.png", "height": 160, "width": 250, "caption": None, "license": None},
    {"name": "f-tall.png", "height": 260, "width": 170, "caption": "a tall tower", "license": "CC0"},
    {"name": "g-tall.png", "height": 300, "width": 200, "caption": "a tall tower", "license": "CC0"},
    {"name": "h-square.png", "height": 160, "width": 165, "caption": "a green thing", "license": "CC0"},
    {"name": "i-square.png", "height": 170, "width": 170, "caption": "x" * 600, "license": "CC0"},
    {"name": "j-small.png", "height": 60, "width": 60, "caption": "too small", "license": "CC0"},
    {
        "name": "k-turned-down.png",
        "height": 150,
        "width": 150,
        "caption": "not kept",
        "license": "CC0",
        "status": "rejected",
    },
]


@dataclass
class Set:
    """A manifest and its encoded form."""

    manifest: Manifest
    folder: Path
    info: EncodedInfo


@pytest.fixture(scope="session")
def small_set(tmp_path_factory, tiny_flux, manifest_of) -> Set:
    """Nine images in three buckets of about 128 x 128 px; one more is too small, one is rejected."""
    folder = tmp_path_factory.mktemp("small set")
    manifest = manifest_of(folder, IMAGES)
    config = EncodeConfig(aspects=("1/1", "3/2"))
    with TEXTS.text_length():
        info, stood = encode(manifest.path, str(tiny_flux), folder / "encoded", config, device="cpu")
    assert not stood
    return Set(manifest, folder / "encoded", info)


@pytest.fixture(scope="session")
def small_set2(tmp_path_factory, tiny_flux2, manifest_of) -> Set:
    """Three images in two buckets of about 128 x 128 px, one without a caption, encoded with FLUX.2."""
    folder = tmp_path_factory.mktemp("small set of flux2")
    chosen = ("c-square.png", "e-wide.png", "h-square.png")
    manifest = manifest_of(folder, [image for image in IMAGES if image["name"] in chosen])
    config = EncodeConfig(aspects=("1/1", "3/2"))
    with TEXTS.text_length():
        info, _ = encode(manifest.path, str(tiny_flux2), folder / "encoded", config, device="cpu")
    return Set(manifest, folder / "encoded", info)


FAST = [
    "runtime.precision=float32",
    "runtime.gradient_checkpointing=false",
    "batch.size=3",
    "batch.micro=3",
    "trainable.rank=4",
    "trainable.alpha=4",
]
"""What makes a step of the tiny model quick."""


@pytest.fixture(scope="session")
def fast() -> list[str]:
    return FAST


@pytest.fixture
def job_of(small_set, tiny_flux, tmp_path) -> Callable[..., Job]:
    """`job_of("phases.main.steps=4", ..., out=...)`: a quick job on the small set."""

    def make(*sets: str, out: Path | None = None, model: Path = tiny_flux, data: Path | None = None) -> Job:
        recipe = resolve("lora", None, [*FAST, *sets])
        return start(recipe, str(model), [data or small_set.folder], out or tmp_path / "run")

    return make
