"""The demo's images: photographs of installed packages, generated scenes at 4K and above, planted faults."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from uhr.base.errors import UserError, install
from uhr.demo.faults import plant
from uhr.demo.planted import Planted
from uhr.demo.scenes import SCENES

_CC0 = "CC0-1.0"
_PUBLIC = "public domain"

SKIMAGE: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "astronaut.png",
        "an astronaut in an orange suit before a flag and a model of the shuttle",
        {"author": "NASA", "license": _PUBLIC, "source_url": "https://flic.kr/p/r9qvLn"},
    ),
    ("brick.png", "a wall of bricks, in gray", {"author": "CC0Textures", "license": _CC0}),
    ("camera.png", "a man with a camera on a tripod, in gray", {"author": "Lav Varshney", "license": _CC0}),
    ("chelsea.png", "a ginger cat looks at you", {"author": "Stefan van der Walt", "license": _CC0}),
    ("coffee.png", "a cup of coffee on a wooden table", {"author": "Rachel Michetti", "license": _CC0}),
    ("grass.png", "grass from above, in gray", {"author": "Linolafett", "license": _CC0}),
    ("gravel.png", "gravel, in gray", {"author": "CC0Textures", "license": _CC0}),
    ("hubble_deep_field.jpg", "galaxies in deep space", {"author": "NASA", "license": _PUBLIC}),
    ("ihc.png", "stained tissue under a microscope", {"author": "CMMI"}),
    ("motorcycle_left.png", "a motorcycle in a garage", {"author": "Middlebury 2014 stereo benchmark"}),
    ("retina.jpg", "the retina of a left eye", {"author": "Mikael Häggström", "license": _CC0}),
    ("rocket.jpg", "a rocket lifts off at dusk", {"author": "SpaceX", "license": _PUBLIC}),
)
"""File, caption, and the rights as scikit-image states them."""

ULTRALYTICS = (
    ("bus.jpg", "people walk past a blue bus in a street"),
    ("zidane.jpg", "two men in suits at the side of a football pitch"),
)


def gather(folder: Path, advance: Callable[..., None]) -> list[Planted]:
    """Write the demo's images below `folder`, always the same ones, and list what each is.

    `advance(note=...)` is called after each. Raises UserError if scikit-image is not installed.
    """
    files = [*_photographs(folder / "photographs", advance), *_scenes(folder / "scenes", advance)]
    planted = plant(folder / "planted", folder / "photographs", advance)
    (folder / "notes.txt").write_text("A text file among the pictures, with no picture of its name.\n")
    planted.append(Planted("notes.txt", "a text file", "failed", "not an image", fault=True))
    return [*files, *planted]


def _photographs(folder: Path, advance: Callable[..., None]) -> list[Planted]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    source = _package_folder("skimage") / "data"
    for name, caption, rights in SKIMAGE:
        shutil.copyfile(source / name, folder / name)
        # with a .json of all metadata next to it, as crawlers write
        metadata = {"caption": caption, **rights, "found_in": "scikit-image"}
        (folder / name).with_suffix(".json").write_text(json.dumps(metadata, ensure_ascii=False, indent=1))
        files.append(Planted(f"{folder.name}/{name}", caption))
        advance(note=name)
    for name, caption in ULTRALYTICS if importlib.util.find_spec("ultralytics") else ():
        shutil.copyfile(_package_folder("ultralytics") / "assets" / name, folder / name)
        (folder / name).with_suffix(".txt").write_text(caption + "\n")
        files.append(Planted(f"{folder.name}/{name}", caption))
        advance(note=name)
    return files


def _package_folder(package: str) -> Path:
    """The folder of a package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the demo's photographs come with {package}", install("demo"))
    return Path(spec.submodule_search_locations[0])


def _scenes(folder: Path, advance: Callable[..., None]) -> list[Planted]:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for seed, (name, caption, scene, height, width) in enumerate(SCENES):
        image = scene(np.random.default_rng(seed), height, width)
        jpeg, png = (cv2.IMWRITE_JPEG_QUALITY, 90), (cv2.IMWRITE_PNG_COMPRESSION, 1)
        suffix, settings = (".jpg", jpeg) if name.endswith(".jpg") else (".png", png)
        # imwrite would only return False where the disk is full
        (folder / name).write_bytes(cv2.imencode(suffix, image, settings)[1].tobytes())
        (folder / name).with_suffix(".txt").write_text(caption + "\n")
        files.append(Planted(f"{folder.name}/{name}", caption))
        advance(note=name)
    return files
