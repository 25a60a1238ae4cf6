"""Reads the prompts of a protocol from the layouts in which they are published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from uhr.base.config import fingerprint
from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store
from uhr.train.evaluate.protocol import EvalProtocol, LoadedProtocol
from uhr.train.generate.prompts import read_prompts

METADATA = "metadata.jsonl"


class EvalItem(NamedTuple):
    """One image of an evaluation.

    Args:
        index: its number, from 0: prompts in their order, for each the seeds in theirs.
        name: of its file, without the suffix.
        prompt_index: the number of its prompt, from 0.
        seed: of its noise.
        size: width and height in px.
        reference: the path of the reference of its prompt, if the prompts' layout names one.
    """

    index: int
    name: str
    prompt: str
    prompt_index: int
    seed: int
    size: tuple[int, int]
    reference: Path | None = None


class _Prompt(NamedTuple):
    text: str
    name: str | None = None
    size: tuple[int, int] | None = None
    seed: int | None = None
    reference: Path | None = None


def read_items(
    loaded: LoadedProtocol, given: Path | str | None = None, first: int | None = None
) -> list[EvalItem]:
    """Return the images that a protocol asks for, in order.

    Args:
        given: the prompts that the user named, which may be the address of a manifest; None for those that
            the protocol names.
        first: use only so many prompts, the first ones.

    Raises UserError if the prompts are missing, unreadable, or repeated under one name.
    """
    protocol = loaded.protocol
    path = given if given is not None else loaded.prompts_file
    if path is None:
        get = protocol.prompts.get or f"layout: {protocol.prompts.layout}"
        raise UserError(f"{protocol.name} comes without its prompts", f"give --prompts PATH ({get})")
    if in_store(path):
        path = _local_manifest(path, protocol.prompts.layout)
    prompts = list(_READERS[protocol.prompts.layout](Path(path)))
    if not prompts:
        raise UserError(f"{path} contains no prompt", f"its layout is '{protocol.prompts.layout}'")
    for number, prompt in enumerate(prompts):
        if not prompt.text.strip():
            raise UserError(f"{path}: prompt {number} is empty", "remove it")
    if first is not None:
        prompts = prompts[:first]
    items = list(_items(protocol, prompts))
    seen: dict[str, int] = {}
    for item in items:
        if item.name in seen:
            raise UserError(f"{path}: the name '{item.name}' occurs twice", "give each prompt its own name")
        seen[item.name] = item.index
    return items


def _items(protocol: EvalProtocol, prompts: list[_Prompt]) -> Iterator[EvalItem]:
    digits = max(4, len(str(len(prompts) - 1)))
    index = 0
    for number, prompt in enumerate(prompts):
        name = f"{number:0{digits}d}" if prompt.name is None else prompt.name
        for seed in protocol.seeds if prompt.seed is None else (prompt.seed,):
            several = len(protocol.seeds) > 1 and prompt.seed is None
            used = seed + number if protocol.seed_rule == "index" and prompt.seed is None else seed
            full = f"{name}-s{seed}" if several else name
            size = prompt.size or protocol.size
            yield EvalItem(index, full, prompt.text.strip(), number, used, size, prompt.reference)
            index += 1


def _local_manifest(address: str, layout: str) -> Path:
    """The copy of a manifest in a store. Raises UserError for prompts that have another layout."""
    from uhr.manifests import places

    if layout != "file":
        what = f"--prompts {address}: prompts of layout '{layout}' are read from this machine"
        raise UserError(what, "copy them here, and name their path")
    return places.local(address)


def digest(items: list[EvalItem]) -> str:
    """SHA-256 (64 hex digits) of what the items ask for: prompts, seeds and sizes, in order."""
    return fingerprint([[item.prompt, item.seed, list(item.size)] for item in items])


def _of_file(path: Path) -> Iterator[_Prompt]:
    """A file or manifest that `uhr sample --prompts` reads too."""
    for line, where in read_prompts(path):
        if line.negative is not None or line.image is not None:
            raise UserError(f"{where} has a negative prompt or an image", "a protocol has neither: remove it")
        size = (line.width, line.height) if line.width and line.height else None
        yield _Prompt(line.prompt, line.name, size, line.seed)


def _of_imagefolder(path: Path) -> Iterator[_Prompt]:
    """A folder of images with a metadata.jsonl of `file_name` and `text`, as Aesthetic-4K's `eval`."""
    file = path / METADATA if path.is_dir() else path
    seen: set[str] = set()
    for where, row in metadata_rows(file):
        if not isinstance(row.get("text"), str):
            raise UserError(f"{where} has no file_name and text", "name the folder of the published set")
        if row["file_name"] in seen:
            raise UserError(f"{where}: file_name '{row['file_name']}' occurs twice", "remove one of them")
        seen.add(row["file_name"])
        yield _Prompt(row["text"], reference=file.parent / row["file_name"])


def metadata_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a metadata.jsonl, each after where it is. `file_name` is a path below the file's
    folder. Raises UserError for a file that cannot be read, or a row without such a name.
    """
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row = _json(line, where)
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no file_name", "correct that line")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{where}: file_name '{name}' leaves the folder", "put the images below it")
        yield where, row


def _of_json_lists(path: Path) -> Iterator[_Prompt]:
    """JSON files, each a list of prompts or an object of such lists, as HPD v2's benchmark: one file, or all
    `*.json` of a folder by name."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} contains no .json", "name the folder of the lists, or one of them")
    for file in files:
        tree = _json(_text(file), str(file))
        lists = list(tree.values()) if isinstance(tree, dict) else [tree]
        for each in lists:
            if not isinstance(each, list) or not all(isinstance(text, str) for text in each):
                raise UserError(f"{file} is not a list of texts", "name the folder of the published lists")
            yield from map(_Prompt, each)


def _of_text_files(path: Path) -> Iterator[_Prompt]:
    """A folder of `NAME.txt`, each one prompt, by name, as DPG-Bench's prompts."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else []
    if not files:
        raise UserError(f"{path} is not a folder of .txt files", "name the folder of the published prompts")
    for file in files:
        yield _Prompt(one_line(_text(file)), name=file.stem)


def _of_dpg_bench(path: Path) -> Iterator[_Prompt]:
    """The `dpg_bench.csv` of DPG-Bench: each prompt once, called by its item."""
    from uhr.models.metrics.questions.files import read_dpg_bench

    for item in read_dpg_bench(path):
        yield _Prompt(item.prompt, name=item.name)


def _of_geneval2(path: Path) -> Iterator[_Prompt]:
    """The `geneval2_data.jsonl` of GenEval 2."""
    from uhr.models.metrics.questions.files import read_geneval2

    for item in read_geneval2(path):
        yield _Prompt(item.prompt)


_READERS = {
    "file": _of_file,
    "imagefolder": _of_imagefolder,
    "json-lists": _of_json_lists,
    "text-files": _of_text_files,
    "dpg-bench": _of_dpg_bench,
    "geneval2": _of_geneval2,
}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8", "save the file as UTF-8") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({one_line(error)})", "download it again") from None
