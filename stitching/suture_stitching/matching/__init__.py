"""Which places of different networks say the same thing."""
