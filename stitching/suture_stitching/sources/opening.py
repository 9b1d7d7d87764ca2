"""Which kind of source a path is."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_stitching.sources.files import Place
from suture_stitching.sources.foreign import foreign_file, foreign_folder, is_old_torch
from suture_stitching.sources.source import NetworkSource

_KNOWN = (
    "known are a MONAI bundle (a folder or zip with configs/metadata.json), a results folder of nnU-Net v2 (with "
    "plans.json and dataset.json) and a TorchScript file; any other network is exported from your code: MODULE:NAME"
)


def open_source(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> NetworkSource:
    """Return the network at `path`: a MONAI bundle, a results folder of nnU-Net v2, or a TorchScript file.

    `shape` is that of an input without its batch, where the source does not say it. Raises `SutureError` (`source.*`).
    """
    path = Path(path)
    size = None if shape is None else tuple(shape)
    if path.is_dir():
        if bundle := _bundle(path):
            return _open_bundle(bundle, size)
        if results := next((at for at in (path, path.parent) if (at / "plans.json").is_file()), None):
            from suture_stitching.sources.nnunet import open_results

            return open_results(results, path, size)
        raise foreign_folder(path) or _unknown(path, "is no folder of a kind that is known")
    if not path.exists():
        raise _unknown(path, "is not there")
    names: list[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if bundle := _bundle(zipfile.Path(archive)):
                return _open_bundle(bundle, size)
        if any(name.endswith("/code/__torch__.py") or "/code/__torch__/" in name for name in names):
            from suture_stitching.sources.torchscript import open_script

            return open_script(path.read_bytes(), str(path), size)
    if any(name.endswith("/data.pkl") for name in names) or is_old_torch(path):
        raise _pickled(path)
    raise foreign_file(path, names) or _unknown(path, "is no file of a kind that is known")


def _unknown(path: Path, what: str) -> SutureError:
    return SutureError("source.unknown", what, where=str(path), hint=_KNOWN)


def _pickled(path: Path) -> SutureError:
    """Return what to do with what torch.save wrote: weights, weights among others, or a network."""
    from suture_stitching.sources.checkpoint import prefix_of, read_checkpoint, weights_key, weights_of

    begins = "a function of yours that makes the network and fills it is exported, MODULE:NAME: "
    try:
        checkpoint = read_checkpoint(path.read_bytes(), str(path))
    except SutureError as error:
        return SutureError(
            "source.code",
            f"{error.message}. Nothing of it was run",
            where=str(path),
            hint=f"{begins}def make(): return torch.load({path.name!r}, weights_only=False), in a module that can "
            "import the network's own code; if the file holds weights among other things, take them out of what it "
            "returns. It runs code from the file, so only with a file of your own",
        )
    key = weights_key(checkpoint)
    loaded = f"torch.load({path.name!r}, weights_only=True)" + ("" if key is None else f"[{key!r}]")
    if prefix := prefix_of(weights_of(checkpoint)):
        loaded = f"{{k.removeprefix({prefix!r}): v for k, v in {loaded}.items() if k.startswith({prefix!r})}}"
    made = f"def make(): network = Network(); network.load_state_dict({loaded}); return network"
    return SutureError("source.code", "holds weights, but no network", where=str(path), hint=begins + made)


def _bundle(top: Place) -> Place | None:
    """Return the folder of a MONAI bundle: this one, or the only one in it, as zip archives have it."""
    inside = [top, *(place for place in top.iterdir() if place.is_dir())]
    with_metadata = [place for place in inside if (place / "configs" / "metadata.json").is_file()]
    return with_metadata[0] if len(with_metadata) == 1 or top in with_metadata else None


def _open_bundle(bundle: Place, shape: tuple[int, ...] | None) -> NetworkSource:
    with needs("imaging", str(bundle)):
        from suture_stitching.sources.monai_bundle import open_bundle

        return open_bundle(bundle, shape)
