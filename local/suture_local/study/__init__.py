"""Parties' data, networks and every way to use them together: trained, stitched and measured side by side."""
