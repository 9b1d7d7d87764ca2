"""Where networks can be read, and what is gathered of their features in one pass."""
