"""Commands of a site's operator."""
