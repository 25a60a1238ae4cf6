"""`uhr demo`: the whole workflow on this machine, each step by the command that it prints."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from uhr.base.console import progress, say, table
from uhr.base.errors import UserError
from uhr.base.files import saving, write_json
from uhr.base.paths import local
from uhr.base.run_folder import FolderLayout, RunFolder

Main = Callable[[list[str]], int]
"""`uhr.cli.main`, which `uhr.cli` hands to its commands as `context.obj`."""

MARKER = "uhr-demo.json"
PROMPT = "a mountain lake at dawn"
STEPS = 40
INTERRUPT_AT = 15
YOUR_OWN = r"""
The same workflow on your own images:

  uhr doctor                                               what is installed and what is missing
  uhr curate run quickstart --source YOUR/IMAGES --out YOUR/SET
  uhr manifest slice YOUR/SET --where "license is not null" --out YOUR/SLICE
  uhr train encode YOUR/SLICE --model black-forest-labs/FLUX.1-dev --out YOUR/ENCODED --set resolution=1024
  uhr train run lora --model black-forest-labs/FLUX.1-dev --data YOUR/ENCODED --out YOUR/RUN
  uhr train export YOUR/RUN --out YOUR/ADAPTER
  uhr sample euler --model black-forest-labs/FLUX.1-dev --adapter YOUR/ADAPTER --prompt "..." \
      --size 1024x1024 --out image.png
"""


def demo(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            parser=local("--out", utf8=True), metavar="DIR", help="Folder for everything that the demo makes."
        ),
    ] = Path("demo"),
) -> None:
    """Run the whole workflow on this machine: images, manifest, slice, adapter, image. No download, no
    GPU.
    """
    start = time.monotonic()
    uhr = functools.partial(_uhr, context.obj)
    # the tiny model's tensors are slower on many threads than on one
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with saving(out, "free space there, or name another folder with --out"):
        _prepare(out)
    images, manifest, chosen = out / "pictures", out / "manifest", out / "slice"
    model, encoded, run, adapter = out / "tiny-flux1", out / "encoded", out / "run", out / "adapter"

    _headline("1. Gather images, some of them with planted faults")
    with saving(out, "free space there, or name another folder with --out"):
        planted = _gather(images)

    _headline("2. Curate them on Ray: annotate every image, reject by rules, lose nothing")
    uhr("curate", "run", "quickstart", "--source", images, "--out", manifest)
    _compare_with_planted(manifest, planted)

    _headline("3. Slice the manifest by metadata")
    sharp = "upscale_ratio < 1.5 and width >= 256 and height >= 256"
    uhr("manifest", "slice", manifest, "--where", sharp, "--split", "train=0.9,val=0.1", "--out", chosen)

    _headline("4. Make a tiny FLUX checkpoint: the real classes, random weights")
    uhr("models", "make-tiny", model)

    _headline("5. Encode the slice once: latents and text embeddings")
    uhr("train", "encode", chosen, "--model", model, "--out", encoded)

    _headline("6. Train a LoRA by flow matching, interrupt it (Ctrl-C), resume it")
    # many CPUs compute bfloat16 slowly, and so small a model needs no memory saved
    quick = (*_setting("precision", "float32"), *_setting("gradient_checkpointing", "false"))
    length = ("--set", f"phases.0.steps={STEPS}", *quick)
    with _interrupt_after(run / "log.jsonl", INTERRUPT_AT):
        uhr("train", "run", "lora", "--model", model, "--data", encoded, "--out", run, *length, expect=130)
    uhr("train", "resume", run)

    _headline("7. Export the adapter, as diffusers loads it")
    uhr("train", "export", run, "--out", adapter)

    _headline("8. Sample an image without and with the adapter")
    call = ("sample", "euler", "--model", model, "--prompt", PROMPT, "--size", "256x256", "--seed", 0)
    uhr(*call, "--out", out / "without.png")
    uhr(*call, "--adapter", adapter, "--out", out / "with.png")

    _headline(f"Done in {time.monotonic() - start:.0f} s")
    _summary(out)


MADE = (
    *("pictures", "manifest", "slice", "tiny-flux1", "encoded", "run", "adapter"),
    *("without.png", "without.json", "with.png", "with.json"),
)
"""What the demo writes into its folder, and clears there when it runs again."""

LAYOUT = FolderLayout("the demo", (MARKER, *MADE), (MARKER,), allow_others=True)


def _prepare(out: Path) -> None:
    """Claim the folder and clear what an earlier demo made; other files are kept."""
    folder = RunFolder(out, LAYOUT)
    folder.claim()
    before = [name for name in MADE if (out / name).exists()]
    if before:
        say(f"clearing what an earlier demo made in {out}: {', '.join(before)}")
    folder.clear(*before)
    made = {"what": "made by `uhr demo`, which clears these names when it runs again", "names": MADE}
    write_json(out / MARKER, made)


def _headline(text: str) -> None:
    say(f"\n== {text}")


def _uhr(main: Main, *parts: object, expect: int = 0) -> None:
    """Print and run one command. Raises UserError if its exit code is not the expected one."""
    arguments = [str(part) for part in parts]
    say(f"$ uhr {shlex.join(arguments)}")
    code = main(arguments)
    if code == 130 and expect != 130:
        raise KeyboardInterrupt
    if code != expect:
        raise UserError(f"the demo's `uhr {shlex.join(arguments)}` ended with exit code {code}, not {expect}")


def _setting(name: str, value: str) -> tuple[str, str]:
    return "--set", f"runtime.{name}={value}"


def _gather(folder: Path) -> Sequence[Any]:
    from uhr.demo.images import gather

    with progress("gather", total=None, unit="images") as advance:
        return gather(folder, advance)


def _compare_with_planted(manifest: Path, planted: Sequence[Any]) -> None:
    """Print the result of each planted fault, from the manifest."""
    from uhr.manifests.manifest import Manifest

    rows = Manifest.open(manifest).table(columns=["uri", "status", "reason", "error"]).to_pylist()
    found = {row["uri"]: row for row in rows}
    say("\nResults of the planted faults:")
    table(
        ["file", "what it is", "status", "reason"],
        [[p.name, p.what, found[p.name]["status"], found[p.name]["reason"]] for p in planted if p.fault],
    )


class _interrupt_after:
    """Send Ctrl-C to this process once the log has reached `step`, while the block runs."""

    def __init__(self, log: Path, step: int) -> None:
        self._log, self._step, self._done = log, step, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            if self._reached():
                os.kill(os.getpid(), signal.SIGINT)
                return

    def _reached(self) -> bool:
        if not self._log.exists():
            return False
        return len(self._log.read_bytes().splitlines()) >= self._step


def _summary(out: Path) -> None:
    import numpy as np
    from PIL import Image

    log = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    without, adapted = (np.asarray(Image.open(out / name), dtype=int) for name in ("without.png", "with.png"))
    changed = (without != adapted).any(axis=-1).mean()
    first, last = log[0], log[-1]
    facts = {
        "report": f"{out / 'manifest' / 'report.html'}   (open it in a browser)",
        "manifest": f"{out / 'manifest'}   (plain Parquet in samples/)",
        "slice": str(out / "slice"),
        "training": f"{out / 'run'}   ({last['step']} steps, loss {first['loss']:.3f} to {last['loss']:.3f})",
        "adapter": str(out / "adapter"),
        "pictures": f"{out / 'without.png'}, {out / 'with.png'}   ({changed:.0%} of the pixels differ)",
    }
    for name, text in facts.items():
        say(f"{name:10} {text}")
    say(
        "\nThe model is tiny and its weights are random: its images are noise and its loss says little."
        "\nEverything else was the real thing: decoding, rules, manifest, encoding, training, resume, export."
    )
    say(YOUR_OWN)
