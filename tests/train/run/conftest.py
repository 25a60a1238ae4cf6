"""Pixel crops of a small curated set, and files of LPIPS with random weights."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from uhr.manifests.writer import Provenance, write_manifest
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.recipes import resolve
from uhr.train.run.job import Job, start

FLATNESS = {"a.png": 0.5, "b.png": 0.1, "c.png": 0.3, "d.png": 0.3, "e.png": None, "f.png": 0.0}
"""Of six images; b, f and the first of the two equal ones are the less flat half."""


@pytest.fixture(scope="session")
def curated(tmp_path_factory, manifest_of):
    """Six images of 64 x 64 px with their flatness; one has none."""
    folder = tmp_path_factory.mktemp("curated crops")
    images = [{"name": name, "height": 64, "width": 64, "license": "CC0"} for name in FLATNESS]
    table = manifest_of(folder, images).table()
    flatness = pa.array([FLATNESS[uri] for uri in table["uri"].to_pylist()], pa.float64())
    table = table.append_column("flat_fraction", flatness)
    provenance = Provenance(folder / "pictures", {"kind": "test"})
    return write_manifest(folder / "crops", table.schema, table.to_batches(), provenance)


@pytest.fixture(scope="session")
def crops(curated, tiny_flux, tmp_path_factory) -> Path:
    """`curated`, stored as pixels."""
    out = tmp_path_factory.mktemp("crops") / "pixels"
    config = EncodeConfig(pixels=True, buckets="square", resolution=64)
    encode(curated.path, str(tiny_flux), out, config, device="cpu")
    return out


@pytest.fixture(scope="session")
def lpips_files(tmp_path_factory) -> list[str]:
    """`--set` values that name files of LPIPS for AlexNet, with random weights."""
    import torchvision

    folder, before = tmp_path_factory.mktemp("lpips files"), torch.get_rng_state()
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, folder / "net.pth")
    channels = (64, 192, 384, 256, 256)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}
    torch.save(heads, folder / "heads.pth")
    torch.set_rng_state(before)
    where = "phases.main.objective.perceptual"
    files = [f"{where}.network_file={folder / 'net.pth'}", f"{where}.heads_file={folder / 'heads.pth'}"]
    return [f"{where}.network=alexnet", *files]


FAST = [
    "phases.main.resolution=64",
    "batch.size=2",
    "batch.micro=2",
    "phases.main.lr=0.001",
    "phases.main.steps=4",
    "runtime.precision=float32",
]


@pytest.fixture(scope="session")
def fast_vae(lpips_files) -> list[str]:
    """What makes a step of the tiny VAE quick."""
    return [*FAST, *lpips_files]


@pytest.fixture
def vae_job(crops, tiny_flux, fast_vae, tmp_path) -> Callable[..., Job]:
    """`vae_job("phases.main.steps=4", ...)`: a job on the crops."""

    def make(*sets: str, out: Path | None = None, model: Path = tiny_flux) -> Job:
        recipe = resolve("vae-f16", None, [*fast_vae, *sets])
        return start(recipe, str(model), [crops], out or tmp_path / "run")

    return make
