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

from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.store import ObjectStore, StoreError

SECONDS = 300.0
"""How long a lease lasts without being renewed."""

NAME = "lease.json"


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


def claim_at(store: ObjectStore) -> Claim | None:
    """Return the lease of a prefix; None if nobody has one."""
    data = store.read(NAME)
    if data is None:
        return None
    try:
        return Claim(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise UserError(f"{store.place(NAME)} is no lease", "remove it if no run is at work there") from error


@contextlib.contextmanager
def held(store: ObjectStore, seconds: float = SECONDS) -> Generator[None]:
    """Hold the lease of a prefix while the block runs, in the main thread.

    Raises UserError if another run holds it, with who and until when; and, after the block was interrupted,
    if the lease was lost meanwhile because it could not be renewed in time.
    """
    lease = _Lease(store, seconds)
    before = signal.signal(signal.SIGUSR2, _interrupt)
    try:
        lease.take()
        yield
    except KeyboardInterrupt:
        if lease.lost is not None:
            raise lease.lost from None
        raise
    finally:
        lease.release()
        signal.signal(signal.SIGUSR2, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Lease:
    """The lease of this process, renewed by a thread."""

    def __init__(self, store: ObjectStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._until = 0.0
        self.lost: UserError | None = None

    def take(self) -> None:
        while not self._store.create(NAME, self._claim()):
            try:
                # the version first: a claim that is written after it makes `replace` fail
                version = self._store.version(NAME)
            except FileNotFoundError:
                continue  # given back meanwhile
            claim = claim_at(self._store)
            if claim is not None and not claim.is_over:
                raise UserError(
                    f"{self._store.text} is in use by {claim.holder} until {claim.time}",
                    "wait for it, or stop it; if it is dead, it is free by then",
                )
            if claim is not None and self._store.replace(NAME, self._claim(), version):
                break
        self._version = self._store.version(NAME)
        self._thread.start()

    def release(self) -> None:
        self._over.set()
        if self._thread.ident is None:
            return  # it was never taken
        self._thread.join()
        with contextlib.suppress(StoreError):  # it ends by itself
            claim = claim_at(self._store)
            if claim is not None and claim.token == self._token:
                self._store.delete(NAME)

    def _claim(self) -> bytes:
        self._until = _now() + self._seconds
        holder = f"{_user()}@{socket.gethostname()} (process {os.getpid()})"
        return json_bytes(asdict(Claim(holder, self._until, self._token)))

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            ends = self._until
            try:
                renewed = self._store.replace(NAME, self._claim(), self._version)
                if renewed:
                    self._version = self._store.version(NAME)
                    continue
                other = claim_at(self._store)
            except (StoreError, FileNotFoundError):
                # tried again as long as nobody else can have taken it
                self._until = ends
                if _now() < ends:
                    continue
                other = None
            if other is not None and other.token == self._token:
                # the answer to an earlier request was lost
                self._version = self._store.version(NAME)
                continue
            by = "" if other is None else f", which {other.holder} has taken over"
            self.lost = UserError(
                f"the lease of {self._store.text} could not be renewed in time{by}",
                "the same command resumes the run when it is free",
            )
            # a shell's background jobs ignore SIGINT; a signal also ends a wait inside a library
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            return


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
