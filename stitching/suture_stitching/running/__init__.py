"""Devices, checkpoints, progress and the division of long work."""
