"""The report of a run: what was asked, what came out, and the page that shows it."""

from franca.eval.report.build import build_report

__all__ = ["build_report"]
