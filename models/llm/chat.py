"""A client of OpenAI-compatible chat servers (vLLM, SGLang, `transformers serve`, hosted ones)."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, Literal

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.base.paths import is_utf8

KEY = "OPENAI_API_KEY"
"""The environment variable of the key, which is sent to the server and nowhere else."""

ATTEMPTS = 6
LONGEST_WAIT = 30.0
"""The most seconds between two attempts, whatever the server requests."""

_QUESTION_REJECTED = (400, 413, 422)
"""Status codes for a question that is too long, or that the server refuses."""

_CUT = ("length", "max_tokens")
_INCOMPLETE = ("content_filter", "abort", "error")
"""`finish_reason` of an incomplete answer, in OpenAI's interface and in others (vLLM and SGLang use abort).
Any other reason counts as complete."""

_REFUSED = re.compile(
    r"(?=.*(max_tokens|temperature)).*not support|unsupported.*(max_tokens|temperature)", re.I
)
"""Matches the message of a 400 about a parameter that this model does not take."""

MOST_BYTES = 4 << 20
"""The longest answer in bytes; a longer one is not a chat completion."""


class NoAnswer(Exception):
    """The answer to this question cannot be used; another question may succeed."""


class ServerError(UserError):
    """The server cannot be used: it is unreachable, rejects requests, or keeps failing."""

    transient = True
    """Another attempt may succeed: it says nothing about the question."""


def check_address(url: str) -> None:
    """Raise UserError if a server's address is not an http or https URL, or contains a user name or a
    password: addresses are stored in records.
    """
    fix = "write it as http://localhost:8000/v1"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise UserError("the address of the server is not a valid URL", fix) from None
    if parts.username or parts.password:
        raise UserError(f"the address of {parts.hostname} contains a password", f"set {KEY} instead")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"'{url}' is not the address of a server", fix)


class ChatServer:
    """One model behind `url`/chat/completions. `seconds` is the time limit for one answer, from the first
    byte sent to the last byte read.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        seconds: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_address(url)
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.seconds = seconds
        self._sleep = sleep
        self._takes_completion_tokens = False
        self._warned_until = 0.0
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.model = model or self._only_model()

    def answer(self, instruction: str, question: str, *, seed: int = 0, tokens: int = 1024) -> str:
        """Return the model's answer without surrounding white space, at temperature 0 unless the model does
        not take one.

        `tokens` is the longest answer. Raises NoAnswer if the answer is empty or incomplete, and ServerError
        if the server cannot be used.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
        return complete_text(self.choice(messages, tokens, seed=seed), tokens)

    def check_reachable(self, seconds: float = 10.0) -> None:
        """Raise ServerError unless the server answers this machine, and takes its key."""
        try:
            self._request("/models", None, seconds).close()
        except urllib.error.HTTPError as error:
            # a server need not have a list of models
            if error.code in (401, 403):
                message = f"{self.url} answers {error.code} ({_server_message(error)})"
                raise ServerError(message, _fix(error.code)) from None
        except (OSError, http.client.HTTPException) as error:
            what = f"{self.url} cannot be reached ({_reason(error)})"
            raise ServerError(what, "start it, or let this machine reach it") from None

    def choice(self, messages: list[dict[str, Any]], tokens: int, **options: Any) -> dict[str, Any]:
        """Return the first choice of a chat completion, at temperature 0 unless the model does not take one.

        `options` are further parameters of the request. Raises NoAnswer if the server refuses this request,
        or its answer has no choice, and ServerError if the server cannot be used.
        """
        return _choice(self._complete({"model": self.model, "messages": messages, **options}, tokens))

    def _complete(self, body: dict[str, Any], tokens: int) -> Any:
        """Hosted reasoning models reject two parameters that all others take, so those are then left out."""
        if not self._takes_completion_tokens:
            try:
                usual = {**body, "temperature": 0, "max_tokens": tokens}
                return self._fetch("/chat/completions", usual)
            except NoAnswer as none:
                if not _REFUSED.search(str(none)):
                    raise
        answer = self._fetch("/chat/completions", {**body, "max_completion_tokens": tokens})
        self._takes_completion_tokens = True
        return answer

    def _only_model(self) -> str:
        """The name of the model that is served. Raises UserError unless it is exactly one."""
        tree = self._fetch("/models", None)
        entries = tree.get("data") if isinstance(tree, dict) else None
        names = [e["id"] for e in entries or [] if isinstance(e, dict) and isinstance(e.get("id"), str)]
        if len(names) == 1:
            return names[0]
        served = f"{len(names)} models ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        raise UserError(f"{self.url} serves {served if names else 'no model'}", "name one of them")

    def _fetch(self, path: str, body: dict[str, Any] | None) -> Any:
        """The server's answer as JSON; retries after 429, 5xx, a lost connection and a time-out."""
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                message = _server_message(error)
                if error.code in _QUESTION_REJECTED and body is not None:
                    raise NoAnswer(f"the server answers {error.code} ({message})") from None
                if error.code != 429 and error.code < 500:
                    raise ServerError(
                        f"{self.url} answers {error.code} ({message})", _fix(error.code)
                    ) from None
                reason, wait = f"{error.code} ({message})", _retry_after(error)
            except (OSError, http.client.HTTPException, _Broken) as error:
                reason, wait = _reason(error), 0.0
            if attempt < ATTEMPTS - 1:
                # full jitter: clients that failed together do not retry together
                wait = min(LONGEST_WAIT, max(wait, random.uniform(0.5, 1.0) * 2**attempt))
                self._warn_retry(reason, wait)
                self._sleep(wait)
        raise ServerError(
            f"{self.url} failed {ATTEMPTS} times: {reason}", "check the server, and run the command again"
        )

    def _warn_retry(self, reason: str, wait: float) -> None:
        """Warn once, however many questions wait at the same time."""
        now = time.monotonic()
        if now >= self._warned_until:
            self._warned_until = now + wait
            warn(f"{self.url} failed: {reason}; next attempt in {wait:.0f} s")

    def _request(self, path: str, body: dict[str, Any] | None, seconds: float) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        return self._opener.open(request, timeout=seconds)

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        deadline = time.monotonic() + self.seconds
        read = bytearray()
        with self._request(path, body, self.seconds) as answer:
            while chunk := answer.read1(1 << 16):
                read += chunk
                if time.monotonic() > deadline:  # a server that sends a few bytes at a time never times out
                    raise TimeoutError
                if len(read) > MOST_BYTES:
                    raise _Broken(f"the answer is longer than {MOST_BYTES >> 20} MiB")
            if answer.length:
                raise _Broken("the connection broke in the middle of the answer")
        try:
            return json.loads(read)
        except (ValueError, RecursionError):
            raise _Broken(f"the answer is not JSON: {bytes(read[:60])!r}") from None


class _Broken(Exception):
    """An incomplete or unreadable answer."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error, so that the key is not sent to another server."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def complete_text(choice: dict[str, Any], tokens: int) -> str:
    """Return the text of a choice without surrounding white space. Raises NoAnswer if it is empty, if it was
    cut, at `tokens` tokens or by the server, or if it has half of a surrogate pair, which no file can keep.
    """
    text = choice["message"].get("content")
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer("the answer is empty")
    reason = choice.get("finish_reason")
    if reason in _CUT:
        raise NoAnswer(f"the answer is longer than {tokens} tokens")
    if reason in _INCOMPLETE:
        raise NoAnswer(f"the server stopped before the end of the answer ({reason})")
    if not is_utf8(text):
        raise NoAnswer("the answer has half of a character")
    return text.strip()


def image_part(image: Any, format: Literal["PNG", "JPEG"]) -> dict[str, Any]:
    """Return the part of a message with one of Pillow's images, as a data URI; JPEG in quality 95."""
    data = io.BytesIO()
    image.save(data, format, **({"quality": 95} if format == "JPEG" else {}))
    text = base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{format.lower()};base64,{text}"}}


def _choice(tree: Any) -> dict[str, Any]:
    """The first choice of a chat completion. Raises NoAnswer if there is none."""
    try:
        choice = tree["choices"][0]
        if isinstance(choice["message"], dict):
            return choice
    except (LookupError, TypeError):
        pass
    raise NoAnswer(f"the answer is not a chat completion: {json.dumps(tree)[:80]}")


def _server_message(error: urllib.error.HTTPError) -> str:
    """The server's message about an error, in one short line, without the key if the server repeats it."""
    target = error.headers.get("Location")
    if target:
        return f"it is at {target}"
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        tree = json.loads(text)
        inner = tree.get("error", tree.get("detail", tree))
        text = inner["message"] if isinstance(inner, dict) and "message" in inner else str(inner)
    except (ValueError, AttributeError, RecursionError):
        text = text or str(error.reason)
    if key := os.environ.get(KEY):
        text = text.replace(key, "***")
    return one_line(text)[:200]


def _fix(code: int) -> str:
    if code in (401, 403):
        return f"set {KEY}"
    if code in (301, 302, 303, 307, 308):
        return "name that address"
    return "check the address, which usually ends in /v1, and the name of the model"


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds of a Retry-After header; 0 if there is none or it is a date."""
    text = error.headers.get("Retry-After", "")
    return float(text) if text.strip().isdigit() else 0.0


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return one_line(reason) or type(reason).__name__
