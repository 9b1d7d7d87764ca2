"""The hub: parties publish models here, ask for stitched ensembles, and their sites lease the work. Never sees data."""
