"""GLCM score and compression ratio are those of Diffusion-4K's code."""

import io

import numpy as np
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric
from uhr.models.metrics.texture import entropy


@pytest.mark.parametrize("levels", [2, 7, 64])
def test_the_entropy_of_a_patch_is_scikit_images(levels):
    from skimage.feature import graycomatrix
    from skimage.measure import shannon_entropy

    patch = np.random.default_rng(levels).integers(0, levels, (64, 64)).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, np.pi * 3 / 4]
    theirs = shannon_entropy(graycomatrix(patch, [1, 2, 3, 4], angles, levels=64, normed=True))
    assert entropy(patch) == pytest.approx(theirs, abs=1e-12)


def test_the_score_is_the_mean_over_whole_patches_of_the_gray_image():
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    gray = cv2.cvtColor(image[..., ::-1], cv2.COLOR_BGR2GRAY) // 4
    patches = [gray[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128)]
    (found,) = metric("glcm").score([Sample(image)])
    assert found == {"glcm_diffusion_4k": pytest.approx(np.mean([entropy(patch) for patch in patches]))}
    with pytest.raises(UserError, match="image 3 has 200x60 px"):
        metric("glcm").score([Sample(image[:60], index=3)])


def test_the_ratio_of_a_set_is_all_pixels_by_all_files():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 1 + high, (64, 96, 3), dtype=np.uint8) for high in (2, 255)]
    ratio = metric("compression-ratio")
    total = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        total += len(file.getvalue())
    (column,) = ratio.columns
    found = [row[column.name] for row in ratio.score([Sample(image) for image in images])]
    assert column.mean == "harmonic"
    assert 2 / (1 / found[0] + 1 / found[1]) == pytest.approx(sum(image.size for image in images) / total)
