"""A step of a VAE's training: what is trained, on which crops, from which numbers."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.models.vae.f16 import vae_factor
from uhr.models.zoo import load_vae
from uhr.train.data.reader import EncodedData
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.vae.perceptual import Perceptual
from uhr.train.objectives.vae.reconstruction import ReconstructionLoss
from uhr.train.recipes import resolve
from uhr.train.run.checkpoints.checkpoint import folder_of, read_info
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer, train
from uhr.train.run.vae.phase import PixelUse


def test_the_less_flat_half_is_trained_on(vae_job, crops):
    (order,) = vae_job().mixture_of(0).orders
    uris = EncodedData.open(crops).read_pixels(0, order.rows[0].tolist()).uris
    # the third of five with a value is one of two equal ones
    assert set(uris) >= {"b.png", "f.png"}
    assert len(uris) == 3
    assert len(set(uris) & {"c.png", "d.png"}) == 1


def test_a_share_is_of_the_rows_that_the_condition_leaves(crops):
    data = EncodedData.open(crops)
    rows = data.lowest(data.select("uri <> 'f.png'"), {"flat_fraction": 0.25})
    assert data.read_pixels(0, rows[0].tolist()).uris == ("b.png",)
    assert [len(own) for own in data.lowest(data.select(), {})] == [6]
    with pytest.raises(UserError, match="has no column 'blur': curate with the stage"):
        data.lowest(data.select(), {"blur": 0.5})
    with pytest.raises(
        UserError, match=r"has no column 'artimuse_rank': curate with stage rank \(of: artimuse"
    ):
        data.lowest(data.select(), {"artimuse_rank": 0.5})
    with pytest.raises(UserError, match="column 'uri' has no numbers"):
        data.lowest(data.select(), {"uri": 0.5})
    with pytest.raises(UserError, match="no row has a value of flat_fraction"):
        data.lowest(data.select("uri = 'e.png'"), {"flat_fraction": 0.5})


def test_a_mask_leaves_pixels_out_of_the_loss_and_of_its_mean(vae_job):
    trainer = Trainer(vae_job("latents=mean"))
    phase, draws = trainer.phase(0), Draws(0, 0, range(2))
    use, network = phase.uses[0], trainer.model.network
    whole = use.batch(use.read(phase.mixture.at(0), draws), draws)
    assert whole.mask is None
    objective = ReconstructionLoss(l2=1.0, wavelet=0.0, perceptual=Perceptual(weight=0))
    plain = PixelUse(use.data, objective, "mean", 1.0, trainer.device)
    reconstructed, errors = plain.errors(network, whole, draws)
    every = torch.ones(len(whole.images), 1, *whole.images.shape[-2:])
    for part in (plain, use):
        torch.testing.assert_close(
            part.errors(network, replace(whole, mask=every), draws)[1].loss,
            part.errors(network, whole, draws)[1].loss,
        )
    half = every.clone()
    half[..., 24:] = 0
    _, masked = plain.errors(network, replace(whole, mask=half), draws)
    expected = (reconstructed - whole.images)[..., :24].square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(masked.loss, expected)
    torch.testing.assert_close(masked.parts["l2"], expected)
    assert not torch.isclose(masked.loss, errors.loss, rtol=1e-3).all()
    nothing = replace(whole, mask=torch.zeros_like(every))
    loss = use.loss(network, nothing, draws)[0]
    assert loss.tolist() == [0.0] * len(whole.images)
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.state.parameters.values())
    assert nothing.slice(0, 1).mask.shape[0] == 1


def test_the_decoder_alone_is_trained_in_float32(vae_job, tiny_flux):
    job = vae_job("runtime.precision=bfloat16", "latents=mean")
    trainer = Trainer(job)
    vae, before = trainer.model.module, load_vae(tiny_flux).state_dict()
    assert vae_factor(vae) == 16
    entry = trainer.step()
    after = vae.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert all(p.dtype == torch.float32 for p in vae.parameters())
    assert {"l2", "perceptual", "wavelet"} == set(entry["parts"])
    assert "sigma" not in entry
    assert entry["megapixels_per_second"] > 0


def test_the_loss_of_a_step_is_that_of_the_images_and_their_reconstructions(vae_job, crops):
    trainer = Trainer(vae_job())
    job, turn = trainer.job, trainer.phase(0).mixture.at(0)
    rows = EncodedData.open(crops).read_pixels(turn.bucket, turn.rows)
    images = rows.pixels.float() / 127.5 - 1
    vae = trainer.model.module
    draws = Draws(job.recipe.seed, 0, range(len(turn.rows)))
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        noise = draws.normal("latents", posterior.mean.shape[1:])
        found = vae.decode(posterior.mean + posterior.std * noise).sample
    entry = trainer.step()
    assert entry["parts"]["l2"] == pytest.approx((found - images).square().mean().item(), rel=1e-5)
    weights = {"l2": 1.0, "perceptual": 0.1, "wavelet": 0.2}
    total = sum(weights[name] * value for name, value in entry["parts"].items())
    assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_micro_batches_sum_to_the_gradient_of_the_whole_batch(vae_job, tmp_path):
    one, two = (
        Trainer(vae_job(f"batch.micro={micro}", out=tmp_path / str(micro))).step() for micro in (1, 2)
    )
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_the_whole_vae_may_be_trained(vae_job, tiny_flux):
    trainer = Trainer(vae_job("trainable.part=whole", "phases.main.objective.perceptual.weight=0"))
    before = {name: tensor.clone() for name, tensor in trainer.model.module.state_dict().items()}
    trainer.step()
    after = trainer.model.module.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder", "decoder"}


def test_a_vae_that_is_f16_already_is_trained_as_it_is(vae_job, tiny_f16):
    trainer = Trainer(vae_job(model=tiny_f16))
    assert vae_factor(trainer.model.module) == 16
    assert [entry["surgery"] for entry in trainer.model.surgeries] == ["vae-f16"]


def test_held_out_loss_psnr_and_reconstructions(vae_job):
    import cv2

    rows = "{where: \"uri = 'a.png'\", every: 2}"
    job = vae_job(
        f"validation.loss={rows}",
        f"validation.images={rows}",
        "phases.main.data=[{where: \"uri <> 'a.png'\"}]",
    )
    train(job)
    lines = {line["step"]: line for line in map(json.loads, (job.out / "log.jsonl").read_text().splitlines())}
    measured = {step: line["held_out"] for step, line in lines.items() if "held_out" in line}
    assert list(measured) == [0, 2, 4]
    assert measured[4]["loss"] < measured[0]["loss"]
    assert measured[4]["psnr"] > measured[0]["psnr"]
    assert measured[0]["images"] == 1
    image = cv2.imread(str(job.out / "validation" / "step-00000000" / "000.png"), cv2.IMREAD_COLOR_RGB)
    original, found = image[:, :64], image[:, 64:]
    stored = EncodedData.open(job.data[0].data.path)
    (row,) = stored.select("uri = 'a.png'")[0]
    assert (original == stored.read_pixels(0, [row]).pixels[0].permute(1, 2, 0).numpy()).all()
    # rounded to 8 bits
    assert cv2.PSNR(original, found) == pytest.approx(measured[0]["psnr"], abs=0.05)
    metrics = read_info(folder_of(job.out, 4)).metrics
    assert metrics["held-out loss: PSNR (dB)"] == measured[4]["psnr"]
    assert (job.out / "validation" / "step-00000004" / "000.png").is_file()


def test_a_checkpoint_has_the_whole_vae_and_an_average_of_what_is_trained(vae_job, tiny_flux):
    job = vae_job("ema=0.5")
    train(job)
    folder = folder_of(job.out, 4)
    state, average = load_file(folder / "vae.safetensors"), load_file(folder / "ema.safetensors")
    base = load_vae(tiny_flux).state_dict()
    assert state.keys() == base.keys()
    assert all(torch.equal(state[name], base[name]) for name in base if name.startswith("encoder."))
    assert {name.partition(".")[0] for name in average} == {"decoder"}
    info = read_info(folder)
    assert info.surgeries == [{"surgery": "vae-f16"}]
    assert (info.model.transformer, len(info.model.vae)) == ("", 64)


REFUSED = [
    ("runtime.compile=true", "runtime.compile is for backbones"),
    ("runtime.shard=full", "runtime.shard is for backbones"),
    ("surgeries=[{surgery: rope-ntk}]", "'rope-ntk' edits no VAE"),
    ("trainable={kind: backbone}", "is not a part of a VAE: set kind to vae"),
    ("init.use=fuse", "set init.use to continue"),
    ("phases.main.data.0.band=[0, 1]", "band"),
]


@pytest.mark.parametrize(("change", "error"), REFUSED)
def test_what_a_vae_has_no_use_for_is_refused(vae_job, change, error):
    with pytest.raises(UserError, match=error):
        vae_job(change)


def test_pixels_and_latents_are_not_mistaken_for_each_other(crops, small_set, tiny_flux, fast_vae, tmp_path):
    with pytest.raises(
        UserError, match=r"has pixels, and a transformer is trained on latents: encode.*without --pixels"
    ):
        start(resolve("lora", None, ["phases.main.resolution=64"]), str(tiny_flux), [crops], tmp_path / "one")
    recipe = resolve("vae-f16", None, [*fast_vae, "phases.main.resolution=128"])
    with pytest.raises(
        UserError, match=r"has latents, and a vae is trained on pixels: encode.*, with --pixels"
    ):
        start(recipe, str(tiny_flux), [small_set.folder], tmp_path / "two")
    with pytest.raises(UserError, match="recipes of its own, such as vae-f16"):
        resolve("lora", None, ["trainable={kind: vae}"])


def test_flux2_is_refused(tiny_flux2, crops, fast_vae, tmp_path):
    recipe = resolve("vae-f16", None, fast_vae)
    with pytest.raises(UserError, match="is for flux1, and tiny-flux2 is of family flux2"):
        start(recipe, str(tiny_flux2), [crops], tmp_path / "run")
    recipe = resolve("vae-f16", None, [*fast_vae, "family=flux2"])
    with pytest.raises(UserError, match="normalises latents by statistics of its own"):
        start(recipe, str(tiny_flux2), [crops], tmp_path / "run")
