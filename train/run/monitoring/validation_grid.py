"""One PNG of all validation images of a run: a row for each prompt, a column for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uhr.base.errors import one_line
from uhr.base.files import atomic

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

FILE = "grid.png"

TILE = 384
"""The longest side of an image in the grid, px."""

COLUMNS = 10
"""The most columns: of more, the first, the last and some between are shown, evenly spread."""

_GAP, _TEXT = 8, 16

_NARROWEST = 160
"""The least width of a column, px: its label fits."""

_INK, _PAPER = (20, 20, 20), (255, 255, 255)

Facts = Mapping[str, str]
"""The prompt and seed of an image, as its PNG has them."""


def write_grid(out: Path, columns: Sequence[tuple[str, Path]], rows: Sequence[Facts], size: str) -> None:
    """Write the images of some folders, `NNN.png` each, into one labelled image.

    columns: the label of each folder, left to right. rows: the facts of image 0, 1, ...; an image with
        others, of an earlier configuration, is left out. size: of all images, as the grid's heading has it.
    """
    from PIL import Image, ImageDraw

    table = [[_tile(folder / f"{n:03d}.png", facts) for _, folder in columns] for n, facts in enumerate(rows)]
    kept = [place for place in range(len(columns)) if any(row[place] for row in table)]
    if not kept:
        return
    kept = _spread(kept)
    tiles = [tile for row in table for tile in row if tile is not None]
    width = max(_NARROWEST, *(tile.width for tile in tiles))
    height = max(tile.height for tile in tiles)
    font = _font()
    line = _TEXT + _GAP
    grid = Image.new(
        "RGB",
        (_GAP + len(kept) * (width + _GAP), 2 * line + _GAP + len(rows) * (height + line + _GAP)),
        _PAPER,
    )
    draw = ImageDraw.Draw(grid)
    whole = grid.width - 2 * _GAP
    draw.text((_GAP, _GAP), _fitting(size, font, whole), _INK, font)
    for number, place in enumerate(kept):
        left = _GAP + number * (width + _GAP)
        draw.text((left, _GAP + line), _fitting(columns[place][0], font, width), _INK, font)
        for index, row in enumerate(table):
            top = 2 * line + _GAP + index * (height + line + _GAP)
            if not number:
                draw.text((left, top), _fitting(_row_label(rows[index]), font, whole), _INK, font)
            tile = row[place]
            if tile is not None:
                grid.paste(tile, (left, top + line))
    with atomic(out) as temporary:
        grid.save(temporary, format="PNG")


def _row_label(facts: Facts) -> str:
    return f"seed {facts['seed']}: {one_line(facts['prompt'])}"


def has_facts(file: Path, facts: Facts) -> bool:
    """Whether the PNG exists and has these facts in its text."""
    from PIL import Image

    if not file.is_file():
        return False
    with Image.open(file) as image:
        text = getattr(image, "text", {})
    return all(text.get(name) == value for name, value in facts.items())


def _tile(file: Path, facts: Facts) -> Image.Image | None:
    """The image at the size of the grid; None if it is missing or of other facts."""
    from PIL import Image

    if not has_facts(file, facts):
        return None
    with Image.open(file) as image:
        tile = image.convert("RGB")
    tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return tile


def _spread(places: list[int]) -> list[int]:
    """At most `COLUMNS` of them: the first two (without the adapter, the first step), and the last."""
    if len(places) <= COLUMNS:
        return places
    rest, count = places[1:], COLUMNS - 1
    chosen = {rest[round(i * (len(rest) - 1) / (count - 1))] for i in range(count)}
    return [places[0], *sorted(chosen)]


def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(_TEXT)


def _fitting(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """The text, cut off where it is wider than `width` px."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
