"""Members, and one graph out of several of them."""
