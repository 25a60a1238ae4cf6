"""One HTML page for a comparison: tables, prompts with thumbnails, and a viewer down to single pixels.

The page needs no network. Full images of the first rows are in it, as far as the budget allows; the others
are links to the files that were scored.
"""

from __future__ import annotations

import base64
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.base.files import atomic, saving
from uhr.base.paths import path_text
from uhr.train.evaluate.bootstrap import LEAST_PROMPTS
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.compare.citations import bibtex
from uhr.train.evaluate.compare.comparison import (
    Arm,
    ComparedColumn,
    Comparison,
    image_file,
    one_of_several,
    spaced,
)
from uhr.train.evaluate.compare.tables import overlap_rows
from uhr.train.evaluate.compare.template import template
from uhr.train.evaluate.images import ImageRef
from uhr.train.evaluate.overlap.compare import describe
from uhr.train.evaluate.result import ResultInfo
from uhr.train.evaluate.show import ARROWS, precise, with_interval

if TYPE_CHECKING:
    import numpy as np

PAGE = Path(__file__).parent / "page.html"

EMBEDDED = 64_000_000
"""Bytes of full images in the page, before base64."""

MOST_ROWS = 300
"""More images are not listed: a page of 300 rows with two methods has 10 MB of thumbnails."""

THUMBNAIL, QUALITY = 384, 95
"""Long side in px of a thumbnail, and the JPEG quality of full images in the page."""

AT_ONCE = 4
"""Images that are decoded at the same time."""

PLOT = 96.0
"""Half the width of a plot of differences in SVG units, without its margin."""


class _Picture(NamedTuple):
    """An image of a row: a thumbnail, the size of both, and the full image or a link to it."""

    thumbnail: str
    size: tuple[int, int]
    thumbnail_size: tuple[int, int]
    source: str
    is_embedded: bool
    file: str


def write_page(
    found: Comparison,
    out: Path,
    budget: int = EMBEDDED,
    experiment: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page to the file `out`, atomically.

    Args:
        budget: bytes of full images that are put into the page.
        experiment: what `experiment.html` shows in place of the values and differences of single results.

    Raises UserError if `out` is a folder or cannot be written, or if an image is missing or has changed.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "name an HTML file")
    recipes = () if experiment is None else experiment["recipes"]
    content = {**_content(found, out, budget), "bibtex": bibtex(found, recipes)}
    text = template(PAGE).render(**content, experiment=experiment)
    with saving(out, "free space there, or name another file with --out"), atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def _content(found: Comparison, out: Path, budget: int) -> dict[str, Any]:
    info = found.arms[0].info
    chosen = spaced(info.n, MOST_ROWS)
    per_image = [column for column in found.columns if column.kind == "image"]
    pictures = _pictures(found.arms, chosen, out, budget)
    rows = [_row(found, per_image, row, pictures[at]) for at, row in enumerate(chosen)]
    embedded = sum(all(one.is_embedded for one in each) for each in pictures)
    percent = f"{info.level:.0%}"
    return {
        "protocol": found.protocol,
        "info": info,
        "percent": percent,
        "least": LEAST_PROMPTS,
        "arms": found.arms,
        "columns": [_column(found, column) for column in found.columns],
        "overlap": overlap_rows(arm.info.overlap for arm in found.arms),
        "differences": [one for column in found.columns for one in _differences(found, column)],
        "rows": rows,
        "shown": len(rows),
        "embedded": embedded,
        "linked": len(rows) - embedded,
        "facts": _facts(found.arms),
        "identities": _yaml({m.name: m.identity for arm in found.arms for m in arm.info.metrics}),
        "tree": _yaml(info.protocol.tree),
        "data": {
            "arms": [arm.name for arm in found.arms],
            "rows": [_data(row, pictures[at]) for at, row in enumerate(rows)],
        },
    }


def _column(found: Comparison, column: ComparedColumn) -> dict[str, Any]:
    from uhr.models.metrics.base import column_name

    return {
        "name": column.name,
        "own": column_name(column.metric),
        "metric": column.metric,
        "short": _short(found, column),
        "meaning": column.meaning,
        "arrow": ARROWS[column.better],
        "per_image": column.kind == "image",
        "values": [
            "–" if value is None else with_interval(value, found.arms[0].info.n) for value in column.values
        ],
    }


class Shown(NamedTuple):
    """A difference of an arm from the first one. wins: see `Difference`. fewer: see `Comparison.fewer`."""

    arm: str
    value: float
    low: float | None
    high: float | None
    clear: bool
    wins: float | None = None
    fewer: str = ""


def _short(found: Comparison, column: ComparedColumn) -> str:
    """A name for people: of the metric without its options, or of the column where it has several."""
    return _one_of_several(found, column) or column.metric.partition("/")[0]


def _one_of_several(found: Comparison, column: ComparedColumn) -> str:
    """See `one_of_several`."""
    return one_of_several(column.name, column.metric, [each.metric for each in found.columns])


def _differences(found: Comparison, column: ComparedColumn) -> list[dict[str, Any]]:
    """The rows of a column in the table of differences."""
    known = [
        Shown(arm.name, each.value, each.low, each.high, each.clear, each.wins, found.fewer(column, each))
        for arm, each in zip(found.arms, column.differences, strict=True)
        if each is not None
    ]
    return difference_rows((column.metric, _one_of_several(found, column)), column.better, known)


def difference_rows(
    names: tuple[str, str], better: str | None, known: Sequence[Shown]
) -> list[dict[str, Any]]:
    """The rows of a column in a table of differences, with the geometry of their plots.

    names: of the metric, and of the column if the metric has several.
    """
    ends = [abs(end) for each in known for end in (each.value, each.low, each.high) if end is not None]
    widest = max(ends, default=0.0) or 1.0
    # better is to the right, whatever the direction of the metric; without one there is no plot
    sign = {"higher": 1, "lower": -1, None: 0}[better]
    rows = []
    for each in known:
        place = {name: _place(end, sign, widest) for name, end in (("low", each.low), ("high", each.high))}
        rows.append(
            {
                "metric": names[0],
                "column": names[1],
                "arrow": ARROWS[better],
                "arm": each.arm,
                "value": f"{each.value:+.4g}",
                "interval": _interval(each.low, each.high) + each.fewer,
                "plotted": better is not None,
                "dot": _place(each.value, sign, widest),
                **place,
                "clear": each.clear,
                "verdict": ("better" if sign * each.value > 0 else "worse") if each.clear else "neither",
                "wins": "–" if each.wins is None else f"{100 * each.wins:.0f} %",
            }
        )
    return rows


def _place(value: float | None, sign: int, widest: float) -> float | None:
    return None if value is None else round(100 + PLOT * sign * value / widest, 2)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"[{low:+.4g}, {high:+.4g}]"


def _pictures(arms: Sequence[Arm], rows: Sequence[int], out: Path, budget: int) -> list[list[_Picture]]:
    """The images of each row, one per arm."""
    made: list[list[_Picture]] = []
    with progress("page", len(rows), "rows") as advance, ThreadPoolExecutor(AT_ONCE) as pool:
        for row in rows:
            read = list(pool.map(lambda arm, at=row: read_image(arm, at), arms))
            full = [jpeg(pixels) for pixels, _ in read] if budget > 0 else []
            fits = 0 < sum(map(len, full)) <= budget
            # once a row does not fit, no later one is tried: encoding takes longer than decoding
            budget = budget - sum(map(len, full)) if fits else 0
            made.append(
                [
                    _picture(pixels, file, full[at] if fits else None, out)
                    for at, (pixels, file) in enumerate(read)
                ]
            )
            advance()
    return made


def read_image(arm: Arm, row: int) -> tuple[np.ndarray, Path]:
    """The pixels of an image that was scored. Raises UserError if it is missing or has changed."""
    file = image_file(arm, row)
    pixels, sha256, _ = ImageRef(str(file), path_text(file)).pixels()
    if sha256 != arm.scores["sha256"][row].as_py():
        raise UserError(
            f"{file} has changed since it was scored", "score the images again with `uhr eval run`"
        )
    return pixels, file


def _picture(pixels: np.ndarray, file: Path, full: bytes | None, out: Path) -> _Picture:
    from uhr.pixels.decode import jpeg_preview

    data, width, height = jpeg_preview(pixels, THUMBNAIL, 85)
    return _Picture(
        _uri(data),
        (pixels.shape[1], pixels.shape[0]),
        (width, height),
        _uri(full) if full is not None else _link(file, out),
        full is not None,
        str(file),
    )


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _link(file: Path, out: Path) -> str:
    """The URL of a file, relative to the folder of the page."""
    relative = os.path.relpath(file.absolute(), out.absolute().parent)
    return urllib.parse.quote(os.fsencode(relative))


def jpeg(pixels: np.ndarray) -> bytes:
    """A full image, without chroma subsampling: 4:2:0 would halve the resolution of colour."""
    import cv2
    import numpy as np

    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    assert done, "OpenCV encodes every uint8 image"
    return data.tobytes()


def _row(
    found: Comparison, columns: Sequence[ComparedColumn], row: int, pictures: Sequence[_Picture]
) -> dict[str, Any]:
    first = found.arms[0].scores
    scores = [{column.name: _score(arm, column.name, row) for column in columns} for arm in found.arms]
    texts = [{name: precise(value) for name, value in each.items()} for each in scores]
    return {
        "name": first["name"][row].as_py(),
        "prompt": first["prompt"][row].as_py(),
        "images": [
            {
                "thumbnail": picture.thumbnail,
                "width": picture.thumbnail_size[0],
                "height": picture.thumbnail_size[1],
                "scores": text,
            }
            for picture, text in zip(pictures, texts, strict=True)
        ],
        "apart": {
            str(at): _apart([each[column.name] for each in scores])
            for at, column in enumerate(found.columns)
            if column.kind == "image"
        },
        "labels": [
            " · ".join(f"{_short(found, column)} {text[column.name]}" for column in columns) for text in texts
        ],
    }


def _apart(values: Sequence[float | None]) -> float | None:
    """How far apart the values of a row are."""
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else None


def _score(arm: Arm, name: str, row: int) -> float | None:
    """The value of an image; None if it has none, or if its weight in the mean is 0."""
    column = arm.column(name)
    if column is None or (column.weight is not None and not arm.scores[column.weight][row].as_py()):
        return None
    return arm.scores[name][row].as_py()


def _data(row: Mapping[str, Any], pictures: Sequence[_Picture]) -> dict[str, Any]:
    """A row for the viewer."""
    return {
        "name": row["name"],
        "prompt": row["prompt"],
        "apart": row["apart"],
        "images": [
            {
                "source": one.source,
                "file": one.file,
                "width": one.size[0],
                "height": one.size[1],
                "scores": label,
            }
            for one, label in zip(pictures, row["labels"], strict=True)
        ],
    }


def _facts(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """Where the images of each arm come from, and what is missing."""
    infos = [arm.info for arm in arms]
    return [
        ("images", [str(info.images) for info in infos]),
        ("sampler", [_made(info, "sampler") for info in infos]),
        ("model", [_made(info, "model") for info in infos]),
        ("adapters", [_adapters(info) for info in infos]),
        ("options", [_made(info, "options") for info in infos]),
        ("missing metrics", ["; ".join(grouped(info.missing)) or "none" for info in infos]),
        ("overlap with training", [describe(info.overlap) for info in infos]),
        ("scored", [f"{info.created[:16].replace('T', ' ')} UTC, uhr {info.uhr}" for info in infos]),
    ]


def _made(info: ResultInfo, name: str) -> str:
    if info.made is None:
        return "not recorded"
    value = info.made["request"].get(name)
    return ", ".join(f"{k}={v}" for k, v in value.items()) or "–" if isinstance(value, dict) else str(value)


def _adapters(info: ResultInfo) -> str:
    adapters = [] if info.made is None else info.made["request"]["adapters"]
    return ", ".join(f"{each['name']}={each['scale']:g}" for each in adapters) or "none"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
