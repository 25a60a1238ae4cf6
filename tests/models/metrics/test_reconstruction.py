"""PSNR and SSIM are scikit-image's, LPIPS is pyiqa's; a VAE reconstructs images of any size."""

import math

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample
from uhr.models.metrics.lpips import NETWORKS
from uhr.models.metrics.registry import metric
from uhr.models.scores.images import View


@pytest.fixture(scope="module")
def pair():
    """An image that has more rows than SSIM computes at once, and a noisy copy."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 90, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, image.shape)
    return image, np.clip(image + noise, 0, 255).astype(np.uint8)


def value(name: str, sample: Sample, **options) -> float:
    (found,) = metric(name, **options).score([sample])[0].values()
    return found


def test_psnr_and_ssim_are_scikit_images(pair):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    image, noisy = pair
    sample = Sample(noisy, reference=image)
    assert value("psnr", sample) == pytest.approx(peak_signal_noise_ratio(image, noisy), rel=1e-12)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = structural_similarity(image, noisy, channel_axis=2, **options)
    assert value("ssim", sample) == pytest.approx(theirs, rel=1e-9)


def test_psnr_is_at_most_100_db():
    image = np.zeros((600, 400, 3), np.uint8)
    near = image.copy()
    near[0, 0, 0] = 1
    # one value of 720,000 that is off by 1: 106.7 dB
    assert value("psnr", Sample(near, reference=image)) == 100
    near[0] = 1
    assert value("psnr", Sample(near, reference=image)) == pytest.approx(10 * math.log10(255**2 * 600))


def test_equal_images_are_at_no_distance(pair, alexnet):
    sample = Sample(pair[0], reference=pair[0].copy())
    assert value("psnr", sample) == 100
    assert value("ssim", sample) == pytest.approx(1, abs=1e-12)
    assert value("lpips", sample, **alexnet) == 0


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """Files of LPIPS with random numbers, as its authors and torchvision publish theirs."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    network = {f"features.{name}": tensor for name, tensor in alexnet().features.state_dict().items()}
    heads = {
        f"lin{number}.model.1.weight": torch.rand(1, channels, 1, 1)
        for number, channels in enumerate(NETWORKS["alexnet"].channels)
    }
    torch.save(network, folder / "net.pth")
    torch.save(heads, folder / "heads.pth")
    return {"network_file": str(folder / "net.pth"), "heads_file": str(folder / "heads.pth")}


def test_lpips_names_its_resize_rule_and_compares_at_that_size(pair, alexnet):
    image, noisy = pair
    small = View(shortest=64)
    reduced = Sample(small.of(noisy).numpy(), reference=small.of(image).numpy())
    native = metric("lpips", **alexnet, short=None)
    at_64 = metric("lpips", **alexnet, short=64)
    assert native.name == "lpips-0.1/alexnet/native"
    assert at_64.name == "lpips-0.1/alexnet/bicubic-short-64"
    assert native.columns != at_64.columns
    sample = Sample(noisy, reference=image)
    full = value("lpips", sample, **alexnet, short=64)
    assert full == pytest.approx(value("lpips", reduced, **alexnet, short=None), rel=1e-6)
    assert full != pytest.approx(
        value("lpips", Sample(noisy, reference=image), **alexnet, short=None), rel=0.01
    )
    assert len(native.identity()["weights"]["heads_file"]) == 64


def test_a_pair_that_cannot_be_compared_is_one_line(pair):
    image, noisy = pair
    with pytest.raises(UserError, match="image 4 has no reference, which psnr/rgb/most-100 needs"):
        metric("psnr").score([Sample(image, index=4)])
    with pytest.raises(UserError, match="image 4 has 90x599 px and its reference 90x600, and ssim"):
        metric("ssim").score([Sample(noisy[1:], index=4, reference=image)])
    with pytest.raises(UserError, match=r"needs heads_file: download https://.*alex\.pth"):
        metric("lpips", network_file=__file__)
    with pytest.raises(UserError, match="network_file nowhere does not exist"):
        metric("lpips", network_file="nowhere")


def test_a_vae_reconstructs_images_of_any_size_tiled_or_not(tiny_flux):
    from uhr.models.vae.codec import decode, encode_moments, reconstruct
    from uhr.models.vae.tiled import ExactTiling
    from uhr.models.zoo import load_vae

    vae = load_vae(tiny_flux)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((64, 48, 3), (50, 33, 3))]
    samples = [Sample(reconstruct(vae, image), reference=image) for image in images]
    assert [sample.image.shape for sample in samples] == [image.shape for image in images]
    mean, _ = encode_moments(vae, images[0][None])
    from uhr.models.ops.latents import normalisation, to_uint8

    expected = to_uint8(decode(vae, normalisation(vae).to_model(mean)))[0].numpy()
    assert (samples[0].image == expected).all()
    ExactTiling(memory=1 << 22).apply(vae)
    for image, sample in zip(images, samples, strict=True):
        assert np.abs(reconstruct(vae, image).astype(int) - sample.image).max() <= 1
    assert all(math.isfinite(row["psnr_rgb_most_100"]) for row in metric("psnr").score(samples))
