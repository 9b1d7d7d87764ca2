"""Taking in large files from Xet clients: what they send in pieces is put together and stored as an ordinary file.

Nothing is ever read through Xet; downloads are plain HTTP.
"""
