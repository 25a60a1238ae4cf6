"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata


def installed(*packages: str, absent: str = "not installed") -> dict[str, str]:
    """Return the version of each package, in this order; `absent` for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = absent
    return found
