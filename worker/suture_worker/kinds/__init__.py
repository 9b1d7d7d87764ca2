"""The site's side of every kind of task: one module for each name in `suture_contract.kinds`, found by that name.

Parts of the site below this one ask `Task.side`, and import none of these modules.
"""
