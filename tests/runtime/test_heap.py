"""Workers keep the memory that images leave, up to a bound."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from uhr.runtime.heap import keep_freed_memory

SCRIPT = """
import resource, sys
import numpy as np
import psutil
from uhr.runtime.heap import KEPT_BYTES, keep_freed_memory
applied = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults(megabytes, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(megabytes * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(100, 1)
print(applied, faults(100, 4))
if applied:
    resident = psutil.Process().memory_info().rss
    np.ones(2 * KEPT_BYTES, np.uint8)
    print((psutil.Process().memory_info().rss - resident) / KEPT_BYTES)
"""


def run(how: str) -> list[str]:
    call = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()


GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="only glibc can be set to keep memory")
def test_buffers_of_the_next_image_are_there_already_and_giants_go() -> None:
    applied, faults, left = run("keep")
    assert applied == "True"
    assert int(faults) < int(run("plain")[1]) / 10
    assert float(left) <= 1.1


@pytest.mark.parametrize("library", [SimpleNamespace(), OSError("no library")])
def test_another_c_library_is_left_as_it_is(library, monkeypatch) -> None:
    def load(name: None) -> SimpleNamespace:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr("ctypes.CDLL", load)
    assert keep_freed_memory() is False
