"""People in an image: boxes by YOLOE with any words, or a count of frontal faces without weights.

The two are different measurements, and neither replaces the other: a detector of people gives boxes,
their area and the flag `character`; the face cascade gives `face_count` only.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, install, one_line, unknown
from uhr.models.scores.clip_package import clip_importable
from uhr.models.scores.images import View, as_tensor
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import Weights, combined_hash, hash_of_files

if TYPE_CHECKING:
    import numpy as np

LICENCE = "AGPL-3.0"
"""Of ultralytics and of the weights that it publishes."""


@dataclass(frozen=True)
class People:
    """What counts as a person.

    Args:
        labels: the words of the prompt, or names of a prompt-free model.
        min_confidence: boxes with less are left out.
        min_area: share of the image that one box must cover for the image to be a `character`.
        size: side in px of the square that the detector looks at.
    """

    labels: tuple[str, ...] = ("person",)
    min_confidence: float = 0.25
    min_area: float = 0.0
    size: int = 640

    @property
    def view(self) -> View:
        """The image without the padding of the square."""
        return View(longest=self.size, filter="bilinear")


class PeopleDetector:
    """YOLOE of ultralytics: boxes of the labels, at most 300 in an image, in float32."""

    def __init__(self, model: Any, people: People, device: str, weights_hash: str) -> None:
        self._model, self.people, self._device = model, people, device
        self.view = people.view
        self.weights_hash = weights_hash
        names = {name: number for number, name in dict(model.names).items()}
        for label in people.labels:
            if label not in names:
                raise unknown("label of the detector", label, names)
        self._classes = sorted(names[label] for label in people.labels)

    @classmethod
    def load(
        cls,
        weights: str | Path,
        people: People | None = None,
        text_encoder: str | Path | None = None,
        device: str = "cpu",
    ) -> PeopleDetector:
        """Load a YOLOE checkpoint (`.pt`). It is a pickle: name only a file that you trust.

        Args:
            weights: a local file, or one in an object store. Pickles are never downloaded from the hub.
            people: labels and thresholds.
            text_encoder: the encoder of the labels, `mobileclip_blt.ts` for YOLOE 11 (TorchScript), or
                prompt embeddings that ultralytics saved (`.npz`). None: the checkpoint is prompt-free, and
                the labels are among its names.
            device: a torch device.

        Raises:
            UserError: if ultralytics is not installed, a file does not fit, or a label is unknown.
        """
        if importlib.util.find_spec("ultralytics") is None:
            raise UserError("the package 'ultralytics' is not installed", install("people"))
        people = people or People()
        files = [Weights.parse(text).fetch() for text in (weights, text_encoder) if text is not None]
        yoloe = _ultralytics().YOLOE
        try:
            with no_downloads(), clip_importable():
                model = yoloe(str(files[0]))
                model.to(device)
                if text_encoder is not None:
                    _set_labels(model, people.labels, files[1], device)
        except Exception as error:
            # a pickle can raise anything, and so can TorchScript
            what = (
                f"the detector in {' with '.join(map(str, files))} cannot be loaded ({one_line(error)[:160]})"
            )
            raise UserError(what, "name a YOLOE checkpoint, and its own text encoder") from error
        return cls(model, people, device, combined_hash(hash_of_files(file) for file in files))

    def score(self, images: Sequence[Any]) -> dict[str, list[Any]]:
        """Return for each image:

        person_count: the number of boxes.
        person_area: the share of the image that the boxes cover together, in [0, 1].
        person_boxes: a mapping of `label`, `confidence`, `x`, `y`, `width` and `height` for each box, most
            confident first; the numbers of the box are shares of the image's width and height.
        character: whether one of the boxes covers `min_area` or more.
        """
        import numpy as np

        arrays = [np.ascontiguousarray(as_tensor(image).cpu().numpy()[:, :, ::-1]) for image in images]
        found = self._model.predict(
            arrays,
            imgsz=self.people.size,
            conf=self.people.min_confidence,
            classes=self._classes,
            # with rect, the padding of an image would depend on the other images of the batch
            rect=False,
            batch=len(arrays),
            device=self._device,
            verbose=False,
            save=False,
        )
        boxes = [_boxes(result) for result in found]
        areas = [[box["width"] * box["height"] for box in each] for each in boxes]
        return {
            "person_count": [len(each) for each in boxes],
            "person_area": [covered(each) for each in boxes],
            "person_boxes": boxes,
            "character": [any(area >= self.people.min_area for area in each) for each in areas],
        }


def _set_labels(model: Any, labels: Sequence[str], file: Path, device: str) -> None:
    """Set the classes of a promptable model from their text embeddings."""
    if file.suffix == ".npz":
        model.load_prompt_embeddings(file)
        return
    import torch
    from ultralytics.nn.text_model import MobileCLIPTS

    inner = model.model
    inner.clip_model = MobileCLIPTS(torch.device(device), str(file))
    try:
        embeddings = inner.get_text_pe(list(labels), cache_clip_model=True)
    finally:
        # it would be moved and copied with the model
        del inner.clip_model
    model.set_classes(list(labels), embeddings)


def _boxes(result: Any) -> list[dict[str, Any]]:
    height, width = result.orig_shape
    found = []
    for (x0, y0, x1, y1), confidence, label in zip(
        result.boxes.xyxy.tolist(), result.boxes.conf.tolist(), result.boxes.cls.tolist(), strict=True
    ):
        found.append(
            {
                "label": result.names[int(label)],
                "confidence": confidence,
                "x": x0 / width,
                "y": y0 / height,
                "width": (x1 - x0) / width,
                "height": (y1 - y0) / height,
            }
        )
    return sorted(found, key=lambda box: -box["confidence"])


def covered(boxes: Sequence[Mapping[str, Any]]) -> float:
    """Return the area of the union of boxes, exactly; the unit is that of the boxes, squared."""
    edges = sorted({x for box in boxes for x in (box["x"], box["x"] + box["width"])})
    total = 0.0
    for left, right in itertools.pairwise(edges):
        rows = sorted(
            (box["y"], box["y"] + box["height"])
            for box in boxes
            if box["x"] <= left and box["x"] + box["width"] >= right
        )
        top = -float("inf")
        for start, end in rows:
            total += max(0.0, end - max(start, top)) * (right - left)
            top = max(top, end)
    return total


@functools.cache
def _ultralytics() -> Any:
    """Import ultralytics so that it writes no settings of the user's, installs nothing and stays offline.

    These variables count only before its first import. Its settings go into a temporary folder.
    """
    folder = tempfile.mkdtemp(prefix="uhr-ultralytics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before = {name: os.environ.get(name) for name in _SWITCHES}
    os.environ.update(_SWITCHES, YOLO_CONFIG_DIR=folder)
    try:
        with clip_importable():
            import ultralytics

            return ultralytics
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_SWITCHES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "YOLO_CONFIG_DIR": "",
}


class FaceCascade:
    """Frontal faces by OpenCV's cascade of local binary patterns, which scikit-image contains.

    A weak detector: it misses turned and small faces, and finds some where there are none (in scikit-image's
    portrait one to four, depending on the size). OpenCV 5 itself has neither this class nor its files.
    """

    view = View(longest=640, filter="bilinear")

    def __init__(self, cascade: Any, smallest: float, weights_hash: str) -> None:
        self._cascade, self._smallest = cascade, smallest
        self.weights_hash = weights_hash

    @classmethod
    def load(cls, smallest: float = 0.06) -> FaceCascade:
        """Load the cascade; `smallest` is the least side of a face as a share of the image's shorter side.

        Raises UserError if scikit-image is not installed.
        """
        if importlib.util.find_spec("skimage") is None:
            raise UserError("the package 'scikit-image' is not installed", install("demo"))
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade

        file = lbp_frontal_face_cascade_filename()
        return cls(Cascade(file), smallest, hash_of_files(Path(file)))

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return `face_count` of each image, int64."""
        import numpy as np

        return {"face_count": np.array([self._count(image) for image in images], dtype=np.int64)}

    def _count(self, image: Any) -> int:
        array = as_tensor(image).cpu().numpy()
        shorter = min(array.shape[:2])
        # the cascade was trained on windows of 24 px
        least = max(24, round(self._smallest * shorter))
        if shorter <= least:
            return 0
        faces = self._cascade.detect_multi_scale(
            img=array,
            scale_factor=1.2,
            step_ratio=1,
            min_size=(least, least),
            max_size=(shorter, shorter),
        )
        return len(faces)
