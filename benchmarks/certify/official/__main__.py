"""Runs one job. The last line on stderr says why it failed."""

from __future__ import annotations

import sys
import traceback

from benchmarks.certify.official.harness import run

if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - of code that is not ours
        traceback.print_exc()
        text = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {text}" if text else type(error).__name__)
