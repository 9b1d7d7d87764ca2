"""Portable models: weights and an allow-listed operator graph in one safetensors file.

`format`, `graph`, `operators` and `metadata` are torch-free and shared with the hub; `export` and `runtime` need torch.
"""
