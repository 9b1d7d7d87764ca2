"""Taking away what should never have been published: the content, and every revision that held it."""
