"""What is certified: published weights, the official code that runs them, and our call of the same method.

The values of a row are those of the official inference script; `official/DRIVER.py` has what only that side
takes. Where our sampler differs from the official code by intent, `known` says how.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from uhr.base.errors import UserError, unknown
from uhr.fetch import folder_name

FLUX1_DEV = "black-forest-labs/FLUX.1-dev"

NATIVE = 1024
"""Side in px that FLUX.1-dev was trained at. Sizes shrink with it on a model of another native size."""

CLOSE = 1e-3
"""Relative L2 deviation of the last latents up to which a row without known differences is certified."""


@dataclass(frozen=True)
class Weights:
    """Weights of a row, in the folder of weights under the name that `uhr fetch` gives them.

    name: hub id, or a name of ours for what is published elsewhere. file: a file of it; None is the whole
    folder. how: how to get them.
    """

    name: str
    how: str
    file: str | None = None

    def path(self, folder: Path) -> Path:
        """Where they are expected."""
        place = folder / folder_name(self.name)
        return place if self.file is None else place / self.file


def _hub(name: str, file: str | None = None) -> Weights:
    what = name if file is None else f"{name} {file}"
    return Weights(name, f"run: hf download {what} --local-dir {{folder}}/{folder_name(name)}", file)


@dataclass(frozen=True)
class Row:
    """One row of the table. `size` is width and height in px, `guidance` that of the first stage.

    commit: of the official repository on GitHub. driver: module of `official/`. model: a whole model;
    `adapters` and `transformer` are loaded on top, `official_files` by the official side alone. vae_tiling:
    whether the official code has diffusers' tiles in the VAE, for large images or for all of them; ours then
    has them too, for the comparison. tolerance: replaces `CLOSE` where `known` differences act.
    """

    name: str
    repository: str
    commit: str
    driver: str
    sampler: str
    size: tuple[int, int]
    steps: int
    guidance: float
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Weights = Weights(FLUX1_DEV, "run: uhr fetch lora --model flux1-dev --to {folder}")
    spec: str = "flux1-dev"
    adapters: tuple[Weights, ...] = ()
    transformer: Weights | None = None
    official_files: tuple[Weights, ...] = ()
    vae_tiling: Literal["never", "large", "always"] = "never"
    tolerance: float = CLOSE
    known: str = ""

    @property
    def weights(self) -> tuple[Weights, ...]:
        """All weights of the row."""
        return (
            self.model,
            *self.adapters,
            *(() if self.transformer is None else (self.transformer,)),
            *self.official_files,
        )

    @property
    def clone(self) -> str:
        """Name of the folder that `git clone` makes of the repository."""
        return self.repository.rpartition("/")[2]

    def sides(self, native: int) -> tuple[int, int]:
        """Width and height in px on a model that was trained at `native` px."""
        return self.size[0] * native // NATIVE, self.size[1] * native // NATIVE


URAE_2K = _hub("Huage001/URAE", "urae_2k_adapter.safetensors")

HIFLOW = Row(
    name="hiflow",
    repository="Bujiazi/HiFlow",
    commit="da351a8",
    driver="hi_flow",
    sampler="hiflow",
    options={"preset": "code"},
    size=(4096, 4096),
    steps=30,
    guidance=3.5,
    vae_tiling="large",
    # on the tiny substitute the difference is 0.12
    tolerance=0.15,
    known="the official code filters and aligns latents that have swin's ring around them; ours has the ring "
    "around the backbone's call alone",
)

IMAX = Row(
    name="imax",
    repository="PRIS-CV/I-Max",
    commit="3b38c11",
    driver="i_max",
    sampler="imax",
    options={"ring": "zeros"},
    size=(4096, 4096),
    steps=30,
    guidance=3.5,
    vae_tiling="always",
    # on the tiny substitute the difference is 0.04, at 256 x 256 latents 0.015
    tolerance=0.05,
    known="the official Haar blocks begin in swin's ring of zeros, ours beside it; and the difference of "
    "`imax-no-swin`",
)


def _without_swin(row: Row, known: str = "") -> Row:
    """The same without swin patchify, and with the differences that are left."""
    options = {**row.options, "swin": False}
    return replace(row, name=f"{row.name}-no-swin", options=options, tolerance=CLOSE, known=known)


ROWS = (
    Row(
        name="urae-2k",
        repository="Huage001/URAE",
        commit="030abeb",
        driver="urae_2k",
        sampler="euler",
        options={"toolkit": {"ntk": 10, "proportional": True}},
        size=(2048, 2048),
        steps=28,
        guidance=3.5,
        adapters=(URAE_2K,),
    ),
    Row(
        name="urae-4k",
        repository="Huage001/URAE",
        commit="030abeb",
        driver="urae_4k",
        sampler="euler",
        options={"toolkit": {"ntk": 10, "proportional": True}},
        size=(4096, 4096),
        steps=28,
        guidance=3.5,
        adapters=(URAE_2K, _hub("Huage001/URAE", "urae_4k_adapter.safetensors")),
    ),
    Row(
        name="ultraflux",
        repository="W2GenAI-Lab/UltraFlux",
        commit="8dec21b7535fe97bf32b80e17a1ad464f566d540",
        driver="ultra_flux",
        sampler="ultraflux",
        size=(4096, 4096),
        steps=50,
        guidance=4.0,
        model=_hub("Owen777/UltraFlux-v1"),
        transformer=_hub("Owen777/UltraFlux-v1-1-Transformer"),
    ),
    Row(
        name="scale-dit",
        repository="PeterYYZhang/Scale-DiT",
        # the last state read whose configuration is for FLUX.1; later ones are for FLUX.2
        commit="22f92f46cfc0ce588a8dd5c01d563a420dae7be5",
        driver="scale_dit",
        sampler="ultragen",
        options={
            "warm_start": "latents",
            "base_steps": 28,
            "base_ntk": 10,
            "base_shift": 3,
            "projection": "code",
            "rules": {"guide_to_text": False},
        },
        size=(4096, 4096),
        steps=28,
        guidance=3.5,
        adapters=(
            Weights(
                "Scale-DiT",
                "download the LoRA that the official README links",
                "pytorch_lora_weights.safetensors",
            ),
        ),
        official_files=(
            Weights(
                "Scale-DiT",
                "build the mask of 4096 x 4096 px by the official src/flux/build_mask.ipynb",
                "attention_mask.pt",
            ),
        ),
        vae_tiling="large",
        known="the official mask is dilated to the tiles of a kernel that computes in 8 bits, and its LoRA "
        "also acts on q, k and v of image tokens; ours follow the paper, so that this row is measured and "
        "not expected to be certified",
    ),
    HIFLOW,
    _without_swin(HIFLOW),
    IMAX,
    _without_swin(
        IMAX,
        "the official floor of the frequencies counts repeated text as image tokens",
    ),
)


def row_named(name: str) -> Row:
    """Return the row of that name. Raises UserError for an unknown one."""
    found = next((row for row in ROWS if row.name == name), None)
    if found is None:
        raise unknown("row", name, [row.name for row in ROWS])
    return found


def missing(row: Row, weights: Path, official: Path) -> dict[str, str]:
    """Return the paths that a row lacks on this machine, and how to get each; empty if it can run."""
    lacks = {
        str(each.path(weights)): each.how.format(folder=weights)
        for each in row.weights
        if not each.path(weights).exists()
    }
    clone = official / row.clone
    if not clone.is_dir():
        url = f"https://github.com/{row.repository}"
        lacks[str(clone)] = f"run: git clone {url} {clone} && git -C {clone} checkout {row.commit[:7]}"
    return lacks


def check_commit(folder: Path, commit: str) -> str:
    """Return the full commit of a clone. Raises UserError unless it is at `commit` with no file changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            what = f"{folder} is not a clone that git can read ({' '.join(done.stderr.split())})"
            raise UserError(what, "clone the official repository there")
        return done.stdout.strip()

    # inside another repository git would answer for that one
    if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
        raise UserError(f"{folder} is not a clone of its own", "clone the official repository there")
    head = git("rev-parse", "HEAD")
    if not head.startswith(commit):
        what = f"{folder} is at commit {head[:7]}, and the row is of {commit[:7]}"
        raise UserError(what, f"run: git -C {folder} checkout {commit[:7]}")
    changed = git("status", "--porcelain", "--untracked-files=no")
    if changed:
        first = changed.splitlines()[0].split(maxsplit=1)[1]
        raise UserError(f"{folder} has changed files, such as {first}", f"run: git -C {folder} stash")
    return head
