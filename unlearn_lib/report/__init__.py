"""The report: every verdict, figure, table and number of a profile on a site that works offline."""

from unlearn_lib.report.site import write_report

__all__ = ["write_report"]
