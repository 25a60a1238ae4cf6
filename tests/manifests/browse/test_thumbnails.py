"""The index of previews: keys of ids, whatever chunks and slices they come in."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from uhr.manifests.browse.thumbnails import _keys
from uhr.manifests.schema import sample_id

IDS = st.one_of(st.integers(0, 10**9).map(lambda n: sample_id(str(n))), st.just("f" * 32), st.just("0" * 32))


@given(
    st.lists(st.one_of(IDS, st.sampled_from(["", "ab", "z" * 31, "é" * 32])), max_size=9), st.integers(0, 3)
)
def test_the_key_of_an_id_is_its_first_64_bits_and_of_other_texts_0(texts: list[str], start: int) -> None:
    expected = [int(text[:16], 16) if len(text) == 32 and text.isascii() else 0 for text in texts]
    whole = pa.array(texts, pa.string())
    assert _keys(whole).tolist() == expected
    assert _keys(whole.slice(start)).tolist() == expected[start:]
    assert _keys(pa.chunked_array([whole, whole.slice(start)])).tolist() == [*expected, *expected[start:]]
