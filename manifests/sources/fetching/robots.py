"""What a site allows to fetch and to train on: robots.txt (RFC 9309), X-Robots-Tag, tdm-reservation."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OPT_OUT_TAGS = frozenset({"noai", "noimageai", "noindex", "none"})
"""Values of X-Robots-Tag that forbid to use an image for training; `none` is short for noindex, nofollow."""

_EVIDENCE = ("x-robots-tag", "tdm-reservation", "tdm-policy")
"""Headers that are kept as evidence, whatever they say."""


@dataclass(frozen=True)
class Robots:
    """The rules of one robots.txt that apply to one agent: (allowed, pattern of the path), longest first."""

    rules: tuple[tuple[bool, str], ...] = ()

    @classmethod
    def parse(cls, text: str, agent: str) -> Robots:
        """Take the group of `agent` (the name without its version) from the text; else the group of `*`."""
        groups: dict[str, list[tuple[bool, str]]] = {}
        named: list[str] = []
        inside = False
        for line in text.splitlines():
            key, colon, value = line.partition("#")[0].partition(":")
            key, value = key.strip().lower(), value.strip()
            if not colon:
                continue
            if key == "user-agent":
                if inside:
                    named, inside = [], False
                named.append(value.lower())
                groups.setdefault(value.lower(), [])
            elif key in ("allow", "disallow"):
                inside = True
                for name in named if value else ():
                    groups[name].append((key == "allow", value))
        own = groups.get(agent.lower(), groups.get("*", []))
        # the longest pattern decides; of two that are as long, the one that allows
        return cls(tuple(sorted(own, key=lambda rule: (-len(rule[1]), not rule[0]))))

    def allows(self, url: str) -> bool:
        """Whether this URL of the site may be fetched."""
        parts = urllib.parse.urlsplit(url)
        path = _unquoted(f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
        return next((allowed for allowed, pattern in self.rules if _matches(pattern, path)), True)


def _matches(pattern: str, path: str) -> bool:
    """`*` is any text, `$` at the end is the end of the path; else the pattern is a beginning of it.

    Takes the first place of each part, and so no more than the product of the lengths, whatever a site
    writes.
    """
    first, *parts = [_unquoted(part) for part in pattern.removesuffix("$").split("*")]
    if not path.startswith(first):
        return False
    at, last = len(first), None
    if pattern.endswith("$"):
        if not parts:
            return path == first
        last = parts.pop()
    for part in parts:
        place = path.find(part, at)
        if place < 0:
            return False
        at = place + len(part)
    return last is None or (path.endswith(last) and len(path) - len(last) >= at)


def _unquoted(text: str) -> str:
    return urllib.parse.unquote(text, errors="replace")


def opt_out(headers: Mapping[str, Sequence[str]], agent: str) -> str | None:
    """Return the header that forbids to train on an answer; None if there is none.

    headers: lower-case name -> its values. A tag for another agent (`otherbot: noai`) does not count.
    """
    for value in headers.get("x-robots-tag", ()):
        tags = _tags_for(value, agent)
        found = sorted(OPT_OUT_TAGS.intersection(tags))
        if found:
            return f"X-Robots-Tag: {', '.join(found)}"
    if any(value.strip() == "1" for value in headers.get("tdm-reservation", ())):
        return "tdm-reservation: 1"
    return None


def opt_out_headers(headers: Mapping[str, Sequence[str]]) -> str | None:
    """Return the headers of an answer that are about reservations, as they came; None if there are none."""
    found = [f"{name}: {value.strip()}" for name in _EVIDENCE for value in headers.get(name, ())]
    return "; ".join(found) or None


def _tags_for(value: str, agent: str) -> Iterable[str]:
    """The tags of one header for `agent`: `noai, bot: noindex` has one for all and one for `bot`."""
    everyone = True
    for part in value.lower().split(","):
        name, colon, tag = part.partition(":")
        # these tags have a value of their own behind a colon
        if colon and name.strip() not in ("unavailable_after", "max-snippet", "max-image-preview"):
            everyone = name.strip() in ("*", agent.lower())
            part = tag
        if everyone:
            yield part.strip()
