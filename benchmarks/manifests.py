"""Manifests of millions of rows: a slice against the same query written by hand, opening, verification.

python -m benchmarks.manifests [--rows N] [--peer-rows N] [--rounds N] [--only NAME,...]

NAME: slice, open, verify, columns, peers, tar.

The manifest is generated. Each measured task is a process of its own, from start to exit, so that imports
and peak memory are its own; ways of doing the same are interleaved, and medians are compared. The slice is of
kept rows: a condition, the highest 5 % of a score, and a stratified sample, written as Parquet with all
columns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.claims import Claim
from uhr.base import parquet
from uhr.base.console import say, table
from uhr.curate.stages import example
from uhr.manifests.info import RuleInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import GROUP_ROWS, PREVIEW_SCHEMA
from uhr.manifests.schema import COLUMNS, sample_id, schema_of
from uhr.manifests.writer import Provenance, write_manifest

ROWS, PEER_ROWS = 10_000_000, 1_000_000
SHARE_OF_SAMPLE = 0.01
"""Rows of the sample as a share of the manifest's."""

ROWS_WITH_PREVIEWS, PREVIEW_BYTES = 130_000, 15_000
"""2 GB of previews, each as large as those of curation."""

MOST_TIMES_BY_HAND = 1.5
MOST_GIB = 4.0
MOST_SECONDS_TO_OPEN = 1.0
MOST_TIMES_HASHING = 1.25
LEAST_SHARE_OF_TARFILE = 0.8
MOST_TIMES_WHOLE = 1.25
MOST_BYTES_PER_ROW = 25
IMAGES, IMAGE_BYTES = 2_000, 1_000_000
WHERE = "entropy >= 5 AND megapixels >= 8"
SCORE, STRATA = "upscale_ratio", ("aspect_bucket", "license")

_IDENTITY = ("uri", "sample_id", "content_hash", "status", "reason", "error")
_TEXTS = ("caption", "source_url", "license", "aspect_bucket")
_NUMBERS = ("width", "height", "megapixels", "entropy", "flat_fraction", "luma_mean", "laplacian_var", SCORE)
_STAGES = ("header", "geometry", "flatness", "entropy", "exposure", "sharpness", "native_resolution")
_NULL = ("parent_id", "box", "source_version", "author", "source_meta")


@dataclass(frozen=True)
class Cost:
    """What a process took: wall and CPU seconds, and its largest resident memory in GiB."""

    seconds: float
    cpu: float
    gib: float


def generate(out: Path, rows: int, previews: Iterable[pa.RecordBatch] | None = None) -> Manifest:
    """Write a manifest of `rows` rows: 60 % kept, 30 % rejected, 10 % failed."""
    known = COLUMNS | {c.name: c for stage in _STAGES for c in example(stage).adds}
    schema = schema_of(known[name] for name in (*_IDENTITY, *_TEXTS, *_NUMBERS, *_NULL))
    rules = [RuleInfo(name="entropy", where="entropy >= 4", seen=rows, rejected=rows // 2)]
    provenance = Provenance(root="/nowhere", operation={"kind": "curate", "rows": rows}, rules=rules)
    return write_manifest(out, schema, _generated(schema, rows), provenance, previews)


def _generated(schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    connection = duckdb.connect()
    for start in range(0, rows, GROUP_ROWS):
        stop = min(rows, start + GROUP_ROWS)
        batch = connection.sql(
            f"""WITH numbered AS (
                    SELECT n, hash(n) % 10 AS fate, hash(n + 7) % 1000000 / 1e6 AS u,
                           hash(n + 13) % 1000000 / 1e6 AS v, format('{{:09d}}.jpg', n) AS uri
                    FROM range({start}, {stop}) AS r(n))
                SELECT uri, sha256(uri)[1:32] AS sample_id, sha256(uri || 'bytes') AS content_hash,
                    CASE WHEN fate < 6 THEN 'kept' WHEN fate < 9 THEN 'rejected' ELSE 'failed' END AS status,
                    CASE WHEN fate < 6 THEN NULL WHEN fate < 9 THEN 'entropy' ELSE 'not an image'
                         END AS reason,
                    CASE WHEN fate = 9 THEN 'decode: no known image format' END AS error,
                    'a photograph of ' || md5(uri) || ' beside ' || md5(uri || 'x') AS caption,
                    'https://example.org/' || sha256(uri || 'url') AS source_url,
                    CASE WHEN v < 0.7 THEN 'CC0-1.0' WHEN v < 0.95 THEN 'CC-BY-4.0' END AS license,
                    (2000 + 6000 * u)::INTEGER AS width, (2000 + 4000 * v)::INTEGER AS height,
                    (2000 + 6000 * u) * (2000 + 4000 * v) / 1e6 AS megapixels,
                    CASE WHEN u < 0.5 THEN '3:2' WHEN u < 0.8 THEN '16:9' WHEN u < 0.99 THEN '1:1'
                         ELSE '21:9' END AS aspect_bucket,
                    4 + 4 * v AS entropy, u * v AS flat_fraction, 255 * u AS luma_mean,
                    1000 * v AS laplacian_var, 1 + u + v AS upscale_ratio,
                    NULL AS parent_id, NULL AS box, '1-1' AS source_version, NULL AS author,
                    NULL AS source_meta
                FROM numbered ORDER BY uri"""
        ).to_arrow_table()
        yield from batch.select(schema.names).cast(schema).combine_chunks().to_batches()


def by_hand(parts: list[str], out: str, sample: int) -> str:
    """Return the slice as one query for DuckDB, as somebody would write it who knows the manifest."""
    strata, files = ", ".join(STRATA), ", ".join(f"'{part}'" for part in parts)
    key = "('0x' || sha256('0:sample:' || sample_id)[1:16])::UBIGINT, sample_id"
    return f"""COPY (
        WITH chosen AS (
            SELECT * FROM read_parquet([{files}]) WHERE status = 'kept' AND {WHERE}),
        best AS (
            SELECT * FROM chosen
            QUALIFY row_number() OVER (ORDER BY {SCORE} DESC, sample_id)
                <= floor((SELECT count({SCORE}) FROM chosen) * 0.05 + 0.5)),
        placed AS (
            SELECT *, (row_number() OVER (PARTITION BY {strata} ORDER BY {key}) - 0.5)::DOUBLE
                / count(*) OVER (PARTITION BY {strata}) AS place
            FROM best)
        SELECT * EXCLUDE (place) FROM (SELECT * FROM placed ORDER BY place, {key} LIMIT {sample}) ORDER BY uri
    ) TO '{out}' (FORMAT parquet, COMPRESSION zstd)"""


def _slice_command(source: Path, out: Path, sample: int) -> list[str]:
    options = ["--where", WHERE, "--top", f"{SCORE}=5%", "--stratify", ",".join(STRATA)]
    return [
        *(sys.executable, "-m", "uhr", "manifest", "slice", str(source), *options),
        *("--sample", str(sample), "--out", str(out)),
    ]


_PANDAS = f"""
import sys, pandas, pyarrow.parquet as pq
parts, out, sample = sys.argv[3:], sys.argv[1], int(sys.argv[2])
frame = pandas.concat([pandas.read_parquet(part) for part in parts])
frame = frame[frame.status == "kept"].query("{WHERE.replace("AND", "and")}")
frame = frame.sort_values(["{SCORE}", "sample_id"], ascending=[False, True]).head(round(len(frame) * 0.05))
frame = frame.groupby({list(STRATA)!r}, dropna=False, group_keys=False).sample(
    frac=sample / len(frame), random_state=0)
frame.sort_values("uri").to_parquet(out, compression="zstd")
"""

_DATASETS = f"""
import sys, datasets
parts, out, sample = sys.argv[3:], sys.argv[1], int(sys.argv[2])
datasets.config.HF_DATASETS_CACHE = out + ".cache"
rows = datasets.load_dataset("parquet", data_files=parts, split="train", cache_dir=out + ".cache")
rows = rows.filter(lambda status, entropy, megapixels: [
        s == "kept" and e is not None and e >= 5 and m >= 8 for s, e, m in zip(status, entropy, megapixels)
    ], input_columns=["status", "entropy", "megapixels"], batched=True)
rows = rows.sort("{SCORE}", reverse=True)
rows = rows.select(range(round(len(rows) * 0.05))).shuffle(seed=0).select(range(sample))
rows.to_parquet(out)
"""


def slice_against_hand(manifest: Manifest, scratch: Path, rounds: int) -> list[Claim]:
    """Time the slice and the query by hand, whole processes, on the same rows; they select the same."""
    sample = int(manifest.info.counts["rows"] * SHARE_OF_SAMPLE)
    parts = [str(manifest.path / part.path) for part in manifest.info.parts]
    costs: dict[str, list[Cost]] = {"uhr": [], "by hand": []}
    for number in range(rounds):
        out, file = scratch / f"slice{number}", scratch / f"hand{number}.parquet"
        costs["uhr"].append(_run(_slice_command(manifest.path, out, sample)))
        query = f"import duckdb; duckdb.connect().execute({by_hand(parts, str(file), sample)!r})"
        costs["by hand"].append(_run([sys.executable, "-c", query]))
        ids = Manifest.open(out).table(["sample_id"])["sample_id"]
        assert ids.equals(parquet.read(file, ["sample_id"])["sample_id"]), "other rows than by hand"
        file.unlink()
    ours, hand = _median(costs["uhr"]), _median(costs["by hand"])
    ratio = ours.seconds / hand.seconds
    rows = f"{manifest.info.counts['rows']:,} rows"
    return [
        Claim(
            f"where, top 5 % and a stratified sample of {rows}: at most {MOST_TIMES_BY_HAND} of by hand",
            f"{ratio:.2f} ({ours.seconds:.1f}, {hand.seconds:.1f} s; CPU {ours.cpu:.1f}, {hand.cpu:.1f} s)",
            ratio <= MOST_TIMES_BY_HAND,
        ),
        Claim(
            f"in at most {MOST_GIB:g} GiB", f"{ours.gib:.2f} ({hand.gib:.2f} by hand)", ours.gib <= MOST_GIB
        ),
    ]


def opening(manifest: Manifest, rounds: int) -> Claim:
    """Time a process of its own that opens the manifest and counts its kept rows from the parts."""
    code = f"""
import sys, time
start = time.perf_counter()
from uhr.manifests.manifest import Manifest
opened = Manifest.open({str(manifest.path)!r})
with opened.connect() as connection:
    connection.sql("SELECT count(*) FROM samples WHERE status = 'kept'").fetchall()
print(time.perf_counter() - start)
"""
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    ]
    seconds = statistics.median(taken)
    text = f"opening and counting in less than {MOST_SECONDS_TO_OPEN:g} s, imports included"
    return Claim(text, f"{seconds:.2f} s", seconds < MOST_SECONDS_TO_OPEN)


def with_previews(out: Path, rows: int = ROWS_WITH_PREVIEWS) -> Manifest:
    """Write a manifest with a preview of each row: random bytes, which do not compress, as those of JPEG."""

    def previews() -> Iterator[pa.RecordBatch]:
        drawn = np.random.default_rng(0)
        for start in range(0, rows, 1000):
            ids = [sample_id(f"{number:09d}.jpg") for number in range(start, min(rows, start + 1000))]
            shown = [drawn.bytes(PREVIEW_BYTES) for _ in ids]
            sizes = [np.full(len(ids), side, np.int32) for side in (320, 240)]
            yield pa.RecordBatch.from_arrays([pa.array(ids), pa.array(shown), *sizes], schema=PREVIEW_SCHEMA)

    return generate(out, rows, previews())


def verifying(manifest: Manifest, rounds: int) -> list[Claim]:
    """Time `verify` against hashing the same files in one thread, in a thread per core, and with the ids,
    which `verify` must hash as well; interleaved.
    """
    read = "import sys; from uhr.base.files import sha256_file; from pathlib import Path\n"
    hashing = f"{read}for name in sys.argv[1:]: sha256_file(Path(name))"
    threads = f"{read}from concurrent.futures import ThreadPoolExecutor\n"
    threads += "with ThreadPoolExecutor() as pool: list(pool.map(sha256_file, map(Path, sys.argv[1:])))"
    ids = "import duckdb; rows = [name for name in sys.argv[1:] if '/samples/' in name]\n"
    ids += "duckdb.connect().execute('SELECT max(sha256(uri)) FROM read_parquet($1)', [rows]).fetchall()"
    files = [str(manifest.path / part.path) for part in (*manifest.info.parts, *manifest.info.previews)]
    codes = {"": hashing, ", in a thread per core": threads, ", and of the ids": f"{threads}\n{ids}"}
    ours: list[Cost] = []
    others: dict[str, list[Cost]] = {text: [] for text in codes}
    for _ in range(rounds):
        ours.append(_run([sys.executable, "-m", "uhr", "manifest", "verify", str(manifest.path)]))
        for text, code in codes.items():
            others[text].append(_run([sys.executable, "-c", code, *files]))
    one, claims = _median(ours), []
    size = sum(Path(file).stat().st_size for file in files) / 1e9
    rows = f"{manifest.info.counts['rows']:,} rows, {size:.1f} GB"
    rows += " of which are mostly previews" if manifest.info.previews else ""
    for text, costs in others.items():
        other = _median(costs)
        ratio = one.seconds / other.seconds
        measured = f"{ratio:.2f} ({one.seconds:.1f} s, {other.seconds:.1f} s; "
        measured += f"CPU {one.cpu:.1f}, {other.cpu:.1f} s)"
        aim = f"verify of {rows}: at most {MOST_TIMES_HASHING} of hashing" if not text else "the same"
        claims.append(Claim(aim + text, measured, None if text else ratio <= MOST_TIMES_HASHING))
    return claims


_TARFILE = """
import io, json, sys, tarfile
from pathlib import Path
folder, out = Path(sys.argv[1]), sys.argv[2]
with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for name, content in ((file.name, data), (file.stem + ".txt", b""), (file.stem + ".json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
"""


def exporting(scratch: Path, rounds: int) -> Claim:
    """Time the export to WebDataset against plain tarfile writing of the same files, whole processes. The
    export also checks the hash of each file.
    """
    import hashlib

    folder, drawn = scratch / "images", np.random.default_rng(0)
    folder.mkdir()
    head = bytes.fromhex("ffd8ffc0000b080bb80fa001011100ffda0008010100003f00")
    rows = []
    for number in range(IMAGES):
        name = f"{number:05d}.jpg"
        data = head + drawn.bytes(IMAGE_BYTES).replace(b"\xff", b"\xfe") + b"\xff\xd9"
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(
            {
                "uri": name,
                "sample_id": sample_id(name),
                "status": "kept",
                "content_hash": digest,
                "format": "JPEG",
                "file_size": len(data),
            }
        )
    schema = schema_of(c for c in example("header").adds if c.name in ("format", "file_size"))
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    provenance = Provenance(root=folder, operation={"kind": "curate"})
    made = write_manifest(scratch / "exported", schema, [batch], provenance)
    ours, plain = [], []
    for number in range(rounds):
        out = scratch / f"tars{number}"
        command = [sys.executable, "-m", "uhr", "manifest", "export", str(made.path), "--to", "webdataset"]
        ours.append(_run([*command, "--out", str(out)]))
        plain.append(_run([sys.executable, "-c", _TARFILE, str(folder), str(scratch / f"plain{number}.tar")]))
        shutil.rmtree(out)
        (scratch / f"plain{number}.tar").unlink()
    share = _median(plain).seconds / _median(ours).seconds
    size = f"{IMAGES:,} images of {IMAGE_BYTES / 1e6:g} MB"
    return Claim(
        f"WebDataset export of {size}: at least {LEAST_SHARE_OF_TARFILE:.0%} of the speed of tarfile",
        f"{share:.0%} ({_median(ours).seconds:.1f} s, {_median(plain).seconds:.1f} s; "
        f"CPU {_median(ours).cpu:.1f}, {_median(plain).cpu:.1f} s)",
        share >= LEAST_SHARE_OF_TARFILE,
    )


_QUERY = """
import sys, time
from uhr.manifests.manifest import Manifest
opened = Manifest.open(sys.argv[1])
start = time.perf_counter()
with opened.connect() as connection:
    connection.sql("SELECT split, count(*), avg(luma_mean), max(caption) FROM samples "
                   "WHERE entropy >= 5 AND split IS NOT NULL GROUP BY split").fetchall()
print(time.perf_counter() - start)
"""


def columns(manifest: Manifest, scratch: Path, rounds: int) -> list[Claim]:
    """Time adding a column to all rows by reference against writing all rows, whole processes; and a query of
    this column and the parent's, opening apart. All are interleaved.
    """
    split = ["--status", "any", "--split", "train=0.98,val=0.02"]
    call = [sys.executable, "-m", "uhr", "manifest", "slice", str(manifest.path), *split]
    costs: dict[str, list[Cost]] = {"none": [], "rows": []}
    taken: dict[str, list[float]] = {"none": [], "rows": []}
    size: dict[str, int] = {}
    for number in range(rounds):
        for what in costs:
            out = scratch / f"{what}-{number}"
            costs[what].append(_run([*call, "--materialise", what, "--out", str(out)]))
            size[what] = sum(part.bytes for part in Manifest.open(out).info.parts)
    for number in range(5 * rounds):
        for what in sorted(taken, reverse=number % 2 == 0):
            query = [sys.executable, "-c", _QUERY, str(scratch / f"{what}-0")]
            taken[what].append(
                float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
            )
    none, rows = _median(costs["none"]), _median(costs["rows"])
    ours, whole = statistics.median(taken["none"]), statistics.median(taken["rows"])
    count = manifest.info.counts["rows"]
    return [
        Claim(
            f"a split of all {count:,} rows by reference, in less time than with all columns",
            f"{none.seconds / rows.seconds:.2f} ({none.seconds:.1f} s, {rows.seconds:.1f} s; "
            f"CPU {none.cpu:.1f}, {rows.cpu:.1f} s)",
            none.seconds < rows.seconds,
        ),
        Claim(
            f"in at most {MOST_BYTES_PER_ROW} bytes per row",
            f"{size['none'] / count:.1f} ({size['none'] / 1e6:.1f} MB, {size['rows'] / 1e6:.1f} MB)",
            size["none"] <= MOST_BYTES_PER_ROW * count,
        ),
        Claim(
            f"a query of the split and of others takes at most {MOST_TIMES_WHOLE} of that with all columns",
            f"{ours / whole:.2f} ({ours:.2f} s, {whole:.2f} s)",
            ours <= MOST_TIMES_WHOLE * whole,
        ),
    ]


def peers(manifest: Manifest, scratch: Path, rounds: int) -> list[Claim]:
    """Time the slice against the same query with pandas and with `datasets`, whole processes. Those with
    `datasets` take long, and are far from ours: it has half of the rounds.
    """
    sample = int(manifest.info.counts["rows"] * SHARE_OF_SAMPLE)
    parts = [str(manifest.path / part.path) for part in manifest.info.parts]
    costs: dict[str, list[Cost]] = {"uhr": [], "pandas": [], "datasets": []}
    for number in range(2 * rounds):
        costs["uhr"].append(_run(_slice_command(manifest.path, scratch / f"p{number}", sample)))
        for name, code in (("pandas", _PANDAS), ("datasets", _DATASETS))[: 2 - number % 2]:
            file = str(scratch / f"{name}{number}.parquet")
            costs[name].append(_run([sys.executable, "-c", code, file, str(sample), *parts]))
    ours, claims = _median(costs.pop("uhr")), []
    for name, found in costs.items():
        other = _median(found)
        text = f"the same of {manifest.info.counts['rows']:,} rows, in less time than {name}"
        ratio = ours.seconds / other.seconds
        measured = (
            f"{ratio:.2f} ({ours.seconds:.1f} s, {other.seconds:.1f} s; "
            f"CPU {ours.cpu:.1f}, {other.cpu:.1f} s; {ours.gib:.2f}, {other.gib:.2f} GiB)"
        )
        claims.append(Claim(text, measured, ratio < 1))
    return claims


def _run(command: list[str]) -> Cost:
    """Run a command to its end. Raises RuntimeError, with its output, if it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{command[:5]}: {output.read().decode(errors='replace')[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def _median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("seconds", "cpu", "gib")))


def main(arguments: list[str] | None = None) -> None:
    """Print what each claim came to. Exit code 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manifests")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--peer-rows", type=int, default=PEER_ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="slice,open,verify,columns,peers,tar")
    given = parser.parse_args([] if arguments is None else arguments)
    only = set(given.only.split(","))
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if only & {"slice", "open", "verify"}:
            manifest = generate(scratch / "manifest", given.rows)
            claims += slice_against_hand(manifest, scratch, given.rounds) if "slice" in only else []
            claims += [opening(manifest, given.rounds)] if "open" in only else []
            claims += verifying(manifest, given.rounds) if "verify" in only else []
        if "verify" in only:
            claims += verifying(with_previews(scratch / "previews"), given.rounds)
        claims += [exporting(scratch, given.rounds)] if "tar" in only else []
        if only & {"columns", "peers"}:
            smaller = generate(scratch / "smaller", given.peer_rows)
            claims += columns(smaller, scratch, given.rounds) if "columns" in only else []
            claims += peers(smaller, scratch, given.rounds) if "peers" in only else []
    table(("claim", "measured", "holds"), [(c.text, c.measured, c.holds) for c in claims])
    say(json.dumps({"duckdb": duckdb.__version__, "pyarrow": pa.__version__}))
    if any(claim.holds is False for claim in claims):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
