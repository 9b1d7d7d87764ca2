"""Portable models, stitched ensembles included, as other tools keep models: ONNX, MLflow, MONAI bundles."""
