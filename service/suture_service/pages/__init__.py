"""The hub as people see it in a browser.

What a page shows and does goes through the functions of the API's endpoints and of the rooms' services: there is no
second set of rules, and no second way to the database.
"""
