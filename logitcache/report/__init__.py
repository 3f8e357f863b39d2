"""What is in a cache, and what became of runs, as pictures: one page of HTML, or SVG. Nothing here is needed to compute it."""

from logitcache.report.page import comparison_html, report_html, shown_samples
from logitcache.report.pictures import sample_images
from logitcache.report.runs import draw_runs
from logitcache.report.write import refuse_report, write_comparison, write_report

__all__ = [
    "comparison_html",
    "draw_runs",
    "refuse_report",
    "report_html",
    "sample_images",
    "shown_samples",
    "write_comparison",
    "write_report",
]
