"""The reader of encoded data against a bare read of the same Parquet files into NumPy.

python -m benchmarks.reader

The bare read opens each file mapped into memory, and reads row group by row group with PyArrow; each tensor
ends as a NumPy array that is a view of Arrow's memory, which is never copied again. The reader gives batches
of torch tensors in the shuffled order of a run, with captions and names. Both decode the same bytes, verify
the checksums of all pages, begin with closed files in the page cache, and are measured by the time on a core
of all threads of the process: other work on the machine changes the time on the clock. They take turns.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.claims import Claim
from uhr.base.console import say, table
from uhr.curate.stages.frames.geometry import GEOMETRY
from uhr.curate.stages.frames.header import HEADER
from uhr.manifests.schema import sample_id, schema_of
from uhr.manifests.writer import Provenance, write_manifest
from uhr.models.zoo import make_tiny
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import EncodedData
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.stored.encoded import EncodedInfo

SHARE = 0.9
"""The least share of the bytes a second of a bare read."""

SIZE, IMAGES, BATCH, ROUNDS = 1024, 48, 2, 15


def report(claims: list[Claim]) -> None:
    """Print a table of claims, and exit with 1 if one does not hold."""
    table(["claim", "measured", "holds"], [[c.text, c.measured, "yes" if c.holds else "no"] for c in claims])
    say(f"{os.cpu_count()} cores, torch {torch.__version__}, pyarrow {pa.__version__}")
    sys.exit(0 if all(claim.holds for claim in claims) else 1)


def encoded(folder: Path, model: Path, size: int, images: int) -> Path:
    """Generate images of size x size px and encode them."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    root = folder / "images"
    root.mkdir()
    for number in range(images):
        name = f"{number:03d}.png"
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(root / name)
        facts = {"width": size, "height": size, "status": "kept", "caption": f"image {number}"}
        rows.append({"sample_id": sample_id(name), "uri": name, **facts})
    schema = schema_of([*HEADER, *GEOMETRY])
    batch = pa.RecordBatch.from_pylist(rows, schema)
    provenance = Provenance(root, {"kind": "benchmark", "rows": len(rows)})
    manifest = write_manifest(folder / "manifest", schema, [batch], provenance)
    config = EncodeConfig(aspects=("1/1",), resolution=size)
    encode(manifest.path, str(model), folder / "encoded", config, device="cpu")
    return folder / "encoded"


def planned_read(path: Path, info: EncodedInfo) -> None:
    """Read every row once, in the order of a run."""
    data = EncodedData(path, info)
    sizes, groups = [each.rows for each in info.buckets], [each.group_rows for each in info.buckets]
    for batch in BucketPlan(sizes, BATCH, 0, block=groups).epoch(0):
        data.read(batch.bucket, batch.rows)


def bare_read(path: Path, info: EncodedInfo, *, checksums: bool = True, copy: bool = False) -> None:
    """Read every tensor into a NumPy array, row group by row group. copy: into memory of its own."""
    parts = [(part, info.config.tensors) for bucket in info.buckets for part in bucket.parts]
    parts += [(part, tuple(info.geometry.text_shapes)) for part in info.texts.parts]
    for part, names in parts:
        options = {"memory_map": True, "page_checksum_verification": checksums}
        with pq.ParquetFile(path / part.path, **options) as file:
            for group in range(file.num_row_groups):
                read = file.read_row_group(group)
                for name in names:
                    for cell in read.column(name):
                        array = np.frombuffer(cell.as_buffer(), np.uint8)
                        if copy:
                            array.copy()


def reader_against_bare(path: Path) -> Claim:
    """Measure the reader and the bare read in turns."""
    info = EncodedData.open(path).info
    ways: dict[str, Callable[[], None]] = {
        "the reader, in the order of a run": lambda: planned_read(path, info),
        "bare, each tensor a view": lambda: bare_read(path, info),
        "bare, each tensor copied once": lambda: bare_read(path, info, copy=True),
        "bare, a view, without checksums": lambda: bare_read(path, info, checksums=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            times[name].append(time.process_time() - begin)
    own, bare, *_ = times.values()
    ratio = statistics.median(theirs / mine for mine, theirs in zip(own, bare, strict=True))
    megabytes = sum(part.bytes for part in info.parts if part not in info.samples) / 1e6
    medians = {name: statistics.median(each) for name, each in times.items()}
    table(
        [f"{megabytes:.0f} MB", "median ms of CPU", "MB/s", "speed of the reader to it"],
        [
            [
                name,
                round(1000 * each, 1),
                round(megabytes / each),
                f"{each / next(iter(medians.values())):.0%}",
            ]
            for name, each in medians.items()
        ],
    )
    return Claim(
        f"the reader has {SHARE:.0%} of a bare read's bytes a second", f"{ratio:.1%}", ratio >= SHARE
    )


def main() -> None:
    """Measure, print a table, and exit with 1 if the claim does not hold."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny = make_tiny("tiny-flux1", folder / "tiny", seed=0)
        claim = reader_against_bare(encoded(folder / "data", tiny, SIZE, IMAGES))
    report([claim])


if __name__ == "__main__":
    main()
