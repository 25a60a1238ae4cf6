import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.train.encode.buckets import Bucket, buckets, choose, fits, parse_aspect, place
from uhr.train.encode.config import EncodeConfig

ASPECTS = EncodeConfig().aspects
sides = st.integers(1, 12_000)
ratios = st.tuples(st.integers(1, 40), st.integers(1, 40)).filter(lambda r: max(r) <= 4 * min(r))
resolutions = st.tuples(st.integers(1, 256), st.sampled_from([16, 32])).map(lambda p: (p[0] * p[1], p[1]))


@given(resolutions, st.lists(ratios, min_size=1, max_size=6))
def test_sides_are_the_multiples_nearest_to_the_exact_ones(size, pairs):
    resolution, multiple = size

    def near(side: int, exact: float) -> bool:
        return side % multiple == 0 and abs(side - max(exact, multiple)) <= multiple / 2 + 1e-9

    for pair in pairs:
        found = buckets(resolution, [f"{pair[0]}/{pair[1]}"], multiple)
        for a, b in (pair, pair[::-1]):
            exact = [resolution * math.sqrt(b / a), resolution * math.sqrt(a / b)]
            assert any(all(map(near, bucket, exact)) for bucket in found)
        assert len(found) <= 2


@pytest.mark.parametrize("resolution", [1024, 2048, 4096])
def test_the_standard_buckets_are_eleven_within_four_percent_of_the_area(resolution):
    found = buckets(resolution, ASPECTS, 16)
    assert len(found) == 11
    assert all(abs(b.height * b.width / resolution**2 - 1) < 0.04 for b in found)
    assert {Bucket(b.width, b.height) for b in found} == set(found)


def test_the_standard_4k_buckets_are_these():
    assert [str(b) for b in buckets(4096, ASPECTS, 16)] == [
        "2896x5792", "3072x5456", "3344x5024", "3552x4736", "3664x4576", "4096x4096",
        "4576x3664", "4736x3552", "5024x3344", "5456x3072", "5792x2896",
    ]  # fmt: skip


@given(sides, sides)
def test_an_image_goes_where_its_aspect_is_nearest(height, width):
    found = buckets(1024, ASPECTS, 16)

    def distance(bucket: Bucket) -> float:
        return abs(math.log(width / height) - math.log(bucket.width / bucket.height))

    assert distance(choose(height, width, found)) <= min(map(distance, found)) + 1e-12


@given(sides, sides, st.integers(1, 300), st.integers(1, 300))
def test_placement_covers_the_bucket_tightly_and_cuts_out_the_middle(height, width, rows, columns):
    bucket = Bucket(rows * 16, columns * 16)
    at = place(height, width, bucket)
    assert at.height == bucket.height or at.width == bucket.width
    assert 0 <= at.top <= at.height - bucket.height
    assert 0 <= at.left <= at.width - bucket.width
    assert abs(at.height - bucket.height - 2 * at.top) <= 1
    assert abs(at.width - bucket.width - 2 * at.left) <= 1
    # the aspect is kept to half a pixel of the longer side, unless the bucket itself forbids it
    assert abs(at.height * width - at.width * height) <= max(height, width) * 0.5 + 1e-9
    if fits(height, width, bucket):
        assert at.height <= height
        assert at.width <= width


@given(st.integers(1, 300), st.integers(1, 300))
def test_an_image_of_the_buckets_size_is_left_alone(rows, columns):
    bucket = Bucket(rows * 16, columns * 16)
    assert place(bucket.height, bucket.width, bucket) == (bucket.height, bucket.width, 0, 0)


@pytest.mark.parametrize("text", ["16x9", "3", "0/1", "a/b", "9/2", "1/5"])
def test_a_bad_aspect_is_an_error_that_names_it(text):
    with pytest.raises(UserError, match=text):
        parse_aspect(text)


def test_a_resolution_off_the_models_grid_is_an_error():
    with pytest.raises(UserError, match=r"resolution 1000: it must be a multiple of 16"):
        buckets(1000, ["1/1"], 16)
