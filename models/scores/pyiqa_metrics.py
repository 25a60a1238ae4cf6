"""Any no-reference metric of pyiqa by name (`piqe`, `musiq`, `clipiqa`, ...), with pyiqa's own value."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, install, one_line, unknown
from uhr.base.hub import snapshot
from uhr.models.scores.clip_package import clip_importable
from uhr.models.scores.images import View, as_planes
from uhr.models.scores.offline import NotDownloaded, no_downloads, replace
from uhr.models.scores.weights import Weights

if TYPE_CHECKING:
    import numpy as np

LICENCE = "PolyForm-Noncommercial-1.0.0"

SEED = 0
"""Some metrics look at random crops: they are drawn with this seed for each image."""

_MOST_FILES = 8
"""The most files that one metric may request from a hub repository, one after the other."""


class PyiqaMetric:
    """A no-reference metric of pyiqa in float32, computed for one image at a time as pyiqa does.

    `lower_better` and `range` (a text, or None) are pyiqa's own statements about the metric. The view is the
    image at its own size: each metric resizes as its own code does.
    """

    view = View()

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self.name: str = metric.metric_name
        self.lower_better: bool = bool(metric.lower_better)
        self.range: str | None = metric.score_range
        self.weights_hash = _hash_of_module(metric.net)

    @classmethod
    def load(cls, name: str, weights: str | Path | None = None, device: str = "cpu") -> PyiqaMetric:
        """Make the metric from files that are on this machine.

        Args:
            name: a no-reference metric of pyiqa; `names()` lists them.
            weights: a folder with pyiqa's files under their own names, and those of torchvision and timm in
                its folder `checkpoints`; or the hub repository from which pyiqa itself downloads,
                `chaofengc/IQA-PyTorch-Weights[@revision]`. None uses what pyiqa has downloaded before
                (`TORCH_HOME/hub/pyiqa`). pyiqa's files are pickles: name only a source that you trust.
            device: a torch device.

        Raises:
            UserError: if pyiqa is not installed, has no such metric, or a file is lacking.
        """
        if importlib.util.find_spec("pyiqa") is None:
            raise UserError("the package 'pyiqa' is not installed", install("quality"))
        if name not in names():
            raise unknown("no-reference metric of pyiqa", name, names())
        source = None if weights is None else Weights.parse(weights)
        if source is None or source.repository is None:
            return cls(_create(name, device, None if source is None else source.fetch()))
        assert source.repository is not None
        # only the metric's own code knows its files: create it again after each file that it lacks
        folder: Path | None = None
        fetched: list[str] = []
        while True:
            try:
                return cls(_create(name, device, folder))
            except _LacksFile as lack:
                if lack.file is None or lack.file in fetched or len(fetched) == _MOST_FILES:
                    raise UserError(lack.what, lack.fix) from lack
                fetched.append(lack.file)
                folder = snapshot(source.repository, source.revision, fetched)

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the metric's value of each image, under the metric's name (float64)."""
        import numpy as np

        return {self.name: np.array([self._score(image) for image in images], dtype=np.float64)}

    def _score(self, image: Any) -> float:
        planes = as_planes(image, self._metric.device)[None]
        with _seeded():
            return float(self._metric(planes.float() / 255).item())


def names() -> list[str]:
    """The no-reference metrics that this version of pyiqa has, without Q-Align and those of whole sets."""
    with clip_importable():
        import pyiqa
    return [
        name
        for name in pyiqa.list_models("NR")
        if not name.startswith(("qalign", "fid", "sfid", "inception_score", "clipscore", "compare2score"))
    ]


class _LacksFile(UserError):
    """A metric cannot be made because weights are not on this machine; `file` is the lacking file's name."""

    def __init__(self, what: str, fix: str, file: str | None) -> None:
        super().__init__(what, fix)
        self.file = file


def _create(name: str, device: str, folder: Path | None) -> Any:
    import torch.hub

    with clip_importable():
        import pyiqa
        from pyiqa.utils import download_util
    printed = io.StringIO()
    try:
        # pyiqa prints, and sets up a logger of its own
        with no_downloads(), contextlib.redirect_stdout(printed), contextlib.ExitStack() as stack:
            replace(stack, download_util, "download_url_to_file", torch.hub.download_url_to_file)
            if folder is not None:
                replace(stack, download_util, "DEFAULT_CACHE_DIR", str(folder))
                stack.callback(torch.hub.set_dir, torch.hub.get_dir())
                torch.hub.set_dir(folder)
            stack.enter_context(clip_importable())
            return pyiqa.create_metric(name, device=device)
    except Exception as error:
        # what is raised differs by library, and each wraps the others' errors
        lack = next((e for e in _chain(error) if isinstance(e, NotDownloaded)), None)
        if lack is not None:
            target = lack.target or lack.what
            what = f"the metric '{name}' needs {lack.what}, which is not on this machine"
            where = f" to {target}" if lack.target else ""
            file = os.path.basename(target) if "/IQA-PyTorch-Weights/" in lack.what else None
            raise _LacksFile(what, f"download it{where}, or name its folder as weights", file) from error
        fix = f"""check its files, or run `python -c "import pyiqa; pyiqa.create_metric('{name}')"` online"""
        raise UserError(
            f"the metric '{name}' of pyiqa cannot be loaded ({one_line(error)[:200]})", fix
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _seeded() -> Generator[None]:
    import numpy as np
    import torch

    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            np.random.seed(SEED)
            yield
    finally:
        np.random.set_state(state)


def _hash_of_module(net: Any) -> str | None:
    """Return the SHA-256 (64 hex digits) of all numbers that a metric was loaded with; None if it has none.

    pyiqa keeps some of them outside its `state_dict`: models in lists, tensors as attributes, and the names
    of files that it reads in each call.
    """
    total, count = hashlib.sha256(), 0
    for name, value in _numbers(net, ""):
        count += 1
        total.update(f"{name}\n".encode())
        total.update(value)
    return total.hexdigest() if count else None


def _numbers(module: Any, prefix: str) -> Iterable[tuple[str, bytes]]:
    import torch

    for name, tensor in module.state_dict().items():
        yield f"{prefix}{name}", _bytes(tensor)
    for path, part in module.named_modules():
        for name, value in sorted(vars(part).items()):
            where = f"{prefix}{path}.{name}"
            if isinstance(value, torch.Tensor):
                yield where, _bytes(value)
            elif isinstance(value, str) and os.path.isfile(value):
                yield name, Path(value).read_bytes()
            elif isinstance(value, list | tuple):
                for number, each in enumerate(value):
                    if isinstance(each, torch.nn.Module):
                        yield from _numbers(each, f"{where}.{number}.")


def _bytes(tensor: Any) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
