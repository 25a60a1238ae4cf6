"""What a file of weights is, by its first bytes, its name and its header: read, or named for what it is.

Tensors are not read here and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import tempfile
import zipfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uhr.base.errors import UserError, install, one_line

SAFETENSORS = (".safetensors", ".sft")
"""How safetensors files are called; BFL published FLUX.1 as flux1-dev.sft and ae.sft."""

MODEL_INDEX = "model_index.json"
"""A folder with this file is a whole model."""

ADAPTER = "an adapter"
"""What `kind_of` calls a LoRA and its kin, in any maker's names."""

_HEAD = 1024
_MOST_HEADER = 100_000_000
"""Bytes of a safetensors header, as its own reader limits them."""

_AGAIN = "download it again"
_CONVERT = "it can run code, so it is never opened: take the .safetensors file, or convert it"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape ([out, in] of a linear) and its dtype as the file calls it (`BF16`,
    `Q4_K`)."""

    shape: tuple[int, ...]
    dtype: str


def check_installed(package: str, what: str) -> None:
    """UserError where a package of the extra `quantize`, which `what` needs, is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs the package {package}", install("quantize"))


def is_gguf(file: Path) -> bool:
    """Whether a file is GGUF, by its first bytes."""
    return _head(file)[:4] == b"GGUF"


def stored(file: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file (whatever its suffix) or GGUF, by name.

    Raises UserError for any other file, which says what it is instead, for one that is cut short, and for one
    shard of several.
    """
    head = _head(file)
    _check_shard(file)
    if head[:4] == b"GGUF":
        return _gguf(file)
    header = _header(file, head)
    if header is None:
        raise _other(file, head)
    return _tensors(header)


PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
}
"""Before the names of a component in a whole checkpoint, ComfyUI's."""


def part_of(weights: Mapping[str, Stored], component: str) -> dict[str, tuple[str, Stored]]:
    """Of a whole checkpoint the weights of a component, of any other file all: name without the component's
    prefix -> (name in the file, tensor)."""
    for prefix in PREFIXES[component]:
        inside = {
            name.removeprefix(prefix): (name, tensor)
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        if inside:
            return inside
    return {name: (name, tensor) for name, tensor in weights.items()}


def check_folder(folder: Path, where: str) -> None:
    """UserError where a component's folder holds no weights that can be read: a pickle, a GGUF file, weights
    that were stored quantised and whose configuration does not say so (the libraries load those that do), a
    file that is cut short or something else by its content. `where` names the component in errors.
    """
    files = weight_files(folder)
    others = sorted(path for path in folder.glob("*") if path.suffix.lower() in (*_PICKLES, ".gguf"))
    if not files and others:
        kind, fix = (
            ("a pickle", _CONVERT) if others[0].suffix != ".gguf" else ("GGUF", "name the file itself")
        )
        raise UserError(f"{where} is stored as {others[0].name}, {kind}", fix)
    for file in files:
        head = _head(file)
        header = _header(file, head)
        if header is None:
            raise _other(file, head)
        if not _says_quantised(folder):
            check_plain(_tensors(header), f"{where} ({file.name})")


def _says_quantised(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, TypeError):
        return False  # whoever loads it says what is wrong with its configuration


def check_pointers(folder: Path) -> None:
    """UserError where a file of a component's folder is a git-lfs pointer: a clone without git-lfs leaves
    these in place of tokenizers and weights."""
    for file in sorted(folder.glob("*")):
        if file.is_file() and file.stat().st_size < _HEAD and (head := _head(file)).startswith(_LFS):
            raise _other(file, head)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by their suffix; `.sft` counts where there is no other."""
    return next((files for suffix in SAFETENSORS if (files := sorted(folder.glob(f"*{suffix}")))), [])


def variant_of(folder: Path, usual: str) -> str | None:
    """The variant ("fp16") under which alone a component's folder holds sharded weights, as `from_pretrained`
    takes it; None where `usual`, or shards of it, are there."""
    if (folder / usual).exists() or (folder / f"{usual}.index.json").exists():
        return None
    found = [path.name for path in folder.glob(f"{usual}.index.*.json")]
    return found[0].removeprefix(f"{usual}.index.").removesuffix(".json") if len(found) == 1 else None


@contextlib.contextmanager
def under_usual_names(folder: Path, usual: str) -> Generator[Path]:
    """A component's folder as diffusers and transformers read it: where its only file of weights has another
    name than `usual` (`.sft`, `.fp16.safetensors`), a temporary folder of links in which it has that one.
    """
    files = weight_files(folder)
    if len(files) != 1 or files[0].name == usual or _SHARD.search(files[0].stem):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="uhr-weights-") as temporary:
        place = Path(temporary)
        for path in folder.iterdir():
            (place / (usual if path == files[0] else path.name)).symlink_to(path.absolute())
        yield place


def check_plain(weights: Mapping[str, Stored], where: str) -> None:
    """UserError for weights that are stored quantised, in a way that no reader here undoes; `where` names the
    file. Plain 8-bit floats are plain weights."""
    for pattern, maker in _QUANTISED:
        found = sorted(name for name in weights if pattern.search(name))
        if found:
            fix = (
                "take a GGUF file, or plain weights: those of a folder can be quantised while they are loaded"
            )
            raise UserError(f"{where} is quantised by {maker} ({found[0]})", fix)
    for name, tensor in weights.items():
        if name.endswith("weight") and len(tensor.shape) > 1 and tensor.dtype in _NO_FLOATS:
            what = f"{where} holds {name} as {tensor.dtype}, which is no plain floating-point weight"
            raise UserError(what, "take a plain safetensors file or a GGUF")


def kind_of(names: Mapping[str, Stored], beside: bool = False) -> str | None:
    """What weights are by their names ("a T5 text encoder", "an adapter"); None where they are nothing that
    is known here. `beside`: a FLUX backbone's names are among them, so that only what is built of these and
    others counts (a ControlNet)."""
    kinds = _BESIDE if beside else (*_BESIDE, *_ALONE)
    return next((kind for pattern, kind in kinds if any(map(pattern.search, names))), None)


def _head(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(_HEAD)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "check its permissions") from error


def _check_shard(file: Path) -> None:
    match = _SHARD.search(file.stem)
    if match is not None and int(match[2]) > 1:
        fix = f"name the folder with all of them, {file.parent}"
        raise UserError(f"{file} is one shard of {int(match[2])}", fix)


def _header(file: Path, head: bytes) -> dict | None:
    """The header of a safetensors file: JSON by the tensors' names; None where it is no safetensors file.

    The file begins with the header's length (8 bytes, little endian), the header, and the tensors' bytes.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{" or length > _MOST_HEADER:
        return None
    size = file.stat().st_size
    if size < 8 + length:
        raise _cut(file, size, None)
    with open(file, "rb") as opened:
        opened.seek(8)
        text = opened.read(length)
    try:
        header = json.loads(text)
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        whole = all(isinstance(t["shape"], list) and isinstance(t["dtype"], str) for t in tensors)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{file} has a damaged header ({type(error).__name__})", _AGAIN) from error
    if not whole or size > 8 + length + end:
        raise UserError(f"{file} has a header that does not fit its {size:,} bytes", _AGAIN)
    if size < 8 + length + end:
        raise _cut(file, size, 8 + length + end)
    return header


def _tensors(header: dict) -> dict[str, Stored]:
    return {
        name: Stored(tuple(tensor["shape"]), tensor["dtype"])
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def _cut(file: Path, size: int, whole: int | None) -> UserError:
    of = "" if whole is None else f" of {whole:,}"
    return UserError(f"{file} is cut short: it has {size:,}{of} bytes", _AGAIN)


def _gguf(file: Path) -> dict[str, Stored]:
    if file.suffix != ".gguf":
        raise UserError(f"{file} is a GGUF file by its content", "rename it so that it ends in .gguf")
    check_installed("gguf", "reading GGUF")
    try:
        tensors = importlib.import_module("gguf").GGUFReader(file).tensors
    except (OSError, ValueError, IndexError, KeyError) as error:
        text = one_line(error)
        raise UserError(f"{file} is damaged or cut short ({text})", _AGAIN) from error
    # GGUF counts dimensions from the last
    return {
        each.name: Stored(tuple(int(n) for n in each.shape[::-1]), each.tensor_type.name) for each in tensors
    }


_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_LFS = b"version https://git-lfs.github.com/spec/"
_BY_MAGIC = (
    (b"\x89HDF", "is an HDF5 file", "take the .safetensors file"),
    (b"ftrt", "is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    (b"\x1f\x8b", "is a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it"),
    (b"Rar!", "is a RAR archive", "unpack it"),
    (b"\xfd7zXZ", "is an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive", "unpack it"),
    (b"\x93NUMPY", "is an array of NumPy's", "take the .safetensors file"),
)
_BY_SUFFIX = {
    ".onnx": ("is an ONNX model", "take the .safetensors file that it was made from"),
    ".engine": (
        "is a TensorRT engine, built for one GPU",
        "take the .safetensors file that it was built from",
    ),
    ".plan": ("is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    ".trt": ("is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    ".msgpack": ("is a file of Flax's", "take the .safetensors file"),
    ".tflite": ("is a TensorFlow Lite model", "take the .safetensors file"),
    ".mlmodel": ("is a Core ML model", "take the .safetensors file"),
    ".part": ("is a download that is not finished", _AGAIN),
    ".crdownload": ("is a download that is not finished", _AGAIN),
    ".incomplete": ("is a download that is not finished", _AGAIN),
    ".aria2": ("is a note of a download that is not finished", _AGAIN),
}


def _other(file: Path, head: bytes) -> UserError:
    """The error for a file that is neither safetensors nor GGUF."""
    what, fix = _named(file, head)
    return UserError(f"{file} {what}", fix)


def _named(file: Path, head: bytes) -> tuple[str, str]:
    """What a file is that is neither safetensors nor GGUF, and the way out."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return "is empty (0 bytes)", _AGAIN
    if head.startswith(_LFS):
        return (
            "is a git-lfs pointer, not the weights",
            "run `git lfs pull` in its folder, or download the file",
        )
    if text[:1] == b"<":
        fix = (
            "download the file itself (on a hub its address has /resolve/, not /blob/), logged in if need be"
        )
        return "is a web page", fix
    if text[:1] in (b"{", b"["):
        return _json(file)
    for magic, what, fix in _BY_MAGIC:
        if head.startswith(magic):
            return what, fix
    if head.startswith(b"PK\x03\x04"):
        return (
            ("is a pickle of PyTorch's", _CONVERT) if _is_torch(file) else ("is a zip archive", "unpack it")
        )
    if (head[:1] == b"\x80" and 2 <= head[1] <= 5) or head[257:262] == b"ustar":
        return ("is a pickle", _CONVERT) if head[:1] == b"\x80" else ("is a tar archive", "unpack it")
    if file.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[file.suffix.lower()]
    if file.suffix.lower() in _PICKLES:
        return "is a pickle by its name", _CONVERT
    if not any(head):
        return "begins with zeros, as a download that is not finished does", _AGAIN
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"is text, not weights ({one_line(head[:60].decode())})", _AGAIN
    return f"is no safetensors file or GGUF (it begins with {head[:8].hex(' ')})", _AGAIN


def _json(file: Path) -> tuple[str, str]:
    folder = file.parent
    if file.name == "model_index.json":
        return "is the index of a whole model", f"name its folder, {folder}"
    if file.name.endswith(".index.json"):
        return "is the index of sharded weights", f"name the folder with the shards, {folder}"
    if file.suffix == ".json":
        return "is a configuration, not weights", f"name its folder, {folder}, or a .safetensors file"
    return "is JSON, not weights: what a server answers where it gives no file", _AGAIN


def _is_torch(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        # cut short: what else would be called so
        return file.suffix.lower() in (*_PICKLES, *SAFETENSORS)


def _compiled(*kinds: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), kind) for pattern, kind in kinds)


_NO_FLOATS = frozenset(
    {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}
)
"""safetensors' dtypes that are no floating-point numbers of 8 bits and more."""

_QUANTISED = _compiled(
    (r"\.quant_state\.bitsandbytes__nf4$", "bitsandbytes to NF4"),
    (r"\.quant_state\.bitsandbytes__fp4$", "bitsandbytes to FP4"),
    (r"\.(absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\.", "bitsandbytes to 4 bits"),
    (r"\.(SCB|weight_format)$", "bitsandbytes to 8 bits"),
    (r"\.(wscales|wcscales|wtscale|smooth_factor)$", "SVDQuant (nunchaku)"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.(weight_packed|weight_zero_point)$", "compressed-tensors"),
    (r"\.(weight_scale_2|weight_quantizer\._amax|weight_quantizer\._scale)$", "NVIDIA's ModelOpt"),
    (r"\.weight\._(data|scale|shift)$|\.weight_qtype$", "quanto"),
    (r"[:._](qdata|int_data|tensor_impl)$|_weight_(qdata|scale|zero_point)$", "torchao"),
    (r"\.(W_q|q_weight|q_scale)$", "HQQ or EXL2"),
    (r"\.weight_scale_inv$", "blocks to 8-bit floats, with scales"),
    (r"\.(scale_weight|weight_scale|comfy_quant)$|(^|\.)scaled_fp8$", "ComfyUI, with scales beside them"),
)
"""Names beside or in place of `weight`, and who writes them; the narrower before the wider."""

_ADAPTER = re.compile(
    r"\.lora_[AB]\.|\.lora[._](down|up)\.|\.lora_(down|up)\.|_lora\d*\.(down|up)\.|\.(lokr|hada|oft)_"
    r"|\.dora_scale$|lora_magnitude_vector|\.diff(_b)?$|\.processor\.to_\w+_[ab]\."
)
_BESIDE = _compiled(
    (_ADAPTER.pattern, ADAPTER),
    (r"controlnet_(x_embedder|blocks|double|single)|input_hint_block", "a ControlNet"),
    (r"(^|\.)(image_proj|ip_adapter)", "an IP-Adapter"),
    (r"(^|\.)distilled_guidance_layer\.", "a Chroma"),
    (r"(^|\.)exp_avg(_sq)?(\.|$)", "the state of an optimiser"),
)
_ALONE = _compiled(
    (r"^enc\.blk\.\d+\.|(^|\.)encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"(^|\.)joint_blocks\.\d+\.", "a Stable Diffusion 3"),
    (r"(^|\.)input_blocks\.\d+\.|(^|\.)down_blocks\.\d+\.attentions\.", "a UNet of Stable Diffusion"),
    (r"(^|\.)text_model\.encoder\.layers\.\d+|(^|\.)resblocks\.\d+\.", "a CLIP"),
    (r"(^|\.)layers\.\d+\.self_attn\.|^blk\.\d+\.attn_", "a language model"),
    (r"(^|\.)(decoder|encoder)\.conv_in\.weight$", "a VAE"),
    (r"(^|\.)(img_in|x_embedder)\.weight$", "a whole backbone"),
)
