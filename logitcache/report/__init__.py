"""HTML reports about caches, and SVG figures of runs. Nothing else depends on this package."""

from logitcache.report.page import comparison_html, report_html, samples_with_images
from logitcache.report.pictures import sample_images
from logitcache.report.runs import draw_runs
from logitcache.report.write import refuse_report, write_comparison, write_report

__all__ = [
    "comparison_html",
    "draw_runs",
    "refuse_report",
    "report_html",
    "sample_images",
    "samples_with_images",
    "write_comparison",
    "write_report",
]
