"""A model hub on the loopback, which speaks enough of the hub's protocol for snapshots."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """`repositories` holds the files of `org/name` at its only commit, `commit`, to which the revision main
    leads; any other revision is unknown. `status` is the answer to every request if it is set. `requests`
    counts the GET requests by path.
    """

    def __init__(self) -> None:
        self.clear()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def clear(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commit = "c" * 40
        self.status: int | None = None
        self.requests: Counter[str] = Counter()

    def downloads(self, name: str) -> int:
        """How often a file was fetched, of any repository and commit."""
        return sum(
            n for path, n in self.requests.items() if "/resolve/" in path and path.endswith(f"/{name}")
        )

    def count(self, path: str) -> None:
        with self._lock:
            self.requests[path] += 1

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        if self.status is not None:
            return self.status, b"", {}
        repository = next((each for each in self.repositories if f"{each}/" in f"{path}/"), None)
        if repository is None:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        files = self.repositories[repository]
        api, types = f"/api/models/{repository}", {"Content-Type": "application/json"}
        at = path.removeprefix(f"{api}/revision/").removeprefix(f"{api}/tree/")
        if not at.startswith("/") and at not in ("main", self.commit):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        if path.startswith(f"{api}/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in files.items()
            ]
            return 200, json.dumps(listed).encode(), types
        if path.startswith(api):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": self.commit, "siblings": siblings}
            return 200, json.dumps({**info, "cardData": {"license": "apache-2.0"}}).encode(), types
        data = files.get(path.rpartition("/")[2])
        if data is None or not path.startswith(f"/{repository}/resolve/{self.commit}/"):
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        return 200, data, {"X-Repo-Commit": self.commit, "ETag": f'"{_etag(data)}"'}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self.hub.count(self.path.partition("?")[0])
        self._send(body=True)

    def _send(self, body: bool) -> None:
        status, data, headers = self.hub.answer(self.path.partition("?")[0])
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
