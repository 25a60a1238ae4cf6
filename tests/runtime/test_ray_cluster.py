"""An address of a Ray cluster: each fault is distinguished, at once and in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from uhr.base.errors import UserError
from uhr.runtime.cluster import address as cluster
from uhr.runtime.pool import RayRunner
from uhr.runtime.units import NO_LIMITS

HERE = Path(__file__).parent
TOKEN = "the-token-of-this-test-0123456789abcdef"
VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_USE_TLS")


class Head(NamedTuple):
    """Ports of a running head: of the cluster, and of Ray's client."""

    port: int
    client: int

    @property
    def addresses(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.port}", f"ray://127.0.0.1:{self.client}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def no_token_here(monkeypatch, tmp_path):
    """No token in the environment, nor in the home folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one machine that asks for a token."""
    # Ray's sockets lie below, and their paths must be short
    folder = tempfile.mkdtemp(prefix="uhr-ray-")
    ports = Head(free_port(), free_port())
    mark = {"UHR_TEST_HEAD": folder}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(
                "--node-ip-address=127.0.0.1",
                f"--port={ports.port}",
                f"--ray-client-server-port={ports.client}",
            ),
            *("--include-dashboard=false", "--dashboard-agent-listen-port=0", "--disable-usage-stats"),
            *("--num-cpus=2", "--object-store-memory=80000000", f"--temp-dir={folder}"),
        ],
        env={**os.environ, **mark, "HOME": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while any(is_silent(place, call) for place, call in calls(ports)):
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "ray start takes too long"
            time.sleep(0.5)
        yield ports
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for each in marked(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def calls(ports: Head) -> list[tuple[str, str]]:
    return [
        (f"127.0.0.1:{ports.port}", cluster._HEAD_CALL),
        (f"127.0.0.1:{ports.client}", cluster._CLIENT_CALL),
    ]


def is_silent(place: str, call: str) -> bool:
    """Whether a port does not answer yet."""
    return cluster._status(place, call, TOKEN) in ("UNAVAILABLE", "UNAUTHENTICATED", "DEADLINE_EXCEEDED")


def marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("UHR_TEST_HEAD") == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def refusal(address: str) -> str:
    with pytest.raises(UserError) as error:
        cluster.check_cluster(address)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.ray
def test_a_cluster_that_asks_for_a_token_says_which_one_is_wrong_and_takes_the_right_one(
    head, monkeypatch, tmp_path
):
    for address in head.addresses:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        said = refusal(address)
        assert f"the Ray cluster at '{address}' requires a token" in said
        assert "sent only with RAY_AUTH_MODE=token" in said

        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        home = tmp_path / "home" / ".ray" / "auth_token"
        said = refusal(address)
        assert f"{home} has no token for the Ray cluster at '{address}'" in said
        assert "RAY_AUTH_TOKEN" in said

        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        assert f"'{address}' rejects the token of RAY_AUTH_TOKEN: " in refusal(address)
        for wrong in ("no\x01header", "schlüssel"):
            monkeypatch.setenv("RAY_AUTH_TOKEN", wrong)
            assert "the token of RAY_AUTH_TOKEN has characters that no token has" in refusal(address)

        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        cluster.check_cluster(address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        file = tmp_path / "a token"
        file.write_text("another\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        assert f"rejects the token of {file}: " in refusal(address)
        file.write_text(TOKEN + "\n")
        cluster.check_cluster(address)


@pytest.mark.ray
def test_the_ports_of_a_cluster_and_of_rays_client_are_not_taken_for_each_other(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    said = refusal(f"127.0.0.1:{head.client}")
    assert said.endswith(f"is a port for Ray's client: --address ray://127.0.0.1:{head.client}")
    said = refusal(f"ray://127.0.0.1:{head.port}")
    assert said.endswith(f"not for Ray's client: --address 127.0.0.1:{head.port}")


def test_a_token_for_a_cluster_without_tokens_is_refused(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    alive = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    service, _, method = cluster._HEAD_CALL.strip("/").partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: alive}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        cluster.check_cluster(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        said = refusal(address)
    finally:
        server.stop(None)
    assert said.startswith(f"RAY_AUTH_MODE=token, and the Ray cluster at '{address}' uses no token: unset")


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
import pyarrow as pa, unit_works
from uhr.base.errors import UserError
from uhr.runtime.pool import RayRunner
from uhr.runtime.units import NO_LIMITS, UnitPlan, run_units
plan = UnitPlan.create(Path(sys.argv[1]), pa.table({"x": [1, 2]}), 1, "square")
try:
    run_units(plan, unit_works.Square(), RayRunner(1, NO_LIMITS, sys.argv[3]), lambda n=1, note=None: None)
except UserError as error:
    print(error)
print(len(plan.finished()), "units")
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("is_named", "token", "expected"),
    [
        (True, TOKEN, ["2 units"]),
        # an address that Ray finds by itself, and whose failure is read from what Ray prints
        (False, "another", ["the Ray cluster at 'auto' rejects the token of RAY_AUTH_TOKEN", "0 units"]),
    ],
    ids=["right", "wrong"],
)
def test_units_run_on_a_cluster_with_its_token_alone(head, tmp_path, is_named, token, expected):
    named = head.addresses[0]
    address = named if is_named else "auto"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "plan"), str(HERE), address],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": named, "RAY_AUTH_TOKEN": token},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(expected), run.stdout + run.stderr
    assert all(line.startswith(words) for line, words in zip(lines, expected, strict=True)), lines


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_is_reported_at_once_whatever_is_there_instead(scheme):
    started = time.monotonic()
    address = f"{scheme}127.0.0.1:{free_port()}"
    said = refusal(address)
    assert said.startswith(f"no Ray cluster at '{address}' (nothing answers there: Connection refused)")
    assert said.endswith("start one, or leave --address out")
    assert f"no Ray cluster at '{scheme}no.such.host.invalid:6379'" in refusal(
        f"{scheme}no.such.host.invalid:6379"
    )
    with not_ray() as port:
        said = refusal(f"{scheme}127.0.0.1:{port}")
        assert f"no Ray cluster at '{scheme}127.0.0.1:{port}'" in said
        assert "does not answer as Ray does" in said
    # Ray itself tries for half a minute or longer
    assert time.monotonic() - started < 25


@contextlib.contextmanager
def not_ray() -> Iterator[int]:
    """A port of something that is not Ray."""
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_address_of_another_form_is_left_to_ray(monkeypatch):
    for address in ("auto", "somewhere", "ray://somewhere", "127.0.0.1:"):
        cluster.check_cluster(address)


def test_the_runner_looks_before_it_starts_ray(monkeypatch, tmp_path):
    """By a port where nothing listens, for which Ray would be imported and wait."""
    from uhr.runtime import ray as runner

    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="nothing answers there"), runner.running_ray(address, 1):
        pass
    assert RayRunner(1, NO_LIMITS, address).address == address


@pytest.mark.ray
def test_a_home_that_ray_cannot_write_its_token_to_is_one_line(monkeypatch):
    """A Ray of our own makes a token of its own."""
    import ray

    from uhr.runtime import ray as runner

    monkeypatch.setattr(
        ray, "init", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(
        UserError, match=r"Ray does not start here .*Permission denied.*: run without it: engine=local"
    ):
        runner._start(None, 1)
