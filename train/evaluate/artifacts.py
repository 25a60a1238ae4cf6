"""Measures the artifacts of images of any origin, without a protocol, and draws where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uhr.base.console import counted, progress, say, shown, table
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving
from uhr.base.paths import path_text
from uhr.train.evaluate.images import ImageRef, image_files
from uhr.train.evaluate.show import precise

METRICS = ("grid", "speckle", "repetition")


def chosen(metrics: Sequence[str], options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Make the metrics by name, with their options.

    Raises UserError for a metric that cannot say where its values come from, or options of one that was not
    chosen.
    """
    from uhr.models.metrics.registry import metric, metric_class

    others = [name for name in options if name not in metrics]
    if others:
        fix = f"name one of {', '.join(metrics)}, or add --metric {others[0]}"
        raise UserError(f"--set {others[0]}: this metric is not measured", fix)
    for name in metrics:
        if not hasattr(metric_class(name), "heat"):
            fix = "name grid, seams, speckle or repetition; `uhr eval run` scores others"
            raise UserError(f"'{name}' is not a metric of artifacts", fix)
    return {name: metric(name, **options.get(name, {})) for name in metrics}


def measure(places: Sequence[Path], metrics: dict[str, Any], heatmaps: Path | None) -> list[dict[str, Any]]:
    """Score images, and with `heatmaps` write an overlay for each image and metric into that folder.

    Args:
        places: image files, and folders of them.

    Returns a row per image: `file`, the columns of all metrics, and the overlays by metric in `heatmaps`.
    Raises UserError for a place without an image, an image that cannot be scored, or a file that exists.
    """
    from uhr.models.metrics.artifacts.heat import overlay
    from uhr.models.metrics.base import Sample
    from uhr.pixels.decode import png

    files = images_of(places)
    targets = {} if heatmaps is None else overlay_files(files, list(metrics), heatmaps)
    rows = []
    with progress("measure", len(files), "images") as advance:
        for number, (file, _) in enumerate(files):
            image, _, _ = ImageRef(str(file), path_text(file.absolute())).pixels()
            row: dict[str, Any] = {"file": str(file)}
            try:
                for name, metric in metrics.items():
                    row |= metric.score([Sample(image, number, path=file)])[0]
                    if heatmaps is not None:
                        target = targets[number, name]
                        row.setdefault("heatmaps", {})[name] = str(target)
                        _write(target, png(overlay(image, metric.heat(image, number))))
            except UserError as error:
                raise UserError(f"{file}: {error.what}", error.fix) from error
            rows.append(row)
            advance(1)
    return rows


def _write(target: Path, data: bytes) -> None:
    with saving(target.parent, "free space there"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            temporary.write_bytes(data)


def images_of(places: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return the image files in some places, each with its name below the folder that was given."""
    found = []
    for place in places:
        if place.is_dir():
            files = image_files(place)
            if not files:
                raise UserError(f"{place} contains no image", "name images, or a folder of them")
            found += [(file, file.relative_to(place)) for file in files]
        elif place.is_file():
            found.append((place, Path(place.name)))
        else:
            raise UserError(f"{place} does not exist", "name images, or a folder of them")
    return found


def overlay_files(
    files: Sequence[tuple[Path, Path]], metrics: Sequence[str], folder: Path
) -> dict[tuple[int, str], Path]:
    """Return the overlay of each image and metric: `FOLDER/NAME.png.grid.png`.

    Raises UserError if one exists, or if two images have one name.
    """
    found: dict[tuple[int, str], Path] = {}
    seen: dict[Path, Path] = {}
    for number, (file, name) in enumerate(files):
        if name in seen:
            raise UserError(f"{file} and {seen[name]} have one name", "measure them one after the other")
        seen[name] = file
        for metric in metrics:
            target = folder / name.with_name(f"{name.name}.{metric.replace(':', '.')}.png")
            if target.exists():
                raise UserError(f"{target} exists", "name another --heatmaps folder")
            found[number, metric] = target
    return found


def print_rows(rows: Sequence[dict[str, Any]], heatmaps: Path | None) -> None:
    """Print a line per image."""
    names = [name for name in rows[0] if name not in ("file", "heatmaps")]
    table(("file", *names), [[row["file"], *(precise(row[name]) for name in names)] for row in rows])
    if heatmaps is not None:
        count = sum(len(row["heatmaps"]) for row in rows)
        say(f"\n{shown(heatmaps)}: {counted(count, 'heat map')}")
