"""A chat server on the loopback that misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: Any, finish: str = "stop") -> dict[str, Any]:
    """What a server answers that says `text`."""
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    }


class ChatServerHere:
    """`url` ends in /v1. `requests` holds the body of each completion, `headers` those of each request.

    `reply(body, number)` gives the answer to the number-th request: what a server says (a text), a tree, raw
    bytes, a status, (status, headers), or a Callable that is handed the handler.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = ["expander"]
        self.reply: Callable[[dict[str, Any], int], Any] = lambda body, n: (
            f"{body['messages'][1]['content']}, refined"
        )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def questions(self) -> list[str]:
        return [body["messages"][1]["content"] for body in self.requests]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        here, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path == "/v1/models", self.path
                here.headers.append(dict(self.headers))
                self.send({"data": [{"id": name} for name in here.models]})

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions", self.path
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    here.requests.append(body)
                    here.headers.append(dict(self.headers))
                    number = len(here.requests)
                self.answer(here.reply(body, number))

            def answer(self, reply: Any) -> None:
                if callable(reply):
                    reply(self)
                elif isinstance(reply, int):
                    self.send({"error": {"message": "on request"}}, reply)
                elif isinstance(reply, tuple):
                    self.send({"error": {"message": "on request"}}, *reply)
                else:
                    self.send(completion(reply) if isinstance(reply, str) else reply)

            def send(self, tree: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
                data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        return Handler


def hang_up(handler: Any) -> None:
    """No answer: the connection closes."""
    handler.close_connection = True


def half(handler: Any) -> None:
    """Half of an answer, then the connection closes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def drip(handler: Any) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def silence(handler: Any) -> None:
    """Nothing, for longer than anybody waits in a test."""
    time.sleep(1.5)
    handler.close_connection = True
