"""The party report: what a stitched ensemble is worth to each party, as a document and as a page for people."""

from suture_contract.report.build import build, describe

__all__ = ["build", "describe"]
