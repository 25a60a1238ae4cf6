"""LPIPS (Zhang et al. 1801.03924, version 0.1): distance of images in the features of a network.

The network is torchvision's. Its weights, and the weights of LPIPS on its features, are files that the user
names; nothing is downloaded. Training uses the same network as a loss.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from uhr.base.errors import UserError, one_line
from uhr.base.files import user_path

if TYPE_CHECKING:
    import torch

Network = Literal["vgg16", "alexnet"]


class Files(Protocol):
    """The files of a network: its weights, and those of LPIPS 0.1 for it (PyTorch or safetensors)."""

    @property
    def network(self) -> Network: ...

    @property
    def network_file(self) -> str | None: ...

    @property
    def heads_file(self) -> str | None: ...


@dataclass(frozen=True)
class _Network:
    """A network of torchvision: the layers of `features` after which LPIPS compares, and their channels.

    weights, heads: where the files are published.
    """

    ends: tuple[int, ...]
    channels: tuple[int, ...]
    weights: str
    heads: str


_LPIPS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
_TORCHVISION = "https://download.pytorch.org/models"

NETWORKS: Mapping[str, _Network] = {
    "vgg16": _Network(
        (3, 8, 15, 22, 29),
        (64, 128, 256, 512, 512),
        f"{_TORCHVISION}/vgg16-397923af.pth",
        f"{_LPIPS}/vgg.pth",
    ),
    "alexnet": _Network(
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
        f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
        f"{_LPIPS}/alex.pth",
    ),
}

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS's normalisation of images in [-1, 1], by channel."""

EPSILON = 1e-10
"""Is added to the norm of a feature vector, as in LPIPS."""


class LpipsNetwork:
    """LPIPS of pairs of images.

    layers: those of the network up to the last that is compared. ends: after which of them features are
    compared. heads: a weight for each channel of these, [1, C, 1, 1].
    """

    def __init__(self, layers: torch.nn.Sequential, ends: tuple[int, ...], heads: list[torch.Tensor]) -> None:
        self.layers, self.ends, self.heads = layers, ends, heads

    @classmethod
    def load(cls, files: Files, device: torch.device) -> LpipsNetwork:
        """Read its files; the meta device needs none. Raises UserError if they have other tensors."""
        ends = NETWORKS[files.network].ends
        if device.type == "meta":
            return cls(layers_of(files, empty=True), ends, _empty_heads(files.network))
        layers = layers_of(files).to(device)
        return cls(layers, ends, [head.to(device) for head in heads_of(files)])

    def __call__(self, images: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, [B], of [B, 3, H, W] in [-1, 1]; `images` get no gradient."""
        import torch

        with torch.no_grad():
            target = self._features(images)
        pairs = zip(target, self._features(reconstructed), self.heads, strict=True)
        parts = [((one - two).square() * head).sum(dim=1).mean(dim=(1, 2)) for one, two, head in pairs]
        return torch.stack(parts).sum(dim=0)

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The compared features, each vector over the channels divided by its norm."""
        import torch

        shift, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        x, found = (images - shift) / scale, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.ends:
                # its gradient at a vector of zeros is zero, where that of a square root is NaN
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON))
        return found


def layers_of(files: Files, empty: bool = False) -> torch.nn.Sequential:
    """The frozen layers of the network with the weights of its file; `empty` ones are on the meta device."""
    import torch
    import torchvision

    network = NETWORKS[files.network]
    with torch.device("meta"):
        # the classifier behind them has nine tenths of the weights, and is not used
        layers = getattr(torchvision.models, files.network)(weights=None).features[: network.ends[-1] + 1]
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            # the layer before it is compared with its target, and kept for the backward pass
            layer.inplace = False
    layers.requires_grad_(False).eval()
    if empty:
        return layers
    assert files.network_file is not None
    state = _read(files.network_file)
    own = {name: state.get(f"features.{name}") for name in layers.state_dict()}
    for name, tensor in layers.state_dict().items():
        found = own[name]
        if found is None or found.shape != tensor.shape:
            what = f"{files.network_file} is not torchvision's {files.network}: features.{name} "
            what += "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise UserError(what, f"fetch {network.weights}")
    layers.load_state_dict({name: _copy(tensor) for name, tensor in own.items()}, assign=True)
    return layers.requires_grad_(False)


def heads_of(files: Files) -> list[torch.Tensor]:
    """The weights of LPIPS for the channels of each compared layer, float32 [1, C, 1, 1]."""
    assert files.heads_file is not None
    network, state = NETWORKS[files.network], _read(files.heads_file)
    found = []
    for number, channels in enumerate(network.channels):
        # as in the files of its authors and of pyiqa
        head = state.get(f"lin{number}.model.1.weight")
        if head is None or head.shape != (1, channels, 1, 1):
            what = f"{files.heads_file} is not LPIPS for {files.network}: lin{number}.model.1.weight "
            what += "is missing" if head is None else f"has the shape {tuple(head.shape)}"
            raise UserError(what, f"fetch {network.heads}")
        found.append(_copy(head))
    return found


def _empty_heads(network: str) -> list[torch.Tensor]:
    import torch

    return [torch.empty(1, channels, 1, 1, device="meta") for channels in NETWORKS[network].channels]


def _read(file: str) -> Mapping[str, Any]:
    """The tensors of a PyTorch or safetensors file by name; they are read when they are used."""
    import torch
    from safetensors.torch import load_file

    path = user_path(file)
    if not path.is_file():
        raise UserError(f"{file} does not exist", "name the file where it is")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # files of torch before 1.6 are no archives, and are read whole
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # torch raises its own, pickle's and zipfile's errors for what is no such file
        raise UserError(f"{file} is no file of weights ({one_line(error)})", "fetch it again") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{file} is no file of weights", "fetch it again")
    return state


def _copy(tensor: Any) -> torch.Tensor:
    """A float32 copy in memory: the file may be closed."""
    import torch

    return tensor.detach().to(torch.float32, copy=True)
