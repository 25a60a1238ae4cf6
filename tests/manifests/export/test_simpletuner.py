"""SimpleTuner itself reads its export, where `SIMPLETUNER_PYTHON` names an interpreter that has it.

Its licence is AGPL and its dependencies conflict with ours, so it has an environment of its own:
`python -m venv ST; ST/bin/pip install 'simpletuner[cpu]'`. Its own code configures the data sets; only the
model, its caches of latents and of embeddings are mocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhr.manifests.export import format_named
from uhr.manifests.export.base import ExportOptions
from uhr.manifests.export.job import ExportRequest, export
from uhr.manifests.manifest import Manifest

PYTHON = os.environ.get("SIMPLETUNER_PYTHON", "")

_READ = """
import hashlib, json, os, sys
from types import SimpleNamespace
from unittest.mock import MagicMock
import numpy as np
from accelerate import Accelerator
from simpletuner.helpers.data_backend import factory
from simpletuner.helpers.prompts import PromptHandler
from simpletuner.helpers.training.state_tracker import StateTracker

class Settings(SimpleNamespace):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

settings = Settings(
    model_type="lora", model_family="flux", output_dir="out", data_backend_config=sys.argv[1],
    resolution=0.001, resolution_type="area", minimum_image_size=0, train_batch_size=1,
    aspect_bucket_rounding=2, aspect_bucket_alignment=8, metadata_update_interval=3600, max_train_steps=10,
    cache_dir="cache", gradient_accumulation_steps=1, skip_file_discovery="", controlnet=False)
os.makedirs("out")
os.makedirs("cache")
model = MagicMock()
for needs in ("latents", "dataset", "image_embeds"):
    getattr(model, f"requires_conditioning_{needs}").return_value = False
StateTracker.set_args(settings)
StateTracker.set_model(None)
factory.VAECache = factory.TextEmbeddingCache = MagicMock()
registry = factory.FactoryRegistry(settings, Accelerator(cpu=True), [], [], model)
registry.configure_data_backends(registry.load_configuration())
(backend,) = registry.data_backends.values()
root, files = backend["instance_data_dir"], backend["data_backend"]
captions, _, paths = PromptHandler.get_all_captions(
    instance_data_dir=root, use_captions=True, prepend_instance_prompt=False, data_backend=files,
    caption_strategy="parquet", return_image_paths=True)
found = {}
for path, caption in zip(paths, captions):
    image = np.asarray(files.read_image(path))
    size = backend["metadata_backend"].get_metadata_by_filepath(path)["original_size"]
    found[os.path.relpath(path, root)] = [caption, list(size), hashlib.sha256(image.tobytes()).hexdigest()]
print(json.dumps(found))
"""


@pytest.mark.skipif(not PYTHON, reason="SIMPLETUNER_PYTHON names no interpreter that has SimpleTuner")
def test_simpletuner_reads_captions_sizes_and_pixels(
    images: Manifest, make: Callable[..., Manifest], tmp_path: Path
) -> None:
    kept = images.table(where="status = 'kept'").to_pylist()
    rows = [{**row, "caption": row["caption"] or f"picture {n}\nof many"} for n, row in enumerate(kept)]
    rows[-1]["caption"] = None  # which it leaves out
    parent = make(tmp_path / "set", rows, root=images.root)
    out = tmp_path / "export"
    export(ExportRequest(parent, out, format_named("simpletuner")(parent), ExportOptions()))
    done = subprocess.run(
        [PYTHON, "-c", _READ, str(out / "train.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {Path(name): each for name, each in json.loads(done.stdout.splitlines()[-1]).items()}
    assert {name.stem for name in found} == {row["sample_id"] for row in rows[:-1]}
    by_id = {row["sample_id"]: row for row in rows}
    for name, (caption, size, digest) in found.items():
        row = by_id[name.stem]
        assert (caption, size) == (row["caption"], [row["width"], row["height"]])
        if name.suffix != ".jpg":  # decoders of JPEG differ in the last bits
            written = np.asarray(Image.open(out / "train" / name))
            assert digest == hashlib.sha256(written.tobytes()).hexdigest()
