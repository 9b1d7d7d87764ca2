"""Installations of a party beside its data."""
