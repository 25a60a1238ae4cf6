"""The parts of huggingface_hub that this project uses: what is fetched, how a refusal differs from a missing
network, and the names of files in its cache."""

import hashlib
import inspect
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError


def test_a_snapshot_takes_revision_and_patterns():
    assert {"revision", "allow_patterns", "ignore_patterns"} <= set(
        inspect.signature(snapshot_download).parameters
    )


def test_refusals_and_missing_networks_are_errors_of_their_own():
    assert issubclass(GatedRepoError, HfHubHTTPError)
    assert not issubclass(LocalEntryNotFoundError, GatedRepoError)


def test_with_local_files_only_a_snapshot_is_of_the_cache_and_no_request_is_sent(hub, tmp_path):
    address, _ = hub
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("org/name", endpoint=address, cache_dir=tmp_path, local_files_only=True)
    folder = tmp_path / "models--org--name" / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    options = {"endpoint": "http://127.0.0.1:9", "cache_dir": tmp_path, "local_files_only": True}
    assert Path(snapshot_download("org/name", revision="c" * 40, **options)) == folder


@pytest.fixture
def hub():
    """A hub on this machine that has one file, kept in LFS: (its address, the file's bytes)."""
    data = b"weights" * 100

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            for name, value in {
                "X-Repo-Commit": "c" * 40,
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": len(data),
                "ETag": '"of the transport"',
                "Content-Length": len(data),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", data
        server.shutdown()


def test_a_file_in_lfs_is_in_the_cache_under_its_sha256(hub, tmp_path, monkeypatch):
    from uhr.models.loading import hashes

    address, data = hub
    path = Path(
        hf_hub_download("org/name", "transformer/x.safetensors", endpoint=address, cache_dir=tmp_path)
    )
    assert path.read_bytes() == data
    assert path.is_symlink()
    monkeypatch.setattr(hashes, "SMALL", 0)
    monkeypatch.setattr(hashes, "sha256_file", None)
    assert hashes.file_hash(path) == hashlib.sha256(data).hexdigest()
