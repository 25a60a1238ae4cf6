"""`uhr eval vae`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uhr.base import console
from uhr.base.paths import anywhere, local
from uhr.models.cli import BASE_HELP, MODEL_HELP, SPEC_HELP
from uhr.train.evaluate.options import (
    AllowMissing,
    Clip,
    Device,
    Json,
    MetricWeights,
    Seed,
    Together,
    TrainedOn,
)


def vae(
    place: Annotated[
        Any,
        typer.Argument(
            parser=anywhere("MANIFEST"),
            metavar="MANIFEST",
            help="Its kept rows, also at s3://; or a folder of images.",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="DIR|ID|FILE", help=MODEL_HELP)],
    out: Annotated[
        Path,
        typer.Option(
            parser=local("--out"),
            metavar="DIR",
            help="The result, with the reconstructions as PNG; the same command resumes it.",
        ),
    ],
    other: Annotated[
        Path | None,
        typer.Option(
            "--vae",
            parser=local("--vae", utf8=True),
            metavar="PATH",
            help="Another VAE in place of the model's: a folder or a file.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="DIR|ID", help=BASE_HELP)] = None,
    spec: Annotated[str | None, typer.Option(metavar="NAME", help=SPEC_HELP)] = None,
    first: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Only the first N images; the result is marked as incomplete."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change a value of the protocol, and with it its id: metrics='[{metric: psnr}]'.",
        ),
    ] = None,
    weights: MetricWeights = None,
    allow_missing: AllowMissing = False,
    trained_on: TrainedOn = None,
    clip: Clip = None,
    seed: Seed = 0,
    together: Together = None,
    device: Device = "auto",
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Processes that reconstruct and score, each with its models; 0: this process."
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Score what a VAE reconstructs of the images of a manifest: rFID, PSNR, SSIM, LPIPS."""
    from uhr.models.loading.model import pick_device
    from uhr.models.loading.opening import ModelName
    from uhr.runtime.pool import Pool
    from uhr.train.evaluate import protocol, show
    from uhr.train.evaluate.overlap.lineage import Trained
    from uhr.train.evaluate.reconstruction.run import PROTOCOL, VaeJob, evaluate_vae
    from uhr.train.evaluate.scoring.request import Scoring

    found = evaluate_vae(
        VaeJob(
            protocol=protocol.load(str(PROTOCOL), sets).protocol,
            place=place,
            model=ModelName(model, spec, base),
            vae=other,
            out=out,
            scoring=Scoring(
                pool=Pool.of("local", workers, None),
                weights=weights or (),
                allow_missing=allow_missing,
                trained=Trained(trained_on or (), clip),
                seed=seed,
                device=str(pick_device(device)),
                together=together,
            ),
            first=first,
        )
    )
    value = {"out": str(found.folder), **found.info.model_dump(mode="json")}
    console.emit(value, as_json, lambda _: show.print_result(found))
