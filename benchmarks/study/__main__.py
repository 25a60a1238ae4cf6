"""Runs the study and writes its table: `python -m benchmarks.study` (`make study`)."""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.study import components, detail, guidance
from benchmarks.study.training import interval
from uhr.base.console import say
from uhr.base.files import atomic

RESULTS = Path(__file__).parents[1] / "results" / "study.md"


@dataclass(frozen=True)
class Row:
    """One line of the table. holds: whether a claim is kept; None where nothing is claimed."""

    what: str
    value: str
    holds: bool | None = None


def recovery_rows(seeds: Sequence[int], steps: int) -> list[Row]:
    """Reverse distillation against the known field."""
    found = [guidance.recovery(steps, seed) for seed in seeds]
    return [
        Row(
            "student at guidance input 1, which it never saw: RMS error", interval([r.student for r in found])
        ),
        Row(
            "after reverse distillation: RMS error of the conditional field",
            interval([r.recovered for r in found]),
        ),
        Row(
            "times smaller (aim: 5)",
            interval([r.ratio for r in found]),
            statistics.fmean(r.ratio for r in found) >= 5,
        ),
        Row("student on the empty prompt: RMS error", interval([r.student_null for r in found])),
        Row(
            "after reverse distillation: RMS error of the unconditional field (aim: no larger)",
            interval([r.recovered_null for r in found]),
            statistics.fmean(r.recovered_null - r.student_null for r in found) <= 0,
        ),
    ]


def drift_rows(seeds: Sequence[int], steps: int) -> list[Row]:
    """Fine-tuning at the distilled guidance against guidance 1."""
    found = [guidance.drift(steps, seed) for seed in seeds]
    at_baked, at_one = (
        statistics.fmean(getattr(d, n) for d in found) for n in ("tuned_at_baked", "tuned_at_one")
    )
    return [
        Row(f"student at guidance input {guidance.BAKED}: RMS error", interval([d.student for d in found])),
        Row(f"after flow matching at {guidance.BAKED}", interval([d.tuned_at_baked for d in found])),
        Row(
            "after flow matching at 1 (aim: under half of that)",
            interval([d.tuned_at_one for d in found]),
            at_one < at_baked / 2,
        ),
    ]


def component_rows(seeds: Sequence[int], steps: int) -> list[Row]:
    """Adapters on right and on partly wrong captions."""
    rows = []
    bases = {seed: components.base_model(3 * steps, seed) for seed in seeds}
    for wrong in (0.0, 0.5):
        found = {}
        for name, part in components.PARTS.items():
            found[name] = each = components.over_seeds(bases, part, wrong, steps)
            moved = interval([one.before for one in each])
            rows.append(
                Row(
                    f"{name}, {wrong:.0%} of classes wrong: held-out loss (rate {each[0].rate:g})",
                    f"{interval([one.loss for one in each])}; on the images before {moved}",
                )
            )
        for other in ("major components", "LoRA"):
            pairs = zip(found["minor components"], found[other], strict=True)
            ratios = [minor.loss / one.loss for minor, one in pairs]
            rows.append(Row(f"minor components over {other}, {wrong:.0%} wrong: ratio", interval(ratios)))
    return rows


def detail_rows(seeds: Sequence[int], steps: int) -> list[Row]:
    """Detail error of the wavelet loss over that of the square."""
    runs = [detail.compared(steps, seed) for seed in seeds]
    return [
        Row(
            f"SNR-Huber-wavelet over square at sigma {levels[0].sigma}: RMS error of detail bands, ratio",
            f"{interval([each.ratio for each in levels])}; low band "
            + interval([each.low["snr-huber-wavelet"] / each.low["flow"] for each in levels]),
        )
        for levels in zip(*runs, strict=True)
    ]


PARTS: dict[str, tuple[str, Callable[[Sequence[int], int], list[Row]], int]] = {
    "recovery": ("Reverse distillation recovers the field without guidance", recovery_rows, 4000),
    "drift": ("Fine-tuning at the distilled guidance unlearns it", drift_rows, 4000),
    "components": ("Minor and major components under wrong captions", component_rows, 200),
    "detail": ("Robust wavelet loss and fine detail", detail_rows, 800),
}
"""Title, function and number of steps of each part."""


def main() -> None:
    """Run the parts, print and write the table; exit code 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file to write")
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - PARTS.keys())
    if unknown:
        parser.error(f"unknown part {unknown[0]}: known are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    failed = False
    for name in given.parts or PARTS:
        title, function, steps = PARTS[name]
        rows = function(range(given.seeds), steps)
        section = _section(rows, given.seeds)
        write_section(given.out, title, section)
        say(f"## {title}\n{section}")
        failed |= any(row.holds is False for row in rows)
    raise SystemExit(1 if failed else 0)


def _section(rows: Sequence[Row], seeds: int) -> str:
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [f"\n{datetime.date.today()}, {seeds} seeds, {platform.machine()}, one thread, {versions}.", ""]
    lines += ["| what | value | holds |", "|--|--|--|"]
    for row in rows:
        holds = "" if row.holds is None else "yes" if row.holds else "no"
        lines.append(f"| {row.what} | {row.value} | {holds} |")
    return "\n".join([*lines, ""])


HEAD = """# Study

`python -m benchmarks.study PART...` (`make study` for all) makes this file, section by section. Mean and 95 %
interval over the seeds.
"""


def write_section(file: Path, title: str, section: str) -> None:
    """Write one section of the table; sections of other parts stay as they are."""
    known = [entry[0] for entry in PARTS.values()]
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    _, *old = f"\n{before}".split("\n## ")
    sections = {head.partition("\n")[0]: head.partition("\n")[2].strip("\n") for head in old}
    sections[title] = section.strip("\n")
    ordered = sorted(sections, key=lambda name: known.index(name) if name in known else len(known))
    text = "\n".join([HEAD, *(f"## {name}\n\n{sections[name]}\n" for name in ordered)])
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
