"""Curation's claims of speed: exact gray measures, guards against a bare decoder, header-only filtering, Ray
against local workers, peers.

    python -m benchmarks.curation [--python PEER/bin/python]...

The options are those of `peers.py`.
"""

from __future__ import annotations

from benchmarks.claims import conclude


def main(arguments: list[str] | None = None) -> None:
    """Print the numbers of each part and whether each claim holds; exit code 1 if one does not."""
    from benchmarks.curation import engines, gray_pass, guards, peers

    options = peers.options([] if arguments is None else arguments)
    found = gray_pass.claims()
    for claim in engines.CLAIMS:
        measured = claim()
        found[f"{measured.text}: {measured.measured}"] = measured.holds
    found |= guards.claims(guards.options([]))
    found |= peers.claims(options)
    conclude(found)
