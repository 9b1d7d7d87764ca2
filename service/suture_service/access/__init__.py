"""Gated models: anyone who sees one may ask for its files, and its owner decides, for how long."""
