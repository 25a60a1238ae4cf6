"""The Inception network of FID, from a local file, as an extractor of features.

It is the network of TensorFlow's `inception-2015-12-05`, in one of its two published forms: the TorchScript
of StyleGAN2 and clean-fid, or the state dict of pytorch-fid and torch-fidelity. torchvision's ImageNet
weights are of another network, whose distances are no FID.
"""

from __future__ import annotations

import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, one_line
from uhr.models.loading.hashes import file_hash
from uhr.models.metrics.base import check_image, versions
from uhr.models.metrics.features import Features
from uhr.models.metrics.resizing import SIDE, Rule, crops
from uhr.models.scores.weights import Weights, read_tensors

if TYPE_CHECKING:
    import numpy as np
    import torch

SOURCES: Mapping[str, str] = {
    "inception-2015-12-05.pt": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt (TorchScript, as clean-fid)",
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/releases/download/"
    "fid_weights/pt_inception-2015-12-05-6726825d.pth (state dict, as pytorch-fid and torch-fidelity)",
}
"""File -> where it is published."""

HOW = " or ".join(SOURCES.values())

CLASSES = 1008

WIDTH = 2048

BATCH = 16
"""Crops that go through the network at once."""


class InceptionNetwork:
    """Pooled features and class probabilities of images of 299 px."""

    def __init__(self, layers: Any, output: torch.Tensor, device: str, weights_hash: str) -> None:
        self._layers, self._output, self._device = layers, output.to(device), device
        self.weights_hash = weights_hash

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features float32 [N, 2048] and probabilities float32 [N, 1008] of images [N, 299, 299, 3]
        with values in [0, 255]. As in the original Inception Score of TensorFlow's port, the logits have no
        bias.
        """
        import numpy as np
        import torch

        features, probabilities = [], []
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH], dtype=np.float32))
            with torch.inference_mode():
                pixels = (batch.to(self._device).permute(0, 3, 1, 2) - 128) / 128
                pooled = self._layers(pixels).reshape(len(batch), -1)
                features.append(pooled.cpu().numpy())
                probabilities.append((pooled @ self._output.T).softmax(dim=1).cpu().numpy())
        return np.concatenate(features), np.concatenate(probabilities)


_shared: weakref.WeakValueDictionary[tuple[str | None, str], InceptionNetwork] = weakref.WeakValueDictionary()
"""Networks that some metric uses, by file and device: it is freed with the last of them."""


def load_network(weights: str | None, device: str = "cpu") -> InceptionNetwork:
    """Load the network from one of the files of `SOURCES`, which metrics that exist at one time share.
    TorchScript is a program: name only a file from a source that you trust.

    Raises UserError, which says where the files are published, if there is none or it is of another network.
    """
    found = _shared.get((weights, device))
    if found is None:
        found = _shared[weights, device] = _load(weights, device)
    return found


def _load(weights: str | None, device: str) -> InceptionNetwork:
    if weights is None:
        raise UserError(
            "the weights of FID's Inception network are not named", f"download {HOW}, and name the file"
        )
    path = Weights.parse(weights).fetch()
    if not path.is_file():
        raise UserError(f"the weights of FID's Inception network are a folder: {path}", "name the file in it")
    layers, output = _script(path) if _is_script(path) else _state(path)
    if output.shape != (CLASSES, WIDTH):
        what = f"{path} has an output layer of {tuple(output.shape)}, not {(CLASSES, WIDTH)}"
        raise UserError(what, f"name the network of FID: {HOW}")
    return InceptionNetwork(layers.to(device).eval(), output, device, file_hash(path))


def _is_script(path: Path) -> bool:
    """Whether a file is TorchScript: a zip with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _script(path: Path) -> tuple[Any, torch.Tensor]:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            # newer versions of torch announce that they will no longer load it
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location="cpu").eval()
        return network.layers, network.output.weight.detach().float()
    except (RuntimeError, AttributeError) as error:
        what = f"the TorchScript {path} is not FID's Inception network ({one_line(error)[:120]})"
        raise UserError(what, f"name {HOW}") from error


def _state(path: Path) -> tuple[Any, torch.Tensor]:
    import torch

    state = {name: value.float() for name, value in read_tensors(path).items()}
    for name in [name for name in state if name.startswith("AuxLogits.")]:
        del state[name]
    network = fid_inception()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        what = f"{path} is not FID's Inception network ({one_line(error)[:160]})"
        raise UserError(what, f"name {HOW}") from error
    output = network.fc.weight.detach().float()
    network.fc = torch.nn.Identity()
    network.dropout = torch.nn.Identity()
    return network, output


def fid_inception() -> Any:
    """Return torchvision's Inception v3 with the four differences of TensorFlow's port, and random weights:
    its average pooling leaves out the padding, the last block has maximum pooling, there are 1,008 classes,
    and there is no auxiliary output.
    """
    import torchvision

    network: Any = torchvision.models.inception_v3(
        weights=None, num_classes=CLASSES, aux_logits=False, transform_input=False, init_weights=False
    )
    for name in (
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
        "Mixed_6b",
        "Mixed_6c",
        "Mixed_6d",
        "Mixed_6e",
        "Mixed_7b",
    ):
        _pool_by(getattr(network, name), _average)
    _pool_by(network.Mixed_7c, _maximum)
    return network


def _average(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.max_pool2d(x, 3, stride=1, padding=1)


def _pool_by(block: Any, pool: Any) -> None:
    """Give the pooled branch of one of torchvision's blocks the block's input pooled by another function.

    The blocks call `avg_pool2d` themselves: hooks take the block's input, and replace the branch's.
    """
    held: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0]))
    block.branch_pool.register_forward_pre_hook(lambda _, inputs: (pool(held.pop()),))


class InceptionExtractor:
    """Features and probabilities of each image, resized by a named rule, or of native crops of it."""

    def __init__(self, network: InceptionNetwork, resize: tuple[str, Rule] | None, count: int = 0) -> None:
        self._network, self._resize, self._count = network, resize, count
        rule = f"native-{count}x{SIDE}" if resize is None else resize[0]
        self.name = f"inception-v3-2015/{rule}"

    def identity(self) -> dict[str, Any]:
        """As of any `Extractor`."""
        return {
            "extractor": self.name,
            "weights": self._network.weights_hash,
            "versions": versions("torch", "torchvision", "pillow"),
        }

    def features(self, image: np.ndarray, index: int) -> Features:
        """Return `features` [rows, 2048] and `probabilities` [rows, 1008]: one row, or one for each crop."""
        pixels = check_image(image)
        if self._resize is None:
            inputs = crops(pixels, index, self._count, SIDE, self.name)
        else:
            inputs = self._resize[1](pixels)[None]
        features, probabilities = self._network(inputs)
        return Features.of(self.identity(), index, {"features": features, "probabilities": probabilities})
