"""Organisations and their tokens."""
