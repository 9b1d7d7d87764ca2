"""Parties' public keys, signatures over models, and what is flagged because a key or a revision was taken back."""
