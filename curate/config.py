"""Load a pipeline: a preset or a YAML file, a file's changes to a preset, and `--set path=value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import ByteSize, Field

from uhr.base.config import Config, LaterKeys, apply_sets, build, read_yaml
from uhr.base.errors import UserError, unknown
from uhr.base.paths import escaped, is_utf8
from uhr.curate.sidecars import DEFAULT_KEYS
from uhr.pixels.decode import PixelLimits

NullPolicy = Literal["fail", "reject", "keep"]

PRESETS = Path(__file__).parent / "presets"


class RuleEntry(LaterKeys, Config):
    """A rule with more than its condition: `null` says what becomes of a row on which it has no value.

    Without a `required` rule nothing is accepted: if it cannot be evaluated, a rule of the pipeline stops the
    plan, and a rule of a channel takes out the channel.
    """

    later: ClassVar[tuple[str, ...]] = ("required",)

    where: str
    null: NullPolicy = "fail"
    required: bool = False

    @pydantic.model_validator(mode="before")
    @classmethod
    def _named(cls, tree: Any) -> Any:
        # the key `null` of YAML is None
        if not isinstance(tree, Mapping):
            raise ValueError("should be a condition, or a mapping with `where`")  # noqa: TRY004 - pydantic's kind
        return {"null" if key is None else key: value for key, value in tree.items()}


_Rule = Annotated[
    Annotated[str, pydantic.Tag("text")] | Annotated[RuleEntry, pydantic.Tag("rule")],
    # an error is then about the kind of rule that was written
    pydantic.Discriminator(lambda rule: "text" if isinstance(rule, str) else "rule"),
]

Rules = dict[str, _Rule]
"""Rules by name: SQL over columns, or a mapping of it. They are evaluated in this order."""


class StageEntry(LaterKeys):
    """One entry of `stages`; its other keys are the parameters of the stage.

    `stage` is a name or an import path. `if_missing: skip` skips the stage if this machine lacks its package
    or weights, or if it cannot be imported; `adds` then names its columns, so that rules over them are
    reported as not evaluated.

    `resources` changes the resources of a model stage, `channel` limits a stage to the rows of one channel,
    and `stages` and `rules` are those of the patches that a stage cuts.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    later: ClassVar[tuple[str, ...]] = ("resources", "channel", "stages", "rules")

    stage: str
    name: str | None = None
    if_missing: Literal["fail", "skip"] = "fail"
    adds: list[str] = Field(default_factory=list)
    resources: dict[str, Any] = Field(default_factory=dict)
    channel: str | None = None
    stages: list[StageEntry] = Field(default_factory=list)
    rules: Rules = Field(default_factory=dict)

    @pydantic.field_validator("stages", mode="before")
    @classmethod
    def _with_mappings(cls, entries: Any) -> Any:
        return [_as_mapping(e) for e in entries if e is not None] if isinstance(entries, list) else entries

    @property
    def label(self) -> str:
        """The unique name of the stage in the pipeline: `name` if it is set, else `stage`."""
        return self.name or self.stage

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RunLimits(PixelLimits):
    """Limits per image: `seconds` of wall time, `memory` of a worker process (bytes, or "4GiB"), and the
    pixels and bytes of its file.

    Rules between pixel stages are evaluated for many images at once, so the clock restarts after each of
    them.
    """

    seconds: float = Field(60.0, gt=0)
    memory: ByteSize = Field(ByteSize(4 * 2**30), ge=2**28)


class SidecarKeys(Config):
    """The keys of a JSON sidecar that fill each column: the first that is found. All other keys go to
    `source_meta`.
    """

    caption: list[str] = DEFAULT_KEYS["caption"]
    source_url: list[str] = DEFAULT_KEYS["source_url"]
    author: list[str] = DEFAULT_KEYS["author"]
    license: list[str] = DEFAULT_KEYS["license"]


def _as_files(value: Any) -> Any:
    """The parameters of `blocklist` of what a pipeline may also write: a file, or a list of files."""
    return {"files": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value


class PipelineConfig(LaterKeys, Config):
    """A whole pipeline: what is measured of every image, and which images are kept."""

    later: ClassVar[tuple[str, ...]] = ("channels", "all_rules", "blocklist", "licences", "pause")

    name: str
    description: str = ""
    stages: list[StageEntry] = Field(min_length=1)
    rules: Rules = Field(default_factory=dict)
    channels: dict[str, Rules] = Field(default_factory=dict)
    """Named rule sets besides `rules`: an image is kept if all of `rules` and all rules of one channel keep
    it.
    """
    all_rules: bool = False
    """Whether rejected images are measured on by the stages of the CPU, so that every rule is evaluated."""
    limits: RunLimits = Field(default_factory=RunLimits)
    preview: int = Field(320, ge=0, le=2048)
    """Long side in pixels of the small JPEG that reports show; 0 for none."""
    pause: int = Field(20, ge=0)
    """Number of last rows of a host or stage: if most of them fail, its other rows are left undone. 0: they
    fail."""
    unit: int | None = Field(None, ge=1)
    """Images per unit of work; by default 8 to 64, or 256 to 4096 where no stage needs pixels."""
    sources: dict[str, Any] = Field(default_factory=dict)
    """The sources by name, where `--source` does not name one: a path, or `kind` and its options."""
    pixels: Literal["none", "kept", "all"] | None = None
    """Of which images the original bytes are stored in OUT: by default of none, and of the kept ones if the
    source fetches them."""
    sidecars: SidecarKeys = Field(default_factory=SidecarKeys)

    blocklist: Annotated[dict[str, Any] | None, pydantic.BeforeValidator(_as_files)] = None
    """Lists of images that must not be in the set: a file, several, or the parameters of `blocklist`."""
    licences: str | None = None
    """The file of a policy of licences (`curate.measures.licences.LicencePolicy`)."""


def guarded(config: PipelineConfig) -> PipelineConfig:
    """Return the pipeline with the stages and rules that `blocklist` and `licences` mean, before all others.
    A stage that it has already gets these files.

    Raises UserError if that names others.
    """
    own = [*config.stages]
    new: list[StageEntry] = []
    rules: Rules = {}

    def add(key: str, stage: str, params: Mapping[str, Any]) -> None:
        have = [entry for entry in own if entry.stage == stage]
        if not have:
            new.append(StageEntry.model_validate({"stage": stage, **params}))
        for entry in have:
            for name, value in params.items():
                if entry.params.get(name, value) not in (value, None, []):
                    what = f"{config.name}: {key} names other files than its stage '{entry.label}'"
                    raise UserError(what, f"leave out {key}, or {name} of the stage")
            whole = StageEntry.model_validate({**entry.model_dump(), **params})
            own[own.index(entry)] = whole

    if config.blocklist is not None:
        add("blocklist", "blocklist", config.blocklist)
        rules["blocklist"] = "blocklist_match IS NULL"
    if config.licences is not None:
        add("licences", "rights", {})
        add("licences", "licence", {"policy": config.licences})
        rules["licence"] = "license_problem IS NULL"
    before = {name: rule for name, rule in rules.items() if name not in config.rules}
    update = {"stages": [*new, *own], "rules": {**before, **config.rules}}
    return _with_own_sources(config.model_copy(update=update))


def own_sources(channel: str) -> str:
    """The name of the rule that gives a channel the images of its own sources."""
    return f"{channel}_sources"


def _with_own_sources(config: PipelineConfig) -> PipelineConfig:
    """Return the pipeline with a rule in each channel for the sources that have the key `channel`: these
    belong to that channel alone, and it takes no others.
    """
    trees = {name: dict(tree) for name, tree in config.sources.items() if isinstance(tree, Mapping)}
    owners = {name: tree.pop("channel") for name, tree in trees.items() if "channel" in tree}
    if not owners:
        return config
    for name, channel in owners.items():
        if channel not in config.channels:
            raise unknown("channel", str(channel), list(config.channels), f"source '{name}'")
    channels = {}
    for channel, rules in config.channels.items():
        own = [name for name, owner in owners.items() if owner == channel]
        listed = ", ".join(_literal(name) for name in (own or owners))
        where = f"source_name {'IN' if own else 'NOT IN'} ({listed})"
        channels[channel] = {own_sources(channel): where, **rules}
    return config.model_copy(update={"sources": {**config.sources, **trees}, "channels": channels})


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def fetching(config: PipelineConfig, obeys: bool = True) -> PipelineConfig:
    """Return the pipeline for a source that fetches: with the stage `fetch` and the rule `opt_out`, before
    all others, unless it has its own, and with the bytes of the kept images stored.

    obeys: whether the source obeys reservations.
    """
    stages, rules = list(config.stages), dict(config.rules)
    if all(entry.stage != "fetch" for entry in stages):
        decodes = any(entry.stage == "decode" for entry in stages)
        stages.insert(0, StageEntry.model_validate({"stage": "fetch", "hash": not decodes}))
    if not obeys:
        stages = [
            StageEntry.model_validate({**entry.model_dump(), "obey": False})
            if entry.stage == "fetch"
            else entry
            for entry in stages
        ]
    rules = rules if "opt_out" in rules else {"opt_out": "opt_out IS NULL", **rules}
    update = {"stages": stages, "rules": rules, "pixels": config.pixels or "kept"}
    return config.model_copy(update=update)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_text(name: str) -> str:
    """Return the commented YAML of a preset. Raises UserError if there is no such preset."""
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load(pipeline: str, sets: Sequence[str] = ()) -> PipelineConfig:
    """Load `pipeline`, a preset's name or a YAML file, and apply the `path=value` settings `sets`.

    Raises UserError if it does not exist or is invalid.
    """
    tree = _with_stage_mappings(_resolve(*_find(pipeline)), pipeline)
    tree = _with_stage_mappings(apply_sets(tree, list(sets)), pipeline)
    tree["stages"] = [entry for entry in tree.get("stages") or [] if entry is not None]
    tree["rules"] = {name: text for name, text in (tree.get("rules") or {}).items() if text is not None}
    stem = Path(pipeline).stem
    tree.setdefault("name", stem if is_utf8(stem) else escaped(stem))
    return guarded(build(PipelineConfig, tree, pipeline))


def is_file(pipeline: str) -> bool:
    """Whether `load` treats this as a file, existing or not, rather than as the name of a preset."""
    path = Path(pipeline)
    return pipeline not in preset_names() and (path.is_file() or _looks_like_a_file(path))


def _looks_like_a_file(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _find(pipeline: str) -> tuple[dict[str, Any], str]:
    if pipeline in preset_names():
        return read_yaml(PRESETS / f"{pipeline}.yaml"), pipeline
    path = Path(pipeline)
    if path.is_file():
        return read_yaml(path), pipeline
    if _looks_like_a_file(path):
        raise UserError(f"the pipeline {pipeline} does not exist", f"name a file, or one of {_presets()}")
    raise unknown("pipeline", pipeline, preset_names())


def _presets() -> str:
    return ", ".join(preset_names())


def _resolve(tree: dict[str, Any], where: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the tree merged over the preset that its key `preset` names; without that key, unchanged."""
    if "preset" not in tree:
        return tree
    base = tree["preset"]
    if base not in preset_names():
        raise unknown("preset", str(base), preset_names(), where)
    if base in above:
        raise UserError(f"{where}: preset '{base}' starts from itself", "fix the preset")
    whole = _resolve(read_yaml(PRESETS / f"{base}.yaml"), base, (*above, base))
    differences = {key: value for key, value in tree.items() if key != "preset"}
    if above == ():
        whole.pop("name", None)
        whole.pop("description", None)
    return {**whole, **{key: _merge(key, whole.get(key), value, where) for key, value in differences.items()}}


def _merge(key: str, base: Any, value: Any, where: str) -> Any:
    """Merge one key of a file over the preset's: mappings are merged, null removes, other values replace."""
    if key == "stages" and isinstance(value, Mapping):
        return _merge_stages(base or [], value, where)
    if isinstance(base, Mapping) and isinstance(value, Mapping):
        return {**base, **value}
    return value


def _merge_stages(base: Sequence[Any], differences: Mapping[str, Any], where: str) -> list[Any]:
    """Merge changes of stages: `flatness: {patch: 256}` changes parameters, `flatness: null` removes the
    stage, a new name adds one.
    """
    entries = [_as_mapping(entry) for entry in base]
    labels = [entry.get("name") or entry.get("stage") for entry in entries]
    for label, change in differences.items():
        if change is not None and not isinstance(change, Mapping):
            raise UserError(f"{where}: stages.{label} is {change!r}", "write its parameters, {} or null")
        if label in labels:
            place = labels.index(label)
            entries[place] = None if change is None else {**entries[place], **change}
        elif change is None:
            raise unknown("stage", label, [str(known) for known in labels], where)
        else:
            entries.append({"stage": label, **change})
    return [entry for entry in entries if entry is not None]


def _with_stage_mappings(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """Turn bare stage names into mappings, so that `--set stages.flatness.patch=256` can be applied.

    Raises UserError if `stages` is not a list or `rules` is not a mapping.
    """
    stages, rules = tree.get("stages"), tree.get("rules")
    if isinstance(stages, Mapping):
        raise UserError(
            f"{where}: stages is a mapping, which only a file with preset: may have",
            "write a list, or name the preset that the mapping changes",
        )
    if not isinstance(stages, list | None):
        raise UserError(f"{where}: stages is {stages!r}", "write a list, such as [header, decode]")
    if not isinstance(rules, Mapping | None):
        raise UserError(f"{where}: rules is {rules!r}", "write a mapping of name: condition")
    channels = tree.get("channels")
    if not isinstance(channels, Mapping | None):
        raise UserError(f"{where}: channels is {channels!r}", "write a mapping of channels to their rules")
    return tree if stages is None else {**tree, "stages": [_as_mapping(entry) for entry in stages]}


def _as_mapping(entry: Any) -> Any:
    return {"stage": entry} if isinstance(entry, str) else entry
