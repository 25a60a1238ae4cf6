"""Options that several commands of `uhr eval` have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uhr.base.paths import anywhere

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all resampling.")]

MetricWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="METRIC=PATH",
        help="The weights of a metric, or of several (fid,kid=PATH); METRIC.OPTION=PATH for what is "
        "not its option `weights`. Repeatable.",
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing", help="Leave out metrics without weights or references; the result lists them."
    ),
]
TrainedOn = Annotated[
    list[Any] | None,
    typer.Option(
        "--trained-on",
        parser=anywhere("--trained-on"),
        metavar="DIR",
        help="What the model was trained on (manifest, encoded data, or run): what prompts and references "
        "share with it is reported. Repeatable.",
    ),
]
Clip = Annotated[
    str | None,
    typer.Option(
        metavar="WEIGHTS",
        help="The CLIP model of the data's embeddings: prompts and references are also compared by it.",
    ),
]
Together = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Models in memory at one time; with more, images are decoded fewer times. Default: as many as "
        "have files that fit into a quarter of the memory.",
    ),
]
