"""Q-Align (arXiv 2312.17090) through pyiqa: image quality or aesthetics from 1 to 5, many images at once.

pyiqa's own classes are used, with its own prompt, preprocessing and float16, so that a score is the one that
`pyiqa.create_metric("qalign")` gives. Three things are added around them, here and nowhere else: the hub id
that they contain is replaced by the folder that the user named, a method that newer transformers lacks is put
back, and images are scored in one batch where pyiqa's metric accepts one image at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uhr.base.errors import UserError, install, one_line
from uhr.base.quiet import quiet_deprecations, quiet_loading
from uhr.models.loading.checks import check_report
from uhr.models.scores.images import View, as_planes
from uhr.models.scores.offline import no_downloads, replace
from uhr.models.scores.weights import Weights, hash_of_files

if TYPE_CHECKING:
    import numpy as np
    import torch

HUB_ID = "q-future/one-align"
"""Where the published weights are (7B parameters)."""

PACKAGES = ("pyiqa", "icecream")
"""icecream is imported by pyiqa's Q-Align and not declared by pyiqa."""

Task = Literal["quality", "aesthetic"]

_one_at_a_time = threading.Lock()


class QAlign:
    """Expected rating in [1, 5] over the words bad, poor, fair, good and excellent, for one or both tasks.

    The model looks at the image padded to a square and resized to `side` (448 px in the published weights).
    With `native` it is given the whole image, as pyiqa's metric is. Without it the view is resized to `side`
    before it is padded: the same pixels to one level, apart from those at the border of the padding, and
    shifted by half a pixel of the model's input where the shorter side of the view is odd.
    """

    def __init__(self, net: Any, weights_hash: str, tasks: Sequence[Task], native: bool) -> None:
        self._net = net
        self.weights_hash = weights_hash
        self.tasks = tuple(tasks)
        self.side: int = net.image_processor.crop_size["height"]
        self.view = View() if native else View(longest=self.side, filter="bicubic")

    @classmethod
    def load(
        cls,
        weights: str | Path,
        device: str = "cpu",
        tasks: Sequence[Task] = ("quality",),
        native: bool = False,
    ) -> QAlign:
        """Load a checkpoint of the layout of `q-future/one-align` in float16.

        Args:
            weights: a local folder, a hub id or an object store.
            device: a torch device.
            tasks: what the prompt asks about: `quality` is scored as `q_align`, `aesthetic` as
                `q_align_aesthetic`.
            native: the view is the whole image.

        Raises:
            UserError: if a package or a part of the checkpoint is missing.
        """
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"the package '{package}' is not installed", install("quality"))
        folder = Weights.parse(weights).fetch()
        try:
            with _one_at_a_time, no_downloads(), quiet_loading(), _at(folder):
                net = _create(device)
        except UserError:
            raise
        except Exception as error:
            # transformers raises OSError, ValueError, KeyError and others for files that do not fit
            what = f"the weights of Q-Align in {folder} cannot be loaded ({one_line(error)[:200]})"
            raise UserError(what, f"name a folder with the files of {HUB_ID}") from error
        return cls(net, hash_of_files(folder), tasks, native)

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return `q_align`, and `q_align_aesthetic` for that task, of each image: float64 in [1, 5]."""
        import torch

        pixels = torch.cat([self._pixels(image) for image in images])
        found = {}
        for task in self.tasks:
            with quiet_deprecations():
                scores = self._net.model.score(images=None, image_tensor=pixels, task_=task, input_="image")
            name = "q_align" if task == "quality" else f"q_align_{task}"
            found[name] = scores.double().cpu().numpy()
        return found

    def _pixels(self, image: Any) -> torch.Tensor:
        """The model's input of one image, float16 [1, 3, side, side]."""
        planes = as_planes(image, self._net.model.device)
        return self._net.preprocess(planes[None].float() / 255)


def _create(device: str) -> Any:
    import logging

    import pyiqa
    from pyiqa.archs.q_align.visual_encoder import MplugOwlVisualAbstractorModel

    if not hasattr(MplugOwlVisualAbstractorModel, "invert_attention_mask"):
        owl = MplugOwlVisualAbstractorModel
        owl.invert_attention_mask = _invert_attention_mask  # ty: ignore[missing-attribute]
    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    with quiet_deprecations(), warnings.catch_warnings():
        # the class of its configuration sets it
        warnings.filterwarnings("ignore", "`rope_scaling` is deprecated", FutureWarning)
        return pyiqa.create_metric("qalign", device=device).net


def _invert_attention_mask(self: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return what to add to attention scores: 0 where the mask [batch, keys] or [batch, queries, keys] is 1,
    the smallest number of the model's dtype where it is 0. Newer transformers models lack this method.
    """
    import torch

    mask = mask[:, None, :, :] if mask.ndim == 3 else mask[:, None, None, :]
    return (1 - mask.to(self.dtype)) * torch.finfo(self.dtype).min


@contextlib.contextmanager
def _at(folder: Path) -> Generator[None]:
    """Make pyiqa's Q-Align load from `folder`: its modules contain the hub id."""
    from pyiqa.archs import qalign_arch
    from pyiqa.archs.q_align import modeling_mplug_owl2

    with contextlib.ExitStack() as stack:
        for module in (qalign_arch, modeling_mplug_owl2):
            for name in ("CLIPImageProcessor", "LlamaTokenizer"):
                if hasattr(module, name):
                    replace(stack, module, name, _LoadedFrom(getattr(module, name), folder))
        model = _LoadedFrom(qalign_arch.MPLUGOwl2LlamaForCausalLM, folder, checked=True)
        replace(stack, qalign_arch, "MPLUGOwl2LlamaForCausalLM", model)
        yield


class _LoadedFrom:
    """Replaces a class of transformers: `from_pretrained` loads from `folder`, not from the hub."""

    def __init__(self, cls: Any, folder: Path, checked: bool = False) -> None:
        self._cls, self._folder, self._checked = cls, folder, checked

    def from_pretrained(self, name: str, **options: Any) -> Any:
        assert name == HUB_ID, f"pyiqa loads {name}"
        options.pop("trust_remote_code", None)
        options["local_files_only"] = True
        if not self._checked:
            return self._cls.from_pretrained(self._folder, **options)
        part, report = self._cls.from_pretrained(self._folder, output_loading_info=True, **options)
        check_report(part, report, f"Q-Align in {self._folder}")
        return part
