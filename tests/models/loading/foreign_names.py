"""The state of diffusers' modules in the keys of other programs' files."""

import torch

NORMS = {
    "norm_q": "img_attn.norm.query_norm",
    "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm",
    "norm_added_k": "txt_attn.norm.key_norm",
}


def bfl_names(model, layout):
    """A transformer's state in the keys of BFL's own files."""
    state, found = dict(model.state_dict()), {}
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for name, (prefix, entry) in layout.linears(linears).items():
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}{part}.{kind}", None) for part in entry.parts]
            if parts[0] is None:
                continue
            whole = torch.cat(parts)
            found[f"{name}.{kind}"] = torch.cat(whole.chunk(2)[::-1]) if entry.swapped else whole
    for key, tensor in state.items():
        blocks, index, *_, norm, _ = key.split(".")
        inside = NORMS[norm].removeprefix("img_attn.") if blocks.startswith("single") else NORMS[norm]
        found[f"{'single' if blocks.startswith('single') else 'double'}_blocks.{index}.{inside}.scale"] = (
            tensor
        )
    return {key: tensor.contiguous() for key, tensor in found.items()}


def ldm_names(vae):
    """A VAE's state in the keys of BFL's `ae.safetensors`."""
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for key, tensor in vae.state_dict().items():
        for pattern, to in (
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("down_blocks.", "down."),
            ("conv_shortcut", "nin_shortcut"),
            ("resnets.", "block."),
        ):
            key = key.replace(pattern, to)
        for i in range(last + 1):
            key = key.replace(f"up_blocks.{i}.", f"up.{last - i}.")
        found[key] = tensor[:, :, None, None] if "attn_1" in key and tensor.ndim == 2 else tensor
    return {key: tensor.contiguous() for key, tensor in found.items()}
