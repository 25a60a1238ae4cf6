"""UltraFlux's F16 VAE (CVPR 2026): FLUX.1's VAE at half the latent grid, its decoder trained without a GAN.

The training code is not published: values that the paper leaves out are ours.
"""

from __future__ import annotations

from uhr.train.objectives.vae.perceptual import Perceptual
from uhr.train.objectives.vae.reconstruction import ReconstructionLoss
from uhr.train.optimisers.kinds import AdamW
from uhr.train.recipes.core.base import Batching, DataUseBase
from uhr.train.recipes.core.runtime import Runtime, Sampling
from uhr.train.recipes.core.shared import sources
from uhr.train.recipes.core.vae import VaePhase, VaeRecipe
from uhr.train.trainable.vae import Vae

RECIPE = VaeRecipe(
    name="vae-f16",
    about="FLUX.1's VAE with 16 px per latent: its decoder, without a GAN (UltraFlux)",
    family="flux1",
    surgeries=({"surgery": "vae-f16"},),
    trainable=Vae(part="decoder"),
    phases=(
        VaePhase(
            name="main",
            data=(DataUseBase(lowest={"flat_fraction": 0.5}),),
            resolution=512,
            objective=ReconstructionLoss(
                l2=1.0, perceptual=Perceptual(weight=0.1, network="vgg16"), wavelet=0.2
            ),
            steps=4000,
            lr=1e-5,
            warmup=0,
        ),
    ),
    optimiser=AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    clip=1.0,
    batch=Batching(size=384, micro=16, remainder="short"),
    latents="sample",
    seed=0,
    sampling=Sampling(sampler="ultraflux"),
    runtime=Runtime(
        device="auto",
        precision="bfloat16",
        gradient_checkpointing=False,
        checkpoint_every=500,
        keep_checkpoints=2,
    ),
    sources=sources(
        family="UltraFlux: FLUX.1-dev",
        surgeries="UltraFlux: stride 2 in the encoder's first convolution, doubling before the last one",
        trainable="UltraFlux: the decoder; the encoder is frozen",
        phases__data="ours: every crop is drawn equally often",
        phases__data__lowest="UltraFlux: the less flat half, by its flatness filter",
        phases__resolution="UltraFlux: crops of 512 x 512 px",
        phases__objective="UltraFlux: L2, perceptual and wavelet terms, no GAN",
        phases__objective__l2="UltraFlux",
        phases__objective__perceptual="ours: LPIPS 0.1; the paper names no network",
        phases__objective__perceptual__weight="UltraFlux",
        phases__objective__perceptual__network="ours: VGG-16, as in latent diffusion (2112.10752)",
        phases__objective__wavelet="UltraFlux; its form, L1 on one level of Haar detail bands, is ours",
        phases__steps="UltraFlux: about 4,000",
        phases__lr="UltraFlux: 1e-5 in its text, 1e-4 in its Table 9",
        optimiser="UltraFlux: AdamW; its other values are torch's defaults",
        optimiser__weight_decay="UltraFlux",
        clip="ours: not published",
        batch__size="UltraFlux",
        batch__micro="ours: fits in 40 GiB",
        latents="ours, as latent diffusion: a new draw from the encoder's distribution at each visit",
    ),
)
