"""`suture site console`: what a person at the site decides and looks up, in a browser on the site's own machine.

It listens on the loopback address alone, and does no more than the commands do: the same functions, the same records.
"""
