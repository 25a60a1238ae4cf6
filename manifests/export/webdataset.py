"""WebDataset: tar archives in which the files of a sample have one key and follow one another."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from uhr.base.files import EarlyWrites, atomic
from uhr.manifests.export.base import Entry, Format, Sample, Shard

_COPIED = 16 << 20
"""Bytes that are copied into a tar at once; 16 KB by default."""


class WebDataset(Format):
    """A tar per shard. The key is the sample id; the files are the image, `txt` (the caption, also an empty
    one) and `json` (the row without nulls).

    All images of a shard have one extension, which `datasets.load_dataset("webdataset")` needs. Headers have
    no times and owners, so that the same samples give the same bytes.
    """

    name = "webdataset"
    one_extension = True

    def paths(self, shard: Shard) -> str:
        return f"{shard.name}.tar"

    def write(self, out: Path, shard: Shard, samples: Iterable[Sample]) -> Iterator[Entry]:
        path = self.paths(shard)
        with (
            atomic(out / path) as temporary,
            open(temporary, "wb") as file,
            EarlyWrites(file.fileno()) as writes,
            tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPIED) as tar,
        ):
            for sample in samples:
                for extension, data in (
                    (sample.extension, sample.data),
                    ("txt", sample.caption.encode()),
                    ("json", sample.json().encode()),
                ):
                    member = tarfile.TarInfo(f"{sample.id}.{extension}")
                    member.size = len(data)
                    member.mode = 0o644
                    tar.addfile(member, io.BytesIO(data))
                writes.grown(tar.offset)
                yield Entry(path, shard.split, "", {})  # there is no index
