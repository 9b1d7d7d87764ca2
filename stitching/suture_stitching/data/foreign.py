"""Formats that are not read, by how a file is called or what it holds: what each is, and what to make of it."""

from __future__ import annotations

from typing import Any

_PARQUET = "save it as Parquet: to_parquet of pandas"
_SIGNALS = "read it by a library of its own, and save each signal with numpy.save, in a folder per class"
_KNOWN = (
    (
        ".pt .pth .pkl .pickle .joblib",
        "a pickle, which could run foreign code and is never opened",
        "save the arrays with numpy.savez(path, images=..., labels=...)",
    ),
    (".xls", "an old Excel file", "save it as .xlsx or CSV"),
    (".ods", "an OpenDocument table", "save it as .xlsx or CSV"),
    (".feather .arrow .ipc", "an Arrow file", _PARQUET),
    (".orc .avro", "a table of another program", _PARQUET),
    (".jsonl .ndjson", "JSON in lines", "save a list of files as CSV with path,label; a table as CSV or Parquet"),
    (".db .sqlite .sqlite3 .duckdb .accdb", "a database", "save what a query gives as CSV or Parquet"),
    (".rds .rda .rdata", "a file of R", "save it with write.csv"),
    (".mat", "a MATLAB file", "save it with numpy.savez, or as HDF5 (-v7.3 and .h5)"),
    (".zip .tar .gz .tgz .7z .rar .bz2 .xz .zst", "an archive", "unpack it"),
    (".tfrecord .tfrecords", "a file of TensorFlow's records", "save their arrays with numpy.savez"),
    (".mdb .lmdb", "an LMDB or Access database", "save its arrays with numpy.savez, its tables as CSV"),
    (".zarr", "a Zarr store", "save its arrays with numpy.savez or as HDF5"),
    (".hea", "the header of a WFDB record", f"{_SIGNALS}, wfdb.rdsamp say"),
    (".edf .bdf .gdf", "a recording in EDF or the like", _SIGNALS),
    (".scp", "a recording in SCP-ECG", _SIGNALS),
    (".xml", "XML, an HL7 aECG or outlines say", f"{_SIGNALS}; draw outlines into masks"),
    (".mgz .mgh", "a volume of FreeSurfer", "make it NIfTI: mri_convert a.mgz a.nii.gz"),
    (".img .hdr", "a volume in Analyze or NIfTI of two parts", "save it as .nii.gz: nibabel.load and nibabel.save"),
    (".h5ad .loom", "a file of single cells", "save its matrix and its labels as Parquet or with numpy.savez"),
    (".mnc", "a volume in MINC", "make it NIfTI: mnc2nii"),
    (
        ".svs .ndpi .mrxs .scn .czi .vsi .lif .nd2 .vms .bif",
        "a slide or a file of a microscope",
        "save the parts that the models read as PNG, and list them with their labels",
    ),
    (".heic .heif .avif .psd .dng .nef .cr2", "a picture of another program", "save it as PNG"),
    (".mp4 .avi .mov .mkv .wmv .m4v", "a film", "save its frames as PNG, named after the patient"),
)
_DRAW = "draw them into images, one value per pixel, in a folder masks"


def foreign(name: str) -> tuple[str, str] | None:
    """Return what a file of this name is, if it is known and not read, and what to make of it."""
    return next((known[1:] for known in _KNOWN if name.lower().endswith(tuple(known[0].split()))), None)


def foreign_json(content: Any) -> tuple[str, str] | None:
    """Return what a JSON document is that is neither a list of samples nor a description, and what to make of it."""
    if isinstance(content, list):
        return "a list of records", "save it as CSV: path,label for files, or a column per feature"
    keys = {str(key) for key in content} if isinstance(content, dict) else set()
    if "labels" in keys and keys & {"channel_names", "modality"}:
        return (
            "what nnU-Net says of a folder",
            "name the folder itself, which holds imagesTr and labelsTr",
        )
    if keys >= {"images", "annotations"}:
        return "a file of outlines, as COCO has them", f"{_DRAW}: annToMask of pycocotools"
    if keys >= {"shapes", "imagePath"} or keys >= {"type", "features"}:
        return "a file of outlines, as labelme or QuPath write them", _DRAW
    return None


__all__ = ["foreign", "foreign_json"]
