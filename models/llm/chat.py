"""A client of OpenAI-compatible chat servers (vLLM, SGLang, `transformers serve`, hosted ones)."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line

KEY = "OPENAI_API_KEY"
"""The environment variable of the key, which is sent to the server and goes nowhere else."""

ATTEMPTS = 6
LONGEST_WAIT = 30.0
"""Seconds between two attempts, whatever the server asks for."""

_OF_THE_QUESTION = (400, 413, 422)
"""What a server answers to a question that is too long, or that it will not answer."""

_CUT = ("length", "max_tokens")
_BROKEN_OFF = ("content_filter", "abort", "error")
"""`finish_reason` of an answer that is not whole: of OpenAI's interface, and of servers with words of their
own (vLLM and SGLang abort). Whatever else is there is taken for the end that it is."""

_REFUSED = re.compile(
    r"(?=.*(max_tokens|temperature)).*not support|unsupported.*(max_tokens|temperature)", re.I
)
"""In the words of a 400: a parameter that this model does not take."""

MOST_BYTES = 4 << 20
"""Of an answer; a longer one is no chat completion."""


class NoAnswer(Exception):
    """The server answered this question with nothing that can be used; another question may fare better."""


class ServerError(UserError):
    """The server cannot be asked at all: unreachable, refusing, or failing time after time."""


class ChatServer:
    """One model behind `url`/chat/completions. `seconds` is how long one answer may take, from the first byte
    sent to the last one read.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        seconds: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"'{url}' is no address of a server", "write it as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UserError(f"the address of {parts.hostname} holds a password", f"set {KEY} instead")
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.seconds = seconds
        self._sleep = sleep
        self._reasons = False
        self._told_until = 0.0
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.model = model or self._only_model()

    def ask(self, instruction: str, question: str, *, seed: int = 0, tokens: int = 1024) -> str:
        """The model's answer without white space around it, at temperature 0 unless the model has one
        temperature only.

        `tokens` is the most that it may write. NoAnswer where it says nothing or not to the end; ServerError
        where asking again does not help.
        """
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": instruction},
                {"role": "user", "content": question},
            ],
            "seed": seed,
        }
        choice = _choice(self._complete(body, tokens))
        text = choice["message"].get("content")
        if not isinstance(text, str) or not text.strip():
            raise NoAnswer("the answer is empty")
        reason = choice.get("finish_reason")
        if reason in _CUT:
            raise NoAnswer(f"the answer is longer than {tokens} tokens")
        if reason in _BROKEN_OFF:
            raise NoAnswer(f"the server broke the answer off ({reason})")
        return text.strip()

    def _complete(self, body: dict[str, Any], tokens: int) -> Any:
        """Hosted models that reason refuse two parameters that all others know: they are asked without."""
        if not self._reasons:
            try:
                usual = {**body, "temperature": 0, "max_tokens": tokens}
                return self._fetch("/chat/completions", usual)
            except NoAnswer as none:
                if not _REFUSED.search(str(none)):
                    raise
        answer = self._fetch("/chat/completions", {**body, "max_completion_tokens": tokens})
        self._reasons = True
        return answer

    def _only_model(self) -> str:
        """The name of the model that is served, where it is one."""
        tree = self._fetch("/models", None)
        entries = tree.get("data") if isinstance(tree, dict) else None
        names = [e["id"] for e in entries or [] if isinstance(e, dict) and isinstance(e.get("id"), str)]
        if len(names) == 1:
            return names[0]
        served = f"{len(names)} models ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        raise UserError(f"{self.url} serves {served if names else 'no model'}", "name one (--refine-model)")

    def _fetch(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON that the server answers; asked again after 429, 5xx, a lost connection and a time-out."""
        words = ""
        for attempt in range(ATTEMPTS):
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code in _OF_THE_QUESTION and body is not None:
                    raise NoAnswer(f"the server answers {error.code} ({said})") from None
                if error.code != 429 and error.code < 500:
                    raise ServerError(f"{self.url} answers {error.code} ({said})", _fix(error.code)) from None
                words, wait = f"{error.code} ({said})", _asked_wait(error)
            except (OSError, http.client.HTTPException, _Broken) as error:
                words, wait = _words(error), 0.0
            if attempt < ATTEMPTS - 1:
                # full jitter: many that failed together do not come back together
                wait = min(LONGEST_WAIT, max(wait, random.uniform(0.5, 1.0) * 2**attempt))
                self._tell(words, wait)
                self._sleep(wait)
        raise ServerError(
            f"{self.url} failed {ATTEMPTS} times: {words}", "check the server; the same command goes on"
        )

    def _tell(self, words: str, wait: float) -> None:
        """Why nothing happens; of many questions that wait at a time, one says it."""
        now = time.monotonic()
        if now >= self._told_until:
            self._told_until = now + wait
            warn(f"{self.url} failed: {words}; asked again in {wait:.0f} s")

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        deadline = time.monotonic() + self.seconds
        read = bytearray()
        with self._opener.open(request, timeout=self.seconds) as answer:
            while chunk := answer.read1(1 << 16):
                read += chunk
                if time.monotonic() > deadline:  # a server that drips never times out by itself
                    raise TimeoutError
                if len(read) > MOST_BYTES:
                    raise _Broken(f"the answer is longer than {MOST_BYTES >> 20} MiB")
            if answer.length:
                raise _Broken("the connection broke in the middle of the answer")
        try:
            return json.loads(read)
        except (ValueError, RecursionError):
            raise _Broken(f"the answer is no JSON: {bytes(read[:60])!r}") from None


class _Broken(Exception):
    """An answer that is not whole."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key must not follow to wherever a server points: a redirect is an error that says where to."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def _choice(tree: Any) -> dict[str, Any]:
    """The first choice of a chat completion."""
    try:
        choice = tree["choices"][0]
        if isinstance(choice["message"], dict):
            return choice
    except (LookupError, TypeError):
        pass
    raise NoAnswer(f"the answer is no chat completion: {json.dumps(tree)[:80]}")


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says of an error, in one short line."""
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
    return one_line(text)[:200]


def _fix(code: int) -> str:
    if code in (401, 403):
        return f"set {KEY}"
    if code in (301, 302, 303, 307, 308):
        return "name that address"
    return "check the address, which ends in /v1 most often, and --refine-model"


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds of a Retry-After header; 0 where there is none or it is a date."""
    text = error.headers.get("Retry-After", "")
    return float(text) if text.strip().isdigit() else 0.0


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "it does not answer in time"
    return one_line(reason) or type(reason).__name__
