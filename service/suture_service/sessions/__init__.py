"""Signing in with a browser: a session stands for a token until it ends."""
