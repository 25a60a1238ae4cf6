"""Folders of image files, as image viewers and other trainers read them: each adds its own index."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.files import atomic, write_json
from uhr.manifests.export.base import SPLIT_NAME, Entry, Format, Sample, Shard, whole_folder


class _Folders(Format):
    """A folder per shard; an image's file is named by its sample id. `captions` adds `ID.txt` to each."""

    captions = True

    def paths(self, shard: Shard) -> str:
        return f"{shard.split}/{shard.number:05d}"

    def write(self, out: Path, shard: Shard, samples: Iterable[Sample]) -> Iterator[Entry]:
        path = self.paths(shard)
        with whole_folder(out / path) as folder:
            for sample in samples:
                (folder / f"{sample.id}.{sample.extension}").write_bytes(sample.data)
                if self.captions:
                    (folder / f"{sample.id}.txt").write_text(sample.caption, encoding="utf-8")
                file = f"{path}/{sample.id}.{sample.extension}"
                yield Entry(file, shard.split, sample.caption, sample.facts())


class Pairs(_Folders):
    """Image and text files, `ID.jpg` and `ID.txt`, and nothing else: for ai-toolkit and the like."""

    name = "pairs"
    upright = True


class ImageFolder(_Folders):
    """Image files as they were found, and `metadata.jsonl`, for `datasets.load_dataset("imagefolder")`.

    A line has `file_name`, `text` (the caption) and the row without nulls. Columns of these two names are
    left out.
    """

    name = "folder"
    captions = False

    def finish(self, out: Path, entries: Iterable[Entry], splits: Mapping[str, int], home: Path) -> None:
        # one index per split, beside its images, where the reader looks for it
        with _Lines(out) as lines:
            for entry in entries:
                name = entry.file.removeprefix(f"{entry.split}/")
                facts = {k: v for k, v in entry.facts.items() if k not in ("file_name", "text")}
                lines.add(
                    f"{entry.split}/metadata.jsonl", {"file_name": name, "text": entry.caption, **facts}
                )


class _Lines(contextlib.ExitStack):
    """Writes lines of JSON to several files below `out`, each of which gets its name at the end."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out = out
        self._open: dict[str, Any] = {}

    def add(self, path: str, value: Mapping[str, Any]) -> None:
        if path not in self._open:
            temporary = self.enter_context(atomic(self._out / path))
            self._open[path] = self.enter_context(temporary.open("w", encoding="utf-8"))
        self._open[path].write(json.dumps(value, ensure_ascii=False) + "\n")


class _Indexed(_Folders):
    """A folder for a trainer that is configured by paths: absolute ones, or for an export in an object store
    relative ones, for a trainer that is started in the copy of the prefix.
    """

    upright = True
    split_names = rf"(?!export$){SPLIT_NAME}"  # `SPLIT.json` is beside `export.json`
    needs = ("width", "height")
    absolute = True


class Kohya(_Indexed):
    """For kohya's sd-scripts: images, `SPLIT.json` (captions and sizes by path) and `SPLIT.toml`.

    `--dataset_config OUT/train.toml` trains on it. The lines of a caption are joined by spaces, as sd-scripts
    reads the first one only.
    """

    name = "kohya"

    def write(self, out: Path, shard: Shard, samples: Iterable[Sample]) -> Iterator[Entry]:
        return super().write(out, shard, (replace(s, caption=_one_line(s.caption)) for s in samples))

    def finish(self, out: Path, entries: Iterable[Entry], splits: Mapping[str, int], home: Path) -> None:
        pixels = dict.fromkeys(splits, 0)
        with contextlib.ExitStack() as opened:
            indices = {split: opened.enter_context(_JsonObject(out / f"{split}.json")) for split in splits}
            for entry in entries:
                size = [entry.facts["width"], entry.facts["height"]]
                pixels[entry.split] = max(pixels[entry.split], size[0] * size[1])
                indices[entry.split].add(
                    str(home / entry.file), {"caption": entry.caption, "image_size": size}
                )
        for split, largest in pixels.items():
            with atomic(out / f"{split}.toml") as temporary:
                temporary.write_text(_kohya_config(home, split, largest), encoding="utf-8")


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _kohya_config(home: Path, split: str, pixels: int) -> str:
    """Return a `--dataset_config` under which no image is resized: `resolution` is the side of a square, in
    steps of 64, that has the `pixels` of the largest one. Paths in the index are joined to `image_dir`.
    """
    side = 64 * math.ceil(math.sqrt(pixels) / 64)
    folder, index = (json.dumps(str(path), ensure_ascii=False) for path in (home, home / f"{split}.json"))
    return (
        "[general]\nenable_bucket = true\nbucket_no_upscale = true\n\n"
        "[[datasets]]\n# as many pixels as the largest image: lower it to train at fewer\n"
        f"resolution = {side}\nmin_bucket_reso = {min(256, side)}\nmax_bucket_reso = {side}\n\n"
        f"[[datasets.subsets]]\nimage_dir = {folder}\nmetadata_file = {index}\n"
    )


class _JsonObject(contextlib.ExitStack):
    """Writes one JSON object entry by entry, to a file that gets its name at the end."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = self.enter_context(self.enter_context(atomic(file)).open("w", encoding="utf-8"))
        self._file.write("{")
        self._separator = "\n"
        self.callback(lambda: self._file.write("\n}\n"))

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        line = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        self._file.write(f"{self._separator}  {line}")
        self._separator = ",\n"


class SimpleTuner(_Indexed):
    """For SimpleTuner: images, `SPLIT.parquet` for its `parquet` metadata backend, and `SPLIT.json`, the data
    backends that it needs: that of the images, and one for embeddings of text.

    `--data_backend_config OUT/train.json` trains on it. Images without a caption are left out by SimpleTuner.
    It refuses empty captions where no other column is named beside theirs, so the same one is.
    """

    name = "simpletuner"
    captions = False

    def finish(self, out: Path, entries: Iterable[Entry], splits: Mapping[str, int], home: Path) -> None:
        with contextlib.ExitStack() as opened:
            indices = {split: opened.enter_context(_Table(out / f"{split}.parquet")) for split in splits}
            for entry in entries:
                indices[entry.split].add(
                    {
                        "filename": entry.file.removeprefix(f"{entry.split}/"),
                        "caption": entry.caption,
                        "width": entry.facts["width"],
                        "height": entry.facts["height"],
                        "sample_id": entry.facts["sample_id"],
                        "license": entry.facts.get("license"),
                    }
                )
        for split in splits:
            name = f"{out.resolve().name}-{split}"
            images = {
                "id": name,
                "type": "local",
                "instance_data_dir": str(home / split),
                "caption_strategy": "parquet",
                "metadata_backend": "parquet",
                "cache_dir_vae": f"cache/vae/{name}",
                "parquet": {
                    "path": str(home / f"{split}.parquet"),
                    "filename_column": "filename",
                    "caption_column": "caption",
                    "fallback_caption_column": "caption",
                    "width_column": "width",
                    "height_column": "height",
                    "identifier_includes_extension": True,
                },
            }
            texts = {
                "id": f"{name}-text",
                "type": "local",
                "dataset_type": "text_embeds",
                "default": True,
                "cache_dir": f"cache/text/{name}",
            }
            write_json(out / f"{split}.json", [images, texts])


class _Table(contextlib.ExitStack):
    """Writes the rows of `_SIMPLETUNER` to a Parquet file that gets its name at the end."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._writer = self.enter_context(
            parquet.writer(self.enter_context(atomic(file)), _SIMPLETUNER, compression="zstd")
        )
        self._held: list[dict[str, Any]] = []
        self.callback(self._flush)

    def add(self, row: dict[str, Any]) -> None:
        self._held.append(row)
        if len(self._held) == _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_pylist(self._held, schema=_SIMPLETUNER))
            self._held = []


_SIMPLETUNER = pa.schema(
    [
        pa.field("filename", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sample_id", pa.string()),
        pa.field("license", pa.string()),
    ]
)

_GROUP_ROWS = 65_536
"""Rows of an index that are in memory at a time."""
