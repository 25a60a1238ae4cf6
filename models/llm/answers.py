"""What may be wrong with a model's answer: a refusal, or JSON that its schema does not allow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.paths import is_utf8
from uhr.models.llm.chat import NoAnswer

_REFUSAL = re.compile(
    r"""\s*["'*]*(
        (i['’]?m | i\s+am)\s+((very|really|so)\s+)?sorry | sorry[,.]? | i\s+apologi[sz]e
        | unfortunately,?\s+i\b | as\s+an\s+ai\b
        | (i['’]?m | i\s+am)\s+(not\s+able|unable)\s+to\b
        | (i\s+)?(can(['’]?t|\s*not) | won['’]?t | will\s+not)
          \s+(help|assist|describe|identify|caption|provide|comply|fulfil|see|view|process|translate)
        | 抱歉 | 对不起 | 很抱歉 | 我无法 | 我不能
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Matches the beginning of a refusal in English or Chinese. A caption says what is in the image, so it does
not begin like this."""

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)

_KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "enum"),
    *("minItems", "maxItems", "description", "title"),
}

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def without_thoughts(text: str) -> str:
    """Return an answer without the reasoning that some models write before it, and its white space."""
    return text.rpartition("</think>")[2].strip()


def check_refusal(text: str) -> str:
    """Return the text. Raises NoAnswer if it begins like a refusal, or is empty."""
    if not text:
        raise NoAnswer("the answer is empty")
    if _REFUSAL.match(text):
        raise NoAnswer(f"the model refused: {one_line(text)[:100]}")
    return text


def check_schema(schema: Any, where: str = "the schema") -> None:
    """Raise UserError if a JSON schema uses a keyword or type that `structured` does not check."""
    if not isinstance(schema, Mapping):
        raise UserError(f"{where} is {schema!r}, not an object", "write a JSON schema")
    for keyword in sorted(schema.keys() - _KEYWORDS):
        raise UserError(f"{where} has '{keyword}'", f"use only {', '.join(sorted(_KEYWORDS))}")
    kind = schema.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
        raise UserError(f"{where} has the type {kind!r}", f"use one of {', '.join(_TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{where}.{name}")
    if "items" in schema:
        check_schema(schema["items"], f"{where}[]")
    if not isinstance(schema.get("additionalProperties", False), bool):
        check_schema(schema["additionalProperties"], f"{where}.*")


def structured(text: str, schema: Mapping[str, Any]) -> str:
    """Return the answer as canonical JSON (sorted keys, one line).

    A Markdown fence around it is removed. Raises NoAnswer if it is not JSON, or not of the schema.
    """
    fenced = _FENCE.match(text)
    try:
        tree = json.loads(fenced[1] if fenced else text, parse_constant=_no_json)
        found = json.dumps(tree, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (ValueError, RecursionError):
        raise NoAnswer(f"the answer is not JSON: {text[:60]!r}") from None
    if not is_utf8(found):
        raise NoAnswer("the answer has half of a character")
    _check(tree, schema, "the answer")
    return found


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check(value: Any, schema: Mapping[str, Any], where: str) -> None:
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in ("number", "integer"))
    ):
        raise NoAnswer(f"{where} is {json.dumps(value)[:40]}, not of type {kind}")
    if "enum" in schema and value not in schema["enum"]:
        raise NoAnswer(f"{where} is {json.dumps(value)[:40]}, not one of {json.dumps(schema['enum'])[:80]}")
    if isinstance(value, dict):
        _check_object(value, schema, where)
    if isinstance(value, list):
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            raise NoAnswer(f"{where} has {len(value)} items")
        for number, item in enumerate(value):
            _check(item, schema.get("items", {}), f"{where}[{number}]")


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            raise NoAnswer(f"{where} lacks '{name}'")
    for name, inner in value.items():
        if name in properties:
            _check(inner, properties[name], f"{where}.{name}")
        elif others is False:
            raise NoAnswer(f"{where} has '{name}', which its schema does not allow")
        elif others is not True:
            _check(inner, others, f"{where}.{name}")
