"""`uhr fetch`: brings the weights of a preset or a recipe into a folder, for machines without internet."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from uhr.base.console import emit, progress, say, table
from uhr.base.errors import UserError, unknown
from uhr.base.files import saving, write_json
from uhr.base.formatting import human_bytes
from uhr.base.paths import local

FILE = "weights.json"
"""The list of what was fetched, in the folder."""

DIFFUSERS = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja")
"""The files of a repository in diffusers' layout, without the single files that some have at the top."""


@dataclass(frozen=True)
class Item:
    """Weights that something names.

    by: what names them ("stage q_align", "recipe lora"). name: for people. weights: hub id, address or path
    as it is written; empty if there is none. how: how to get what cannot be fetched, or where it is already.
    option: the option of the command that then names them; the place is put in for `{}`.
    """

    by: str
    name: str
    weights: str = ""
    how: str = ""
    option: str = ""
    patterns: tuple[str, ...] = ()
    licence: str | None = None


@dataclass(frozen=True)
class Fetched:
    """Weights in the folder: `path` below it, `revision` the commit of the hub, `sha256` of all files."""

    by: str
    name: str
    weights: str
    path: str
    revision: str | None
    licence: str | None
    bytes: int
    sha256: str
    option: str


def items_of(name: str, sets: Sequence[str], model: str | None) -> list[Item]:
    """Return what a preset, a pipeline's YAML file or a recipe names. Raises UserError if it is none of
    them.
    """
    from uhr.curate.config import is_file, preset_names
    from uhr.train.recipes import NAMES, SHORT

    if name in preset_names() or is_file(name):
        if model is not None:
            raise UserError("--model is of a recipe", "leave it out")
        return list(_of_preset(name, sets))
    if name in NAMES or name in SHORT:
        if sets:
            raise UserError("--set is of a preset", "leave it out")
        return [_of_recipe(name, model)]
    raise unknown("preset or recipe", name, [*preset_names(), *NAMES])


def _of_preset(name: str, sets: Sequence[str]) -> Iterator[Item]:
    from uhr.curate.config import load

    def entries(found: Sequence[Any]) -> Iterator[Any]:
        for entry in found:
            yield entry
            yield from entries(entry.stages or ())

    for entry in entries(load(name, list(sets)).stages):
        yield from _of_stage(entry, name)


def _of_stage(entry: Any, where: str) -> Iterator[Item]:
    from uhr.base.config import build
    from uhr.curate.stage import examples
    from uhr.curate.stages import stage_class
    from uhr.models.scores.weights import Weights

    cls = stage_class(entry.stage)
    stage = cls(build(cls.Params, entry.params, f"{where}: stage '{entry.label}'"))
    by = f"stage {entry.label}"
    if lack := stage.unnamed():
        yield Item(by, "", how=f"names no model; set {examples(lack)}")
        return
    for name, text in stage.weights().items():
        try:
            parsed = Weights.parse(text)
        except UserError as error:
            yield Item(by, name, text, how=str(error))
            continue
        if parsed.path is not None:
            yield Item(by, name, text, how="is on this machine")
            continue
        key = next((key for key, value in entry.params.items() if value == text), None)
        option = "" if key is None else f"stages.{entry.label}.{key}={{}}"
        yield Item(by, name, text, option=option, patterns=(parsed.file,) if parsed.file else ())


def _of_recipe(name: str, model: str | None) -> Item:
    from uhr.models.specs.registry import SPECS
    from uhr.train.recipes import resolve

    recipe: Any = resolve(name)
    family = getattr(recipe, "family", None)
    fitting = [
        spec
        for spec in SPECS.values()
        if spec.hub_id is not None
        and (family is None or spec.family == family)
        and (not hasattr(recipe, "guidance") or spec.guidance == recipe.guidance.kind)
    ]
    by, names = f"recipe {name}", [spec.name for spec in fitting]
    if model is not None and model not in names:
        raise unknown("model", model, names, f"recipe {name}")
    if model is None and len(fitting) != 1:
        if not fitting:
            return Item(by, "model", how="no published model fits it")
        raise UserError(f"recipe {name} fits {', '.join(names)}", "choose one with --model NAME")
    spec = fitting[0] if model is None else SPECS[model]
    licence = spec.licence.name or spec.licence.id
    return Item(by, spec.name, str(spec.hub_id), option="--model {}", patterns=DIFFUSERS, licence=licence)


def fetch_item(item: Item, folder: Path) -> Fetched:
    """Bring weights into `folder`. What is complete there is not fetched again."""
    from uhr.base.hub import described, snapshot
    from uhr.base.store import ObjectStore
    from uhr.models.scores.weights import EVERYTHING, Weights, hash_of_files

    parsed = Weights.parse(item.weights)
    place = folder / folder_name(item.weights)
    revision, licence = None, item.licence
    if parsed.repository is None:
        source = ObjectStore(item.weights).download("weights")
        if not place.exists():
            shutil.copytree(source, place) if source.is_dir() else shutil.copyfile(source, place)
        path = place
    else:
        revision, stated = described(parsed.repository, parsed.revision)
        snapshot(parsed.repository, revision, item.patterns or EVERYTHING, into=place)
        path = place if parsed.file is None else place / parsed.file
        licence = licence or stated
        if not path.exists():
            raise UserError(f"the hub's '{parsed.repository}' has no file {parsed.file}", "check its name")
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size = sum(each.stat().st_size for each in files if ".cache" not in each.relative_to(folder).parts)
    relative = path.relative_to(folder).as_posix()
    option = item.option.format(path)
    return Fetched(
        item.by, item.name, item.weights, relative, revision, licence, size, hash_of_files(path), option
    )


def folder_name(weights: str) -> str:
    """Return a folder's name for a hub id or an address."""
    name = weights.partition("://")[2] if "://" in weights else weights.partition(":")[0]
    return name.replace("/", "--")


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="PRESET|RECIPE", help="A preset, a pipeline's YAML file, or a recipe.")
    ],
    to: Annotated[Path, typer.Option(parser=local("--to"), metavar="DIR", help="Folder of the weights.")],
    model: Annotated[
        str | None, typer.Option(help="Which of the models that fit a recipe, by the name in `uhr models`.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change the preset.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be fetched, without the network, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False,
) -> None:
    """Bring the weights that a preset or a recipe names into a folder, with their licences and hashes.

    What names no weights, or weights that cannot be fetched, is listed with how to get it.
    """
    items = items_of(name, sets or [], model)
    wanted = [item for item in items if item.weights and not item.how]
    others = [item for item in items if item not in wanted]
    if dry_run:
        facts = {
            "fetch": [_shown(item, to) for item in wanted],
            "other": [_shown(item, to) for item in others],
        }
        emit(facts, as_json, lambda _: _print_plan(wanted, others, to))
        return
    found: list[Fetched] = []
    with saving(to, "free space there; the same command goes on"):
        to.mkdir(parents=True, exist_ok=True)
        with progress("fetch", len(wanted), "models") as advance:
            for item in wanted:
                advance(0, item.weights)
                found.append(fetch_item(item, to.absolute()))
                advance()
        write_json(to / FILE, {"of": name, "weights": [asdict(each) for each in found]})
    facts = {
        "folder": str(to),
        "weights": [asdict(each) for each in found],
        "other": [_shown(item, to) for item in others],
    }
    emit(facts, as_json, lambda _: _print_result(found, others))


def _shown(item: Item, to: Path) -> dict[str, Any]:
    facts = {"by": item.by, "name": item.name, "weights": item.weights}
    return {**facts, "how": item.how} if item.how else {**facts, "into": str(to / folder_name(item.weights))}


def _print_plan(wanted: Sequence[Item], others: Sequence[Item], to: Path) -> None:
    if wanted:
        rows = [[item.by, item.name, item.weights, str(to / folder_name(item.weights))] for item in wanted]
        table(["named by", "name", "weights", "into"], rows)
    _print_others(others)


def _print_others(others: Sequence[Item]) -> None:
    for item in others:
        what = " ".join(part for part in (item.name, item.weights) if part)
        say(f"{item.by}: {f'{what} ' if what else ''}{item.how}")


def _print_result(found: Sequence[Fetched], others: Sequence[Item]) -> None:
    if found:
        rows = [
            [each.by, each.weights, each.licence or "not stated", human_bytes(each.bytes), each.sha256[:16]]
            for each in found
        ]
        table(["named by", "weights", "licence", "size", "sha256"], rows)
    _print_others(others)
    for each in found:
        if each.option:
            words = [each.option] if not each.option.startswith("--") else each.option.split(" ", 1)
            say(f"then      {shlex.join(words if len(words) > 1 else ['--set', *words])}")
