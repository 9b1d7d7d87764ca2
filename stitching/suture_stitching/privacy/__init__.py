"""Noise: how a fit and an evaluation stay differentially private for one patient, whatever the models do."""
