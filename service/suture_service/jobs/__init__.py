"""What parties ask for: a stitched ensemble of some models."""
