"""Files by the digest of their content: the store, uploads into it and downloads out of it."""

from suture_service.storage.blobs import BlobStore, Upload, open_store

__all__ = ["BlobStore", "Upload", "open_store"]
