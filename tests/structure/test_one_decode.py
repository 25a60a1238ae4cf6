"""Image files of strangers are decoded in `uhr/pixels/` alone (docs/decisions/0002)."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

DECODERS = {
    "PIL.Image.open",
    "PIL.PngImagePlugin.PngImageFile",
    "PIL.JpegImagePlugin.JpegImageFile",
    "PIL.WebPImagePlugin.WebPImageFile",
    "PIL.ImageFile.Parser",
    "cv2.imread",
    "cv2.imreadmulti",
    "cv2.imdecode",
    "cv2.imdecodemulti",
    "torchvision.io.read_image",
    "torchvision.io.decode_image",
    "diffusers.utils.load_image",
    "PIL.ImageCms.ImageCmsProfile",
    "PIL.ImageCms.buildTransform",
    "PIL.ImageOps.exif_transpose",
}

EXCEPTIONS = {
    "models/generate/encoding.py": "reads the text chunks of a PNG, for the record of a sampled image",
    "train/run/monitoring/validation_grid.py": "puts images together that the run itself has written",
    "uhr/demo/run.py": "compares two images that the demo itself has just written",
    "uhr/demo/faults.py": "makes damaged files of the photographs that scikit-image installs",
    "benchmarks/duplicates.py": "decodes the JPEG variants that the benchmark has just encoded",
    "benchmarks/curation/guards.py": "the decoder alone, that guards are measured against",
    "benchmarks/curation/gray_pass.py": "the peers that the decoder is measured against",
}
"""Files outside of `uhr/pixels/` that decode something, and why that is no image of a stranger."""


def test_only_the_pixels_package_decodes_images():
    found = {str(path.relative_to(ROOT)) for path in _sources() if _calls(path) & DECODERS}
    outside = {path for path in found if not path.startswith("uhr/pixels/")}
    assert outside == EXCEPTIONS.keys(), "use uhr.pixels, or give the reason in EXCEPTIONS"
    assert found - outside, "the names of the decoders are not recognised any more"


def _sources() -> list[Path]:
    packages = ("curate", "manifests", "models", "train", "benchmarks", "uhr")
    return [file for package in packages for file in (ROOT / package).rglob("*.py")]


def _calls(path: Path) -> set[str]:
    """Full names of what a file calls, as far as its imports say."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            first, _, rest = text.partition(".")
            called.add(f"{names.get(first, first)}.{rest}".rstrip("."))
    return called


def test_only_one_module_converts_colours():
    found = {str(path.relative_to(ROOT)) for path in _sources() if "ImageCms" in _imports(path)}
    assert found == {"uhr/pixels/colour.py"}


def _imports(path: Path) -> set[str]:
    """Last parts of the names that a file imports, anywhere in it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [
        alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    ]
    return {name.rpartition(".")[2] for name in names}
