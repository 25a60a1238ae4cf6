"""Name a file that is neither safetensors nor GGUF, by its first bytes, suffix and content."""

from __future__ import annotations

import zipfile
from pathlib import Path

from uhr.base.errors import UserError, one_line

SAFETENSORS = (".safetensors", ".sft")
"""Suffixes of safetensors files; BFL published FLUX.1 as flux1-dev.sft and ae.sft."""

DOWNLOAD_AGAIN = "download it again"
CONVERT_PICKLE = "it can run code, so it is never opened: take the .safetensors file, or convert it"
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_BY_MAGIC = (
    (b"\x89HDF", "is an HDF5 file", "take the .safetensors file"),
    (b"ftrt", "is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    (b"\x1f\x8b", "is a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it"),
    (b"Rar!", "is a RAR archive", "unpack it"),
    (b"\xfd7zXZ", "is an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive", "unpack it"),
    (b"\x93NUMPY", "is a NumPy array", "take the .safetensors file"),
)

_BY_SUFFIX = {
    ".onnx": ("is an ONNX model", "take the .safetensors file that it was made from"),
    ".engine": (
        "is a TensorRT engine, built for one GPU",
        "take the .safetensors file that it was built from",
    ),
    ".plan": ("is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    ".trt": ("is a TensorRT engine, built for one GPU", "take the .safetensors file that it was built from"),
    ".msgpack": ("is a Flax file", "take the .safetensors file"),
    ".tflite": ("is a TensorFlow Lite model", "take the .safetensors file"),
    ".mlmodel": ("is a Core ML model", "take the .safetensors file"),
    ".part": ("is a download that is not finished", DOWNLOAD_AGAIN),
    ".crdownload": ("is a download that is not finished", DOWNLOAD_AGAIN),
    ".incomplete": ("is a download that is not finished", DOWNLOAD_AGAIN),
    ".aria2": ("is the state of a download that is not finished", DOWNLOAD_AGAIN),
}


def not_weights(file: Path, head: bytes) -> UserError:
    """Return the error for a file that is neither safetensors nor GGUF."""
    what, fix = _what_and_fix(file, head)
    return UserError(f"{file} {what}", fix)


def _what_and_fix(file: Path, head: bytes) -> tuple[str, str]:
    """Return what a file is that is neither safetensors nor GGUF, and the fix."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return "is empty (0 bytes)", DOWNLOAD_AGAIN
    if head.startswith(LFS_POINTER):
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
            ("is a PyTorch pickle", CONVERT_PICKLE) if _is_torch(file) else ("is a zip archive", "unpack it")
        )
    if (head[:1] == b"\x80" and 2 <= head[1] <= 5) or head[257:262] == b"ustar":
        return ("is a pickle", CONVERT_PICKLE) if head[:1] == b"\x80" else ("is a tar archive", "unpack it")
    if file.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[file.suffix.lower()]
    if file.suffix.lower() in PICKLE_SUFFIXES:
        return "is a pickle by its name", CONVERT_PICKLE
    if not any(head):
        return "begins with zeros, as a download that is not finished does", DOWNLOAD_AGAIN
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"is text, not weights ({one_line(head[:60].decode())})", DOWNLOAD_AGAIN
    return f"is not a safetensors file or GGUF (it begins with {head[:8].hex(' ')})", DOWNLOAD_AGAIN


def _json(file: Path) -> tuple[str, str]:
    folder = file.parent
    if file.name == "model_index.json":
        return "is the index of a whole model", f"name its folder, {folder}"
    if file.name.endswith(".index.json"):
        return "is the index of sharded weights", f"name the folder with the shards, {folder}"
    if file.suffix == ".json":
        return "is a configuration, not weights", f"name its folder, {folder}, or a .safetensors file"
    return "is JSON, not weights, such as a server's error message", DOWNLOAD_AGAIN


def _is_torch(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        # truncated: only the suffix is left to decide
        return file.suffix.lower() in (*PICKLE_SUFFIXES, *SAFETENSORS)
