"""Window-first order: image and guide tokens reordered so that a window is one contiguous run.

An image of H x W image tokens (X) is cut into square windows of `window` tokens a side. Its guide (Y) is the
same image at 1/ratio of the size, cut into windows of window/ratio tokens, so that window k of X and window
k of Y cover the same area. Raster order runs row by row over the whole grid; window-first order runs row by
row over windows and row by row inside each (UltraGen's second version; its first had a Hilbert curve inside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uhr.base.errors import UserError
from uhr.models.ops.sizes import check_sides, nearest, up_to

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WindowLayout:
    """A token grid of height x width, its windows, and the guide grid that belongs to it.

    `window` is 16 tokens (256 px of FLUX) and `ratio`, image to guide per side, is 4, as in the paper. Raises
    UserError, which names the nearest valid sizes, unless both sides of the grid are multiples of `window`
    and `window` is a multiple of `ratio`.
    """

    height: int
    width: int
    window: int = 16
    ratio: int = 4

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.window, self.ratio) < 1:
            raise UserError(
                f"a grid of {self.width}x{self.height} tokens, window {self.window}, ratio {self.ratio}",
                "all four must be at least 1",
            )
        if self.window % self.ratio:
            raise UserError(
                f"windows of {self.window} tokens are not divisible by the guide's ratio {self.ratio}",
                f"use windows of {up_to(self.window, self.ratio)} tokens, or ratio 1",
            )
        if self.height % self.window or self.width % self.window:
            near = nearest(self.window, self.height, self.width)
            raise UserError(
                f"a grid of {self.width}x{self.height} tokens does not consist of windows of {self.window}",
                f"nearest grids that do: {near}",
            )

    @classmethod
    def of_pixels(cls, height: int, width: int, token: int, window: int = 16, ratio: int = 4) -> WindowLayout:
        """Return the layout of an image of height x width px, with tokens of `token` px a side (16 with
        FLUX's VAE, 32 with F16).

        Raises UserError, which names the nearest sizes in px, if the size does not consist of whole windows.
        """
        check_sides(token * window, height, width)
        return cls(height // token, width // token, window, ratio)

    @property
    def rows(self) -> int:
        """Windows from top to bottom."""
        return self.height // self.window

    @property
    def columns(self) -> int:
        """Windows from left to right."""
        return self.width // self.window

    @property
    def tokens(self) -> int:
        """N: image tokens."""
        return self.height * self.width

    @property
    def guide_window(self) -> int:
        """Side of a guide window, in guide tokens."""
        return self.window // self.ratio

    @property
    def guide_height(self) -> int:
        return self.height // self.ratio

    @property
    def guide_width(self) -> int:
        return self.width // self.ratio

    @property
    def guide_tokens(self) -> int:
        """M: guide tokens, N / ratio^2."""
        return self.guide_height * self.guide_width

    @property
    def guide_block(self) -> int:
        """Side of the guide's blocks, in guide tokens: the largest multiple of its windows, up to `window`,
        that divides both sides of its grid. Local guide attention is between near blocks."""
        sides = range(self.guide_window, self.window + 1, self.guide_window)
        return max(b for b in sides if self.guide_height % b == 0 and self.guide_width % b == 0)

    def to_windows(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Reorder image tokens (or their ids, along `dim`) from raster to window-first order."""
        return _to_windows(x, dim, self.height, self.width, self.window)

    def to_raster(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The inverse of `to_windows`."""
        return _to_raster(x, dim, self.height, self.width, self.window)

    def guide_to_windows(self, y: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Reorder guide tokens from raster to window-first order."""
        return _to_windows(y, dim, self.guide_height, self.guide_width, self.guide_window)

    def guide_to_raster(self, y: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The inverse of `guide_to_windows`."""
        return _to_raster(y, dim, self.guide_height, self.guide_width, self.guide_window)

    def guide_to_blocks(self, y: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Reorder guide tokens from window-first order to that of their blocks."""
        raster = self.guide_to_raster(y, dim)
        return _to_windows(raster, dim, self.guide_height, self.guide_width, self.guide_block)

    def guide_from_blocks(self, y: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The inverse of `guide_to_blocks`."""
        raster = _to_raster(y, dim, self.guide_height, self.guide_width, self.guide_block)
        return self.guide_to_windows(raster, dim)

    def anchors(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return for each guide token the image token at its scaled position: int64 [M], both window-first.

        A guide token's position is ratio * (row, column), with no half offset (UltraGen): that of the image
        token at the top left of the area it covers. Taking the rotary angles of these image tokens therefore
        gives the guide exactly the scaled positions, whatever the position embedding does with them.
        """
        import torch

        raster = torch.arange(self.tokens, device=device).view(self.height, self.width)
        order = self.to_windows(raster.flatten(), dim=0)
        place = torch.empty_like(order)
        place[order] = torch.arange(self.tokens, device=device)
        scaled = raster[:: self.ratio, :: self.ratio].flatten()
        return place[self.guide_to_windows(scaled, dim=0)]


def window_side(native_tokens: int, ratio: int = 4) -> int:
    """Return the side of a window in tokens for a backbone trained on native_tokens x native_tokens.

    It is a quarter of that, rounded up to a multiple of `ratio`: 64 (FLUX at 1024 px) gives the paper's 16.
    """
    return up_to(max(native_tokens // 4, 1), ratio)


def _to_windows(x: torch.Tensor, dim: int, height: int, width: int, side: int) -> torch.Tensor:
    dim %= x.ndim
    assert x.shape[dim] == height * width, f"{x.shape[dim]} tokens are no {height} x {width} grid"
    grid = x.unflatten(dim, (height // side, side, width // side, side))
    return grid.transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def _to_raster(x: torch.Tensor, dim: int, height: int, width: int, side: int) -> torch.Tensor:
    dim %= x.ndim
    assert x.shape[dim] == height * width, f"{x.shape[dim]} tokens are no {height} x {width} grid"
    grid = x.unflatten(dim, (height // side, width // side, side, side))
    return grid.transpose(dim + 1, dim + 2).flatten(dim, dim + 3)
