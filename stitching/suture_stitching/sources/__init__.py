"""Networks as others keep them: MONAI bundles, nnU-Net's results, TorchScript files, modules of well-known libraries.

    source = open_source("spleen_ct_segmentation")
    export(source.module, source.example(), "model.safetensors")

No code of a file runs: weights are read as tensors alone, a configuration may name networks of its own library and
plain values, and nothing else.
"""

from __future__ import annotations

from suture_stitching.sources.libraries import of_module, of_weights
from suture_stitching.sources.opening import open_source
from suture_stitching.sources.source import NetworkSource

__all__ = ["NetworkSource", "of_module", "of_weights", "open_source"]
