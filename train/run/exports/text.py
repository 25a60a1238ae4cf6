"""What `uhr train export --to` prints: what the file has, which programs load it, and how it is sampled."""

from __future__ import annotations

from pathlib import Path

from uhr.base.console import command, say, shown
from uhr.base.errors import unknown
from uhr.models.adapters.formats.writing import Format
from uhr.models.publish.lora_file import PROGRAMS
from uhr.train.recipes import read_recipe
from uhr.train.run.exports.export import ExportedFile


def file_form(name: str) -> Format:
    """Return the form of that name. Raises UserError if there is none."""
    if name not in list(Format):
        raise unknown("program", name, list(Format), "--to")
    return Format(name)


def print_file(run: Path, written: ExportedFile) -> None:
    """Print what was written, and the command that uses it."""
    content, info = written.content, written.info
    recipe = read_recipe(info.recipe)
    trigger = f"trigger word {content.trigger}" if content.trigger else "no trigger word"
    preview = "a preview" if content.preview is not None else "no preview"
    say(f"{shown(written.path)}: {content.facts.trained}, after step {info.step}; {trigger}, {preview}")
    if recipe.trainable.kind == "singular-components":
        what = "exactly the change of each weight; every program applies it"
        say(f"a plain LoRA of rank {written.rank}, {what}")
    if written.includes:
        say(f"it includes {', '.join(written.includes)}, which it was trained on top of; load it alone")
    apart = written.difference
    same = f"at most {apart:.1g} of its largest value from" if apart else "exactly"
    say(f"read back: {same} what was trained")
    say(f"loaded by {PROGRAMS[content.form]}")
    say(f"sampling: {content.usage_hint}")
    say()
    sampler = recipe.sampling.sampler
    call = [*info.model.named.options(), "--adapter", str(written.path)]
    call += ["--prompt", "A PROMPT", "--out", "A.png"]
    say("next: " + command("sample", sampler, *call))
