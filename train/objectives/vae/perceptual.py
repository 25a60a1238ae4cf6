"""The perceptual term of a loss: LPIPS, and the files that it needs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.base.files import sha256_file, user_path
from uhr.models.metrics.lpips import NETWORKS, Network, heads_of, layers_of


class Perceptual(Config):
    """The perceptual term of a loss.

    weight: factor in the loss; 0 leaves the term out, and no file is needed.
    network: of torchvision, whose features are compared.
    network_file: its weights. heads_file: those of LPIPS 0.1 for it. Both as PyTorch or safetensors files.
    sha256: of the two files, as the run found them.
    """

    weight: float = Field(0.1, ge=0)
    network: Network = "vgg16"
    network_file: str | None = None
    heads_file: str | None = None
    sha256: tuple[str, ...] = ()

    def check(self, where: str) -> None:
        """Raise UserError if a file is not named, does not exist, or has other tensors.

        where: the place of this configuration in the recipe.
        """
        missing = self.missing(where)
        if missing is not None:
            raise UserError(*missing)
        if self.weight:
            layers_of(self)
            heads_of(self)

    def missing(self, where: str) -> tuple[str, str] | None:
        """What is missing while a file that is needed has no name, and where to get it; else None.

        where: as in `check`.
        """
        known = NETWORKS[self.network]
        missing = [
            (field, url)
            for field, url in (("network_file", known.weights), ("heads_file", known.heads))
            if getattr(self, field) is None
        ]
        if not (self.weight and missing):
            return None
        fetch = " and ".join(url for _, url in missing)
        sets = " ".join(f"--set {where}.{field}=FILE" for field, _ in missing)
        what = f"the perceptual term of the loss needs files of LPIPS ({self.network})"
        return what, f"fetch {fetch}, then {sets}; or train without: --set {where}.weight=0"

    def pinned(self, where: str) -> Perceptual:
        """The same, checked, with the hashes of its files. Raises UserError if they are not those of
        `sha256`.
        """
        if not self.weight:
            return self
        found = tuple(sha256_file(path) for path in self._files)
        for field, path, was, now in zip(FILES, self._files, self.sha256, found, strict=False):
            if was != now:
                what = f"{path} has SHA-256 {now[:12]}..., and the run began with {was[:12]}..."
                raise UserError(what, f"name the file that it began with: --set {where}.{field}=FILE")
        # absolute, so that the run can be resumed from another working folder
        absolute = {field: str(path.absolute()) for field, path in zip(FILES, self._files, strict=True)}
        return self.model_copy(update={**absolute, "sha256": found})

    def published(self) -> Perceptual:
        """The same with the names of its files alone, for others."""
        names = {field: getattr(self, field) for field in FILES}
        return self.model_copy(update={key: name and user_path(name).name for key, name in names.items()})

    @property
    def _files(self) -> list[Path]:
        assert self.network_file is not None
        assert self.heads_file is not None
        return [user_path(self.network_file), user_path(self.heads_file)]


FILES = ("network_file", "heads_file")
