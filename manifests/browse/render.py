"""A process that makes thumbnails: `python -m uhr.manifests.browse.render MANIFEST`.

Image files are decoded in a process of their own: one that crashes or blocks the decoder ends this process,
not the browser. It reads requests as lines of JSON, `{"row": ..., "side": 320}`, and answers each with a line
of JSON, `{"bytes": 12345}`, and the JPEG behind it, or `{"fault": "truncated: ..."}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

from uhr.base.errors import UserError
from uhr.base.paths import text_path
from uhr.manifests.manifest import Manifest
from uhr.pixels.decode import decode, jpeg_preview
from uhr.pixels.types import PixelFault


def render(manifest: Manifest, row: Mapping[str, Any], side: int) -> bytes:
    """Return the image of a row, or the patch of it, as a JPEG whose longer side is at most `side` px.

    Raises PixelFault if there is no image to be read, and UserError if the source is not there.
    """
    decoded = decode(manifest.source.open(row).read())
    box = row.get("box")
    if box is not None:
        x, y, width, height = box
        inside = (
            x >= 0 and y >= 0 and x + width <= decoded.header.width and y + height <= decoded.header.height
        )
        if not inside:
            raise PixelFault("changed", f"the box {box} is outside of the image")
    rgb = decoded.rgb(None if box is None else tuple(box), side)
    return jpeg_preview(rgb, side)[0]


def serve(manifest: Manifest, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        try:
            data = render(manifest, request["row"], request["side"])
            answers.write(json.dumps({"bytes": len(data)}).encode() + b"\n" + data)
        except (PixelFault, UserError) as fault:
            answers.write(json.dumps({"fault": str(fault)}).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Serve on standard input and output; whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(Manifest.open(text_path(sys.argv[1])), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
