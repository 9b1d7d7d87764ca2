"""Commands of a hub's operator."""
