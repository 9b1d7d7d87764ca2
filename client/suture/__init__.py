"""Suture: publish trained models, never data, and stitch models of several parties into one better ensemble."""
