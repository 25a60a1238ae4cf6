"""The report: one self-contained HTML page about a manifest."""

from uhr.manifests.report.page import write_report

__all__ = ["write_report"]
