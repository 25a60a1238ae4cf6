"""A lease on a prefix of an object store: one run at a time works there, a dead one only until it ends.

It is an object with its holder and the time at which it ends. The holder renews it while it works. Every
write is on the condition that nobody else has written since, so that of two runs only one gets it.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.files import atomic, json_bytes
from uhr.base.store import ObjectStore, StoreError

SECONDS = 300.0
"""How long a lease lasts without being renewed."""

NAME = "lease.json"

_NOTE = "lease-token"


@dataclass(frozen=True)
class Claim:
    """Who holds a lease, and until when (seconds since 1970)."""

    holder: str
    until: float
    token: str

    @property
    def time(self) -> str:
        """When it ends, for messages."""
        return datetime.datetime.fromtimestamp(self.until, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    @property
    def is_over(self) -> bool:
        return self.until <= _now()


def claim_at(store: ObjectStore, name: str = NAME) -> Claim | None:
    """Return the lease of a prefix; None if nobody has one."""
    data = store.read(name)
    if data is None:
        return None
    try:
        return Claim(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise UserError(f"{store.place(name)} is no lease", "remove it if no run is at work there") from error


@contextlib.contextmanager
def held(
    store: ObjectStore, seconds: float = SECONDS, name: str = NAME, work: Path | None = None
) -> Generator[None]:
    """Hold the lease of a prefix while the block runs.

    Raises UserError if another run holds it, with who and until when; and, after the block was interrupted,
    if the lease was lost meanwhile because it could not be renewed in time. A block that is not in the main
    thread is not interrupted, and the error is raised at its end.

    Args:
        seconds: how long the lease lasts without being renewed.
        name: of the object.
        work: a folder of this machine that this process has locked. The lease of a process that was killed
            while it worked there is taken over at once; that of any other when it has ended.
    """
    lease = _Lease(store, seconds, name, work)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR2, _interrupt) if is_main else None
    try:
        lease.take()
        yield
        if lease.lost is not None:
            raise lease.lost
    except KeyboardInterrupt:
        if lease.lost is not None:
            raise lease.lost from None
        raise
    finally:
        lease.release()
        if is_main:
            signal.signal(signal.SIGUSR2, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Lease:
    """The lease of this process, renewed by a thread."""

    def __init__(self, store: ObjectStore, seconds: float, name: str, work: Path | None) -> None:
        self._store = store
        self._seconds = seconds
        self._name = name
        self._note = None if work is None else work / _NOTE
        self._token = uuid.uuid4().hex
        if self._note is not None and self._note.is_file():
            self._token = self._note.read_text(encoding="utf-8")
        self._holder = threading.get_ident()
        self._version = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._until = 0.0
        self.lost: UserError | None = None

    def take(self) -> None:
        while not (made := self._store.create(self._name, self._claim())):
            try:
                # the version first: a claim that is written after it makes `replace` fail
                version = self._store.version(self._name)
            except FileNotFoundError:
                continue  # given back meanwhile
            claim = self._found()
            if claim is not None and not claim.is_over and claim.token != self._token:
                raise UserError(
                    f"{self._store.text} is in use by {claim.holder} until {claim.time}",
                    "wait for it, or stop it; if it is dead, it is free by then",
                )
            if claim is not None and (made := self._store.replace(self._name, self._claim(), version)):
                break
        self._version = made
        self._thread.start()
        if self._note is not None:
            with atomic(self._note) as temporary:
                temporary.write_text(self._token, encoding="utf-8")

    def release(self) -> None:
        self._over.set()
        if self._thread.ident is None:
            return  # it was never taken
        self._thread.join()
        with contextlib.suppress(StoreError):  # it ends by itself
            claim = self._found()
            if claim is not None and claim.token == self._token:
                self._store.delete(self._name)
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    def _found(self) -> Claim | None:
        return claim_at(self._store, self._name)

    def _claim(self) -> bytes:
        self._until = _now() + self._seconds
        holder = f"{_user()}@{socket.gethostname()} (process {os.getpid()})"
        return json_bytes(asdict(Claim(holder, self._until, self._token)))

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            ends = self._until
            try:
                renewed = self._store.replace(self._name, self._claim(), self._version)
                if renewed:
                    self._version = renewed
                    continue
                # the version first: a claim that is written after it makes the next `replace` fail
                version, other = self._store.version(self._name), self._found()
                if other is not None and other.token == self._token:
                    # the answer to an earlier request was lost: the claim is that one's
                    self._version, self._until = version, other.until
                    continue
            except (UserError, FileNotFoundError):
                # tried again as long as nobody else can have taken it
                self._until = ends
                if _now() < ends:
                    continue
                other = None
            if self._over.is_set():
                return  # the work is done
            by = "" if other is None else f", which {other.holder} has taken over"
            self.lost = UserError(
                f"the lease of {self._store.text} could not be renewed in time{by}",
                "the same command resumes the run when it is free",
            )
            if self._holder == threading.main_thread().ident:
                # a shell's background jobs ignore SIGINT; a signal also ends a wait inside a library
                signal.pthread_kill(self._holder, signal.SIGUSR2)
            return


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
