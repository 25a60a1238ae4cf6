"""A small curated set with ranks, two captions and guides, encoded with the tiny models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from uhr.cli import main
from uhr.manifests.writer import Provenance, write_manifest
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode

HELD_OUT = "f.png"

QUICK = [
    "runtime.precision=float32",
    "runtime.gradient_checkpointing=false",
    "batch.size=2",
    "batch.micro=2",
]


@dataclass(frozen=True)
class Chain:
    """A run and its folders."""

    run: Path
    adapter: Path


@pytest.fixture(scope="session")
def ranked(tmp_path_factory, manifest_of):
    """Six images of 128 x 128 px; three of them in the top 5 % by ArtiMuse, whose ranks are below 0.05."""
    folder = tmp_path_factory.mktemp("ranked")
    names = [f"{letter}.png" for letter in "abcdef"]
    images = [
        {"name": name, "height": 128, "width": 128, "caption": "alt", "license": "CC0"} for name in names
    ]
    table = manifest_of(folder, images).table()
    ranks = pa.array([0.01, 0.049, 0.05, 0.6, 0.9, 0.04], pa.float64())
    flat = pa.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], pa.float64())
    table = table.append_column("artimuse_rank", ranks).append_column("flat_fraction", flat)
    table = table.append_column("caption_en", pa.array([f"image {name}" for name in names]))
    return write_manifest(
        folder / "ranked", table.schema, table.to_batches(), Provenance(folder / "pictures", {"kind": "test"})
    )


def _encoded(manifest, model: Path, out: Path, texts: ModuleType) -> Path:
    config = EncodeConfig(buckets="square", guide=4, captions=("caption", "caption_en"), dtype="float32")
    with texts.text_length():
        encode(manifest.path, str(model), out, config, device="cpu")
    return out


@pytest.fixture(scope="session")
def encoded(ranked, tiny_flux, tmp_path_factory, short_texts) -> Path:
    return _encoded(ranked, tiny_flux, tmp_path_factory.mktemp("encoded") / "flux1", short_texts)


@pytest.fixture(scope="session")
def klein_base(tmp_path_factory) -> Path:
    """A tiny FLUX.2 [klein] base: guided by two passes."""
    from uhr.models.zoo import make_tiny

    return make_tiny("tiny-flux2-base", tmp_path_factory.mktemp("klein") / "base", seed=0)


@pytest.fixture(scope="session")
def encoded2(ranked, klein_base, tmp_path_factory, short_texts) -> Path:
    return _encoded(ranked, klein_base, tmp_path_factory.mktemp("encoded") / "flux2", short_texts)


@pytest.fixture(scope="session")
def command_of(encoded, tiny_flux) -> Callable[..., list[str]]:
    """`command_of(recipe, out, steps, lr, *more)`: the command that trains a recipe on the tiny model, at its
    native size, without one image. `on` are the options of another model and its data.
    """
    from uhr.train.recipes import recipe

    def make(
        name: str, out: Path, steps: int, lr: float, *more: str, on: Sequence[str] | None = None
    ) -> list[str]:
        sets, names = list(QUICK), []
        for number, phase in enumerate(recipe(name).phases):
            sets += [f"phases.{number}.resolution=null", f"phases.{number}.steps={steps}"]
            sets += [f"phases.{number}.lr={lr}"]
            for place, use in enumerate(phase.data):
                where = f"uri <> '{HELD_OUT}'" + (f" and {use.where}" if use.where else "")
                sets.append(f'phases.{number}.data.{place}.where="{where}"')
                names.append(use.data)
        data = [part for name in dict.fromkeys(names) for part in ("--data", f"{name}={encoded}")]
        flags = [part for value in sets for part in ("--set", value)]
        place = ["--model", str(tiny_flux), *data] if on is None else on
        return ["train", "run", name, *place, "--out", str(out), *flags, *more]

    return make


@pytest.fixture(scope="session")
def chain_of(command_of, tmp_path_factory) -> Callable[..., Chain]:
    """`chain_of(recipe, steps, lr, *more)`: train and export through the command line."""

    def make(name: str, steps: int, lr: float, *more: str, on: Sequence[str] | None = None) -> Chain:
        folder = tmp_path_factory.mktemp("chain")
        run, adapter = folder / "run", folder / "export"
        assert main(command_of(name, run, steps, lr, *more, on=on)) == 0
        assert main(["train", "export", str(run), "--out", str(adapter)]) == 0
        return Chain(run, adapter)

    return make
