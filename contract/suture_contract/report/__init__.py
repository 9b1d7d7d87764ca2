"""The party report: what a stitched ensemble is worth to each party, as a document and as a page for people."""

from suture_contract.report.build import build, describe
from suture_contract.report.html import to_html

__all__ = ["build", "describe", "to_html"]
