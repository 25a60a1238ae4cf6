"""Processes that start in a tenth of a second: forks of a server that has made the imports already.

A command that imports torch and diffusers costs ten seconds of CPU before it does anything. What `start` and
`run` give is a real process with its own id, exit code, signals, working folder, environment and files; only
its imports are made already. Tests whose claim is a cold start use `subprocess`.

The server (this file, run as a script) has a single thread, so that a fork of it is safe. Sessions of pytest
that run at the same time share it; it ends with the last of them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

CURATION = (
    "uhr.cli",
    "uhr.curate.run.job",
    "uhr.curate.run.work",
    "uhr.curate.measures.gray_pass",
    "cv2",
    "jinja2",
)
MODELS = (
    "uhr.sample.command",
    "uhr.models.generate.session",
    "uhr.models.samplers.core.pipelines.families",
    "uhr.models.adapters.files",
    "diffusers.FluxPipeline",
    "diffusers.Flux2KleinPipeline",
    "peft.tuners.lora",
    "transformers.CLIPTextModel",
    "transformers.CLIPTokenizer",
    "transformers.T5EncoderModel",
    "transformers.T5TokenizerFast",
    "transformers.Qwen3ForCausalLM",
    "transformers.Qwen2TokenizerFast",
)
TRAINING = ("uhr.train.run.trainer", "uhr.train.encode.run", "uhr.train.generate.run")
SERVERS = {"curation": CURATION, "everything": (*CURATION, *MODELS, *TRAINING)}
"""What each server imports."""

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Warm:
    """Starts processes from the server `name` that listens in `folder`, and the server if there is none."""

    def __init__(self, name: str, folder: Path) -> None:
        self.address = folder / f"{name}.sock"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._alive = _connect(self.address)
            except OSError:  # there is none, or it has ended
                self._start(name, folder)
                self._alive = _connect(self.address)
            _send(self._alive, {"keep": True})

    def _start(self, name: str, folder: Path) -> None:
        self.address.unlink(missing_ok=True)
        with open(folder / f"{name}.log", "w") as log:
            server = subprocess.Popen(
                [sys.executable, __file__, str(self.address), *SERVERS[name]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # without NVML, asking whether there is a GPU would keep forks from using it
                env={**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,
            )
        while not self.address.exists():
            assert server.poll() is None, (folder / f"{name}.log").read_text()
            time.sleep(0.02)

    def close(self) -> None:
        self._alive.close()

    def start(self, arguments: Sequence[object], **options: Any) -> Process:
        """Start a process as `python ARGUMENTS` would: ["-m", "uhr", ...] or ["-c", CODE, ...].

        Options: `cwd`, `env`; `new_session` makes it the leader of a process group; `stdout` and `stderr` are
        open files, or None for temporary files; `warm_workers` has its worker processes start warm, too.
        """
        return Process(self.address, arguments, **options)

    def run(self, arguments: Sequence[object], timeout: float = 300, **options: Any) -> Finished:
        """Start a process, and wait for its end."""
        process = self.start(arguments, **options)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Finished(code, process.stdout(), process.stderr())

    def workers(self) -> contextlib.AbstractContextManager[None]:
        """Context manager: worker processes that `uhr.runtime` starts in this process are warm."""
        return warm_workers(self.address)

    def uhr(self, *arguments: object, **options: Any) -> Finished:
        """Run a command as a process of its own."""
        return self.run(["-m", "uhr", *arguments], **options)


class Finished:
    """The exit code (minus the signal that ended it), standard output and standard error of a process."""

    def __init__(self, returncode: int, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


class Process:
    """A started process, with the part of `subprocess.Popen` that tests and `uhr.runtime` use."""

    def __init__(
        self,
        address: Path,
        arguments: Sequence[object],
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = False,
        warm_workers: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._files: list[BinaryIO] = [_temporary() if file is None else file for file in (stdout, stderr)]
        request = {
            "arguments": list(map(os.fsdecode, map(_text, arguments))),
            "cwd": os.path.abspath(os.getcwd() if cwd is None else cwd),
            "env": dict(os.environ if env is None else env),
            "numbers": [1, 2, *pass_fds],
            "new_session": new_session,
            "warm_workers": warm_workers,
            "parent": os.getpid(),
        }
        self._connection = _connect(address)
        _send(self._connection, request, [*(file.fileno() for file in self._files), *pass_fds])
        self._answers = self._connection.makefile("r")
        self.pid = self._answer("pid")
        assert self.pid > 1

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._read()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # the server has waited for a process that ended by itself, and its answer may be on the way
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def stdout(self) -> str:
        """What it has printed on standard output until now."""
        return self._printed(0)

    def stderr(self) -> str:
        """What it has printed on standard error until now."""
        return self._printed(1)

    def _printed(self, index: int) -> str:
        file = self._files[index]
        if not file.readable():
            return ""
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")

    def _read(self) -> None:
        self.returncode = self._answer("exit")
        self._answers.close()
        self._connection.close()

    def _answer(self, kind: str) -> int:
        word, _, number = self._answers.readline().partition(" ")
        assert word == kind, f"the process ended before it began: {word} {number}"
        return int(number)


@contextlib.contextmanager
def warm_workers(address: Path) -> Iterator[None]:
    """Have the worker processes of `uhr.runtime` start from the server at `address`: those of this process,
    and those of the actors that it starts on Ray.
    """
    from uhr.runtime import process
    from uhr.runtime import ray as runner

    real, actor = process.subprocess, runner.UnitActor
    _use_server(address)
    runner.UnitActor = _warm_actor(address)  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        process.subprocess, runner.UnitActor = real, actor


def _use_server(address: Path) -> None:
    from uhr.runtime import process

    def popen(command: Sequence[str], *, stdin: Any, stderr: Any, **options: Any) -> Process:
        return Process(address, command[1:], stderr=stderr, **options)

    names = {"TimeoutExpired": subprocess.TimeoutExpired, "DEVNULL": subprocess.DEVNULL}
    process.subprocess = types.SimpleNamespace(Popen=popen, **names)  # ty: ignore[invalid-assignment]


def _warm_actor(address: Path) -> type:
    """The actor of `uhr.runtime.ray`, whose child starts from the server. Ray sends the class by value."""
    from uhr.runtime import ray as runner

    class UnitActor(runner.UnitActor):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            _use_server(address)
            super().__init__(*arguments, **named)

    return UnitActor


def _temporary() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile())


def _text(argument: object) -> str | bytes:
    return os.fspath(argument) if isinstance(argument, os.PathLike) else str(argument)


def _connect(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


def _send(connection: socket.socket, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
    """Send one line of JSON, with open files beside its first bytes."""
    line = json.dumps(message).encode() + b"\n"
    socket.send_fds(connection, [line[:1]], list(files))
    connection.sendall(line[1:])


def serve(address: str, imports: Sequence[str]) -> dict[str, Any]:
    """Import, listen, fork. Return the request only in each forked process; the server itself exits."""
    for name in imports:
        pkgutil.resolve_name(name)
    gc.collect()
    gc.freeze()
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    # pyarrow's allocator stops its own thread before a fork, and starts it again afterwards
    others = [name for name in threads if name != "jemalloc_bg_thd"][1:]
    assert not others, f"imports have started threads: {others}"
    bell, ringer = os.pipe()
    os.set_blocking(ringer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ringer)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    keepers: list[socket.socket] = []
    running: dict[int, socket.socket] = {}
    kept = False
    while not kept or keepers:
        ready = select.select([listener, bell, *keepers], [], [])[0]
        if bell in ready:
            os.read(bell, 4096)
            _report(running)
        for keeper in [each for each in keepers if each in ready]:
            keepers.remove(keeper)
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        first, files, _, _ = socket.recv_fds(connection, 1, 64)
        with connection.makefile("rb") as rest:
            request = json.loads(first + rest.readline())
        if "keep" in request:
            keepers.append(connection)
            kept = True
            continue
        pid = os.fork()
        if pid == 0:
            for each in (listener, *keepers, *running.values()):
                each.close()
            signal.set_wakeup_fd(-1)
            os.close(bell)
            os.close(ringer)
            _become(request, files, connection)
            return {**request, "address": address}
        for file in files:
            os.close(file)
        running[pid] = connection
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    times = os.times()
    print(
        f"CPU seconds: imports {times.user:.1f}, processes {times.children_user + times.children_system:.1f}"
    )
    raise SystemExit


def _report(running: dict[int, socket.socket]) -> None:
    """Send the exit codes of processes that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # whoever started it is gone
            connection.sendall(b"exit %d\n" % os.waitstatus_to_exitcode(status))
        connection.close()


def _become(request: Mapping[str, Any], files: Sequence[int], connection: socket.socket) -> None:
    """Make this fork the process of the request: files, signals, folder, environment, parent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    # first out of the way of the numbers that the files are to have
    *high, answers = [fcntl.fcntl(file, fcntl.F_DUPFD, 500) for file in (*files, connection.fileno())]
    connection.close()
    for file in files:
        os.close(file)
    for file, number in zip(high, request["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # worker processes end if their parent is not the one that started them
    os.getppid = lambda: request["parent"]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    os.write(answers, b"pid %d\n" % os.getpid())
    os.close(answers)


def _execute(request: Mapping[str, Any]) -> None:
    """Run the request's arguments as the interpreter would run its own."""
    arguments = list(request["arguments"])
    here = [""]
    if arguments[0] == "-P":
        here.clear()
        arguments.pop(0)
    option, what, *rest = arguments
    added = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = list(dict.fromkeys([*here, *added, *sys.path]))
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    assert option == "-c", arguments
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), main.__dict__)


def _exit_code(request: Mapping[str, Any]) -> int:
    """Execute the request. Print an exception that nothing caught, and return the interpreter's exit code."""
    try:
        _execute(request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - what the interpreter does with it
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> NoReturn:
    """End as the interpreter does, without freeing millions of objects one by one, which takes seconds."""
    threading._shutdown()  # ty: ignore[unresolved-attribute]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the packages are those beside the tests
    request = serve(sys.argv[1], sys.argv[2:])
    workers = warm_workers(Path(request["address"])) if request["warm_workers"] else contextlib.nullcontext()
    with workers:
        _end(_exit_code(request))
