"""The prompt in an image that uhr, ComfyUI or AUTOMATIC1111's web UI generated.

uhr's own record has it, in the file or in the JSON next to it. ComfyUI stores its graph of nodes as JSON
under the keyword `prompt` (SaveImage of ComfyUI's nodes.py): the prompt is the text behind the sampler's
positive conditioning. AUTOMATIC1111's web UI and its descendants (Forge, SD.Next) store a text under
`parameters`, or in the EXIF of a JPEG or WebP (`create_infotext` of modules/processing.py): the prompt, a
line `Negative prompt: ...`, and a last line of settings that begins with `Steps: `.

What a file contains is not trusted: anything that is not understood counts as no prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.models.generate.encoding import texts_of
from uhr.models.generate.input_images import CHUNK

LONGEST = 20_000
"""Characters of the longest prompt that is taken from a file."""

LARGEST_RECORD = 1_000_000
"""Bytes of the largest record that is read from the JSON next to an image."""

MOST_NODES = 10_000
"""Nodes of the largest graph that is read."""

_KEYWORDS = (CHUNK, "prompt", "parameters")
_SETTINGS = re.compile(r"^Steps: \d+")
_NEGATIVE = re.compile(r"^Negative prompt: ?(.*)$")
_CONDITIONING = ("positive", "conditioning", "cond1", "conditioning_1", "conditioning_to", "guider")
_TEXTS = ("text", "t5xxl", "prompt", "text_g", "clip_l", "text_l", "string", "value", "wildcard_text")
"""Inputs of text nodes, those that a FLUX model reads in full first."""

_ENDS = ("SaveImage", "PreviewImage", "Save", "Preview")


@dataclass(frozen=True)
class FoundPrompt:
    """A prompt that was found in a file. `source` names the program, and `ambiguous` says that the file has
    others, too."""

    text: str
    source: str
    ambiguous: bool = False


def prompt_of(path: Path) -> FoundPrompt | None:
    """Return the prompt in an image file, or in a record next to it.

    None if there is none, or if the file is of another kind.
    """
    try:
        texts = texts_of(path, _KEYWORDS)
    except UserError:
        return None  # an image of another format, or one that `open_image` will report
    readers = {
        CHUNK: _of_record,
        "prompt": _of_graph,
        "parameters": _of_parameters,
    }
    for keyword, read in readers.items():
        if keyword in texts and (found := read(texts[keyword])) is not None:
            return found
    comment = texts.get("exif", "")
    return _of_record(comment) or _of_parameters(comment) or _of_record(_beside(path))


def _beside(image: Path) -> str:
    """The text of the JSON next to an image, where `--record json` puts its record; empty without one."""
    try:
        with image.with_suffix(".json").open("rb") as opened:
            return opened.read(LARGEST_RECORD).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _usable(text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text).strip()
    return text if 0 < len(text) <= LONGEST else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_record(text: str) -> FoundPrompt | None:
    tree = _json(text) if text.startswith("{") else None
    if not isinstance(tree, dict) or "sampler" not in tree:
        return None
    prompt = _usable(tree.get("prompt"))
    return None if prompt is None else FoundPrompt(prompt, "uhr")


def _of_parameters(text: str) -> FoundPrompt | None:
    """Read A1111's text. Without its last line of settings it is not one."""
    lines = text.strip().splitlines()
    settings = [i for i, line in enumerate(lines) if _SETTINGS.match(line)]
    if not settings:
        return None
    body = lines[: settings[-1]]
    cut = next((i for i, line in enumerate(body) if _NEGATIVE.match(line)), len(body))
    prompt = _usable("\n".join(body[:cut]))
    return None if prompt is None else FoundPrompt(prompt, "AUTOMATIC1111")


def _of_graph(text: str) -> FoundPrompt | None:
    tree = _json(text)
    if not isinstance(tree, dict) or len(tree) > MOST_NODES:
        return None
    graph = _Graph({str(key): node for key, node in tree.items() if isinstance(node, dict)})
    found = list(dict.fromkeys(graph.prompts()))
    return FoundPrompt(found[0], "ComfyUI", len(found) > 1) if found else None


class _Graph:
    """A graph of ComfyUI: node id -> {class_type, inputs}, where an input may be a link [node id, output]."""

    def __init__(self, nodes: Mapping[str, dict[str, Any]]) -> None:
        self._nodes = nodes

    def prompts(self) -> Iterator[str]:
        """Yield the prompt of each sampler: those nearest to a node that saves an image first."""
        for sampler in self._samplers():
            inputs = self._inputs(sampler)
            for name in _CONDITIONING:
                text = self._text(inputs.get(name)) if name in inputs else None
                if text is not None:
                    yield text
                    break

    def _samplers(self) -> Iterator[str]:
        ends = [key for key in self._nodes if self._type(key).startswith(_ENDS)]
        seen: set[str] = set()
        # breadth first, from the end of the graph to its start
        level = ends
        while level:
            following: list[str] = []
            for key in level:
                if key in seen:
                    continue
                seen.add(key)
                if "Sampler" in self._type(key):
                    yield key
                following += [link for value in self._inputs(key).values() if (link := self._link(value))]
            level = following
        yield from (key for key in self._nodes if key not in seen and "Sampler" in self._type(key))

    def _text(self, value: Any) -> str | None:
        """The text behind an input: its own, or that of the nodes that it comes from."""
        seen: set[str] = set()
        level = [value]
        while level:
            following: list[Any] = []
            for each in level:
                if isinstance(each, str):
                    if (text := _usable(each)) is not None:
                        return text
                    continue
                key = self._link(each)
                if key is None or key in seen:
                    continue
                seen.add(key)
                inputs = self._inputs(key)
                named = [inputs[name] for name in _TEXTS if name in inputs]
                # conditioning passes through nodes such as FluxGuidance
                named += [v for n, v in inputs.items() if n in _CONDITIONING and self._link(v)]
                following += named
            level = following
        return None

    def _type(self, key: str) -> str:
        name = self._nodes[key].get("class_type")
        return name if isinstance(name, str) else ""

    def _inputs(self, key: str) -> dict[str, Any]:
        inputs = self._nodes[key].get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def _link(self, value: Any) -> str | None:
        """The node that an input is linked to; None for a plain value or a node that does not exist."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
            key = str(value[0])
            return key if key in self._nodes else None
        return None
