"""No input raises, hangs, crashes or takes more memory than its budget. The long form: benchmarks/fuzz.py."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import EDITS, BrokenClaim, Decoder, edited, seeds

INPUTS = st.builds(
    edited,
    st.integers(0, 10**6).map(lambda number: seeds()[number % len(seeds())]),
    st.lists(
        st.tuples(st.sampled_from(EDITS), st.floats(0, 1).map(lambda share: share**2), st.integers(0, 65535)),
        min_size=1,
        max_size=6,
    ),
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


def test_every_seed_is_an_image_and_is_decoded(decoder):
    assert Counter(decoder.check(seed).kind for seed in seeds()) == {"image": len(seeds())}


@pytest.mark.parametrize("rest", [b"", b"\0", b"\0\0\0"])
@pytest.mark.parametrize("kind", [b"IDAT", b"IEND", b"tEXt", b"fdAT"])
def test_a_png_that_ends_in_the_head_of_a_long_chunk_takes_no_memory_for_it(decoder, kind, rest):
    whole = next(seed for seed in seeds() if seed.startswith(b"\x89PNG"))
    head = whole[: whole.index(b"IDAT") - 4]
    found = decoder.check(head + (0xEA000111).to_bytes(4, "big") + kind + rest)
    assert found.kind in ("truncated", "corrupt")
    assert found.memory < 16 << 20


@settings(max_examples=150)
@given(data=INPUTS)
def test_no_input_breaks_the_claim(decoder, data):
    decoder.check(data)


def test_what_breaks_the_claim_is_noticed(decoder, monkeypatch):
    monkeypatch.setattr("benchmarks.fuzz.BUDGET", -1)
    with pytest.raises(BrokenClaim, match="are its budget"):
        decoder.check(seeds()[0])
    monkeypatch.setattr("benchmarks.fuzz.SECONDS", 0.1)
    # a process that hangs
    os.kill(decoder._child.pid, signal.SIGSTOP)
    with pytest.raises(BrokenClaim, match="took longer"):
        decoder.check(seeds()[0])
