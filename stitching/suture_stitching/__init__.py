"""The science of Suture: portable models and the stitching engine.

Importing this package does not import torch; its torch-free modules (`errors`, `documents`, `portable.format`,
`portable.metadata`) are shared with the hub, which never runs a model.
"""

from suture_stitching.moved import keep_old_names

keep_old_names()
