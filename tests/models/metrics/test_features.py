"""Features are stored, merged and compared only where they come from the same extractor."""

import dataclasses

import numpy as np
import pytest

from uhr.base.errors import UserError
from uhr.models.metrics.features import Features
from uhr.models.metrics.registry import metric
from uhr.models.metrics.sets import distances
from uhr.models.metrics.sets.random_features import RandomExtractor


def made(rows: np.ndarray, first: int = 0, identity=None) -> Features:
    """Features of images with one row each."""
    one = identity or {"extractor": "test"}
    return Features.merge(
        [Features.of(one, first + n, {"features": row[None]}) for n, row in enumerate(rows)]
    )


def test_the_order_of_merging_and_storing_does_not_change_a_value(tmp_path):
    rng = np.random.default_rng(0)
    reference, rows = made(rng.normal(size=(30, 8))), rng.normal(size=(30, 8))
    whole = made(rows)
    parts = [made(rows[20:], 20), made(rows[:7]), made(rows[7:20], 7)]
    for number, part in enumerate(parts):
        part.write(tmp_path / f"{number}.arrow")
    read = Features.merge([Features.read(tmp_path / f"{number}.arrow") for number in range(3)])
    assert read.images == len(read) == 30
    assert (read.rows("features", np.array([25, 0, 8])) == rows[[25, 0, 8]].astype(np.float32)).all()
    for statistic in (
        lambda features: distances.frechet(reference, features, "features"),
        lambda features: distances.kernel(reference, features, "features"),
        lambda features: distances.kernel(reference, features, "features", seed=3, size=10),
    ):
        assert statistic(read) == statistic(whole)


def test_features_of_another_extractor_are_refused(tmp_path):
    image = np.zeros((320, 320, 3), np.uint8)
    whole, cropped = RandomExtractor(), RandomExtractor(2)
    metric_of_crops = metric("random-frechet", crops=2)
    pair = Features.merge([cropped.features(image, 0), cropped.features(image, 1)])
    other = whole.features(image, 0)
    with pytest.raises(UserError, match=r"references.*different feature extractors.*area-16.*native-2x299"):
        metric_of_crops.compare(other, pair)
    with pytest.raises(UserError, match="different feature extractors"):
        Features.merge([pair, other])
    with pytest.raises(UserError, match="image 1 occur in two parts"):
        Features.merge([pair, cropped.features(image, 1)])


def test_what_is_no_file_of_features_is_one_line(tmp_path):
    for name, data in (("empty", b""), ("text", b"not arrow at all" * 10)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="has no features"):
            Features.read(tmp_path / name)
    with pytest.raises(UserError, match="has no features"):
        Features.read(tmp_path / "missing")


def test_features_that_are_not_finite_name_their_image():
    with pytest.raises(UserError, match="features of image 7 are not finite"):
        Features.of({}, 7, {"features": np.array([[1.0, np.nan]])})


def test_a_set_of_one_row_has_no_distance():
    rng = np.random.default_rng(0)
    one, two = made(rng.normal(size=(1, 4))), made(rng.normal(size=(2, 4)))
    for statistic in (distances.frechet, distances.kernel):
        with pytest.raises(UserError, match=r"generated set has 1 rows.*at least two images"):
            statistic(two, one, "features")
        with pytest.raises(UserError, match="reference set has 1 rows"):
            statistic(one, two, "features")
    with pytest.raises(UserError, match="in 10 splits"):
        distances.inception_score(two, "features")


def test_crops_are_at_the_same_places_in_an_image_and_its_reference():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    extractor = RandomExtractor(3)
    first, again = extractor.features(image, 5), extractor.features(image.copy(), 5)
    other = extractor.features(image, 6)
    everything = np.arange(3)
    assert (first.rows("features", everything) == again.rows("features", everything)).all()
    assert (first.rows("features", everything) != other.rows("features", everything)).any()
    with pytest.raises(UserError, match=r"image 2 has 298x400 px.*not enlarged"):
        extractor.features(image[:, :298], 2)


def test_an_unknown_metric_or_option_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match="did you mean kid"):
        metric("kidd")
    with pytest.raises(UserError, match="did you mean crops"):
        metric("patch-fid", crop=3)
    with pytest.raises(UserError, match=r"not named.*inception-2015-12-05\.pt"):
        metric("fid")


def test_a_value_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        distances.frechet(made(np.eye(3)), made(np.eye(3)), "features").value = 0
