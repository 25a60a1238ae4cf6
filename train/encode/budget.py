"""What an encode will cost, before any weight is loaded: images by bucket, bytes on disk, hours."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import ByteSize

from uhr.base.console import say, table
from uhr.base.formatting import duration, human_bytes, share
from uhr.manifests.manifest import Manifest
from uhr.models.zoo import ModelName
from uhr.train.encode.buckets import Bucket, fits
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.request import EncodeRequest, identity_without_hashes, resolved, select, sizes
from uhr.train.encode.stored.tensors import size_of
from uhr.train.encode.work.items import sizes_of
from uhr.train.encode.work.memory import memory_for

if TYPE_CHECKING:
    import torch


def budget(
    manifest: Path | str, model: str | ModelName, config: EncodeConfig, device: str = "auto", workers: int = 1
) -> dict[str, Any]:
    """Estimate an encode, as plain values. Nothing is written, and nothing is copied from other folders.

    Returns `images` (selected, too_small, unknown_size), `buckets`, distinct `captions`, `bytes` by what they
    store, `hours` by what computes, and the `rate` that the hours are from. An image of unknown size counts
    as one of the largest bucket. The hours are operations of VAE and text encoders over the rate of this
    machine's device, divided by the number of workers: reading and decoding images are not counted.
    """
    from uhr.models.zoo import pick_device

    found = Manifest.open(manifest)
    opened = ModelName.of(model).open()
    config = resolved(config, found, opened)
    request = EncodeRequest(
        out=Path(),
        manifest=found,
        model=opened,
        identity=identity_without_hashes(opened),
        config=config,
        buckets=sizes(config, opened),
        rows=select(found, config),
    )
    counts, too_small, unknown = _images(request)
    captions = _captions(request.rows, config)
    place = pick_device(device)
    return {
        "images": {"selected": request.rows.num_rows, "too_small": too_small, "unknown_size": unknown},
        "buckets": {str(bucket): counts[bucket] for bucket in request.buckets if counts[bucket]},
        "captions": captions,
        "bytes": _bytes(request, counts, captions),
        **_time(request, counts, captions, place, max(1, workers)),
    }


def _images(request: EncodeRequest) -> tuple[Counter[Bucket], int, int]:
    """Images by bucket, and how many are too small or of unknown size."""
    counts: Counter[Bucket] = Counter()
    too_small = unknown = 0
    largest = max(request.buckets, key=lambda bucket: bucket.height * bucket.width)
    for height, width, bucket, number in sizes_of(request.rows, request.buckets):
        if bucket is None:
            unknown += number
            counts[largest] += number
        elif request.config.enlarge or fits(height, width, bucket):
            counts[bucket] += number
        else:
            too_small += number
    return counts, too_small, unknown


def _captions(rows: pa.Table, config: EncodeConfig) -> int:
    """Number of distinct captions, the empty one included; 0 for pixels."""
    if config.pixels:
        return 0
    return len({""}.union(*(rows[name].fill_null("").unique().to_pylist() for name in config.captions)))


def _bytes(request: EncodeRequest, counts: Counter[Bucket], captions: int) -> dict[str, int]:
    """Bytes of the stored tensors, by what they are."""
    from uhr.models.families.registry import FAMILIES
    from uhr.models.loading.model import empty_transformer

    config, spec = request.config, request.model.spec
    if config.pixels:
        area = sum(b.height * b.width * count for b, count in counts.items())
        return {"pixels": 3 * area, **({} if config.mask is None else {"masks": area})}
    shapes = [(request.latent_shape(bucket), count) for bucket, count in counts.items()]
    stored = {"latents": sum(2 * size_of(shape, config.dtype) * count for shape, count in shapes)}
    if config.guide is not None:
        stored["guides"] = stored["latents"] // config.guide**2
    if config.mask is not None:
        stored["masks"] = sum(shape[1] * shape[2] * count for shape, count in shapes)
    family = FAMILIES[spec.family]
    transformer = empty_transformer(request.model)
    texts = family.text_shapes(transformer.config, spec.text_lengths[family.sequence]).values()
    stored["texts"] = captions * sum(size_of(shape, config.text_dtype) for shape in texts)
    return stored


def _time(
    request: EncodeRequest, counts: Counter[Bucket], captions: int, device: torch.device, workers: int
) -> dict[str, Any]:
    import torch

    from uhr.models.estimate.model import ModelCost
    from uhr.models.families.registry import FAMILIES
    from uhr.models.vae.tiled import ExactTiling

    if request.config.pixels:
        return {"hours": {"vae": 0.0, "texts": 0.0}, "rate": "nothing is computed"}
    spec = request.model.spec
    backbone = FAMILIES[spec.family]
    cost = ModelCost(request.model, backbone, torch.float32, spec.vae_factor, files={}, adapters=0)
    vae = cost.part("vae")
    tiling = ExactTiling(memory=ByteSize(memory_for(vae, device)))
    flops = 0
    for bucket, count in counts.items():
        flops += count * tiling.peak_and_flops(vae, "encode", bucket.height, bucket.width)[1]
        if request.config.guide is not None:
            small = bucket.height // request.config.guide, bucket.width // request.config.guide
            flops += count * tiling.peak_and_flops(vae, "encode", *small)[1]
    convolution, product = measured_rates(device, getattr(torch, request.config.text_dtype))
    rate = (
        f"measured on this machine's {device}: {convolution / 1e9:,.0f} GFLOP/s of convolutions, "
        f"{product / 1e9:,.0f} GFLOP/s of matrix products; {workers} at a time"
    )
    hours = {
        "vae": flops / convolution / workers / 3600,
        "texts": captions * cost.text.total / product / 3600,
    }
    return {"hours": hours, "rate": rate}


def measured_rates(device: torch.device, text_dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a float32 convolution as in the VAE, and of a matrix product as in the text
    encoders; takes about a second on a CPU.
    """
    import torch
    from torch.nn import functional as F

    image = torch.ones(1, 128, 192, 192, device=device)
    kernel = torch.ones(128, 128, 3, 3, device=device)
    rows = torch.ones(512, 1024, device=device, dtype=text_dtype)
    weight = torch.ones(4096, 1024, device=device, dtype=text_dtype)
    return (
        _rate(lambda: F.conv2d(image, kernel, padding=1), 2 * 9 * 128 * 128 * 192 * 192, device),
        _rate(lambda: F.linear(rows, weight), 2 * 512 * 1024 * 4096, device),
    )


def _rate(run: Any, operations: int, device: torch.device) -> float:
    """Operations a second of the fastest of three runs, after one that is not counted."""
    import torch

    best = float("inf")
    for attempt in range(4):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt:
            best = min(best, time.perf_counter() - start)
    return operations / best


def print_budget(found: dict[str, Any]) -> None:
    """Print what `budget` returns."""
    images, total = found["images"], sum(found["bytes"].values())
    say(f"{images['selected']:,} images, {found['captions']:,} captions")
    for name in ("too_small", "unknown_size"):
        if images[name]:
            say(f"{name.replace('_', ' ')}: {images[name]:,}")
    counted = sum(found["buckets"].values())
    table(["bucket", "images", "of all"], [[b, n, share(n, counted)] for b, n in found["buckets"].items()])
    say()
    table(["on disk", "size"], [[name, human_bytes(size)] for name, size in found["bytes"].items()])
    say(f"together {human_bytes(total)}")
    seconds = {name: duration(3600 * hours) for name, hours in found["hours"].items()}
    say(f"time: {seconds['vae']} for the VAE, {seconds['texts']} for the text encoders")
    say(f"rate {found['rate']}; reading and decoding are not counted")
