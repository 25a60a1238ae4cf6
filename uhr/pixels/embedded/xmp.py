"""Read properties of an XMP packet (ISO 16684-1): RDF in XML."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XML = "http://www.w3.org/XML/1998/namespace"

_DEEPEST = 64
"""Nested elements that are followed; a real packet has less than ten."""


class XmpFault(Exception):
    """A packet is not well-formed XML, or is not what a writer of XMP makes."""


def properties(packet: bytes) -> dict[str, list[str]]:
    """Return the values of the properties of a packet's resource, by namespace and name, such as
    `http://purl.org/dc/elements/1.1/creator`. Of alternatives in several languages the default comes first.

    Values of structures inside of properties are left out. Raises XmpFault.
    """
    reader = _Reader()
    try:
        reader.read(packet)
    except expat.ExpatError as error:
        raise XmpFault(f"it is not well-formed ({expat.ErrorString(error.code)})") from None
    return {name: found.ordered() for name, found in reader.found.items()}


@dataclass
class _Values:
    plain: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)

    def ordered(self) -> list[str]:
        return list(dict.fromkeys([*self.default, *self.plain]))


class _Reader:
    """A walk over the elements. A property is a child of an `rdf:Description` below `rdf:RDF`; its values are
    its text, that of the `rdf:li` in it, or an `rdf:resource`.
    """

    def __init__(self) -> None:
        self.found: dict[str, _Values] = {}
        self._open: list[str] = []
        self._text: list[str] = []
        self._default = False

    def read(self, packet: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator="\n")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        # the padding behind a packet, and what some writers leave there
        parser.Parse(packet[: packet.rfind(b">") + 1], True)

    def _doctype(self, *_: object) -> None:
        raise XmpFault("it declares a document type, as no XMP does")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._open.append(_joined(tag))
        if len(self._open) > _DEEPEST:
            raise XmpFault(f"its elements are nested more than {_DEEPEST} times")
        self._text.clear()
        self._default = attributes.get(f"{XML}\nlang", "").lower() in ("x-default", "")
        if self._at_description():
            for name, value in attributes.items():
                if "\n" in name and not name.startswith((RDF, XML)):
                    self._add(_joined(name), value)
        elif self._property() and (resource := attributes.get(f"{RDF}\nresource")) is not None:
            self._add(self._open[self._depth], resource)

    def _end(self, tag: str) -> None:
        text = "".join(self._text).strip()
        if text and self._property():
            self._add(self._open[self._depth], text)
        self._text.clear()
        self._open.pop()

    @property
    def _depth(self) -> int:
        """The place of the open property: behind `rdf:RDF` and its `rdf:Description`."""
        return self._open.index(f"{RDF}RDF") + 2 if f"{RDF}RDF" in self._open else len(self._open)

    def _at_description(self) -> bool:
        return len(self._open) == self._depth and self._open[-1] == f"{RDF}Description"

    def _property(self) -> bool:
        """Whether the open element is a property, or an item of its list."""
        inside = self._open[self._depth :]
        if not inside or self._open[self._depth - 1] != f"{RDF}Description":
            return False
        lists = (f"{RDF}Bag", f"{RDF}Seq", f"{RDF}Alt")
        return len(inside) == 1 or (len(inside) == 3 and inside[1] in lists and inside[2] == f"{RDF}li")

    def _add(self, name: str, value: str) -> None:
        if value.strip():
            values = self.found.setdefault(name, _Values())
            (values.default if self._default else values.plain).append(value.strip())


def _joined(name: str) -> str:
    """The namespace and the name of an element, which expat gives with a line break between them."""
    return name.replace("\n", "")
