"""Stitching on local files, without a hub: models and data in; the stitched ensemble and its report out.

    from suture_stitching.data import DatasetSpec
    from suture_stitching.local import stitch

    scans = DatasetSpec(path="scans", format="image_folder", labels=("normal", "polyp"))
    found = stitch(["north.safetensors", "south.safetensors"], scans, "joint")
    found.report.parties["north"].rows["chosen"]        # value with its 95 % interval
    found.model(x)                                      # a torch.nn.Module

The first model is the requester's own, and models are named after their files. `joint/` then holds the ensemble as
it would be published (`model.safetensors`, `suture.json`), the report (`report.json`, `report.html`) and everything
that was fitted (`candidates.json`, `stitches.safetensors`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import torch

from suture_contract.compatibility import describe_ensemble
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.files import sha256_of, write_text
from suture_contract.model.format import METADATA, MODEL, check_against, check_file, find_model
from suture_contract.model.metadata import MemberRef, ModelMetadata, check_name
from suture_contract.report import build
from suture_contract.report.html import to_html
from suture_stitching.data import Dataset, DatasetSpec, open_dataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, FitResult, fit
from suture_stitching.portable.dry_run import stranger
from suture_stitching.portable.runtime import PortableModel, load, save
from suture_stitching.running.device import usable
from suture_stitching.running.progress import OnProgress, ignore

PathLike: TypeAlias = str | os.PathLike[str]
REPORT, PAGE = "report.json", "report.html"
#: In the working folder, what a stopped fit goes on from.
CHECKPOINT = "fit"
#: What stands for the hub's job in reports and lineage.
JOB = "suture fit"


@dataclass(frozen=True)
class Stitched:
    """The chosen candidate as one portable model, its `suture.json`, the report, and all candidates."""

    model: PortableModel
    metadata: ModelMetadata
    report: Report
    fitted: FitResult


def stitch(
    models: Sequence[PathLike],
    dataset: DatasetSpec | Dataset,
    out: PathLike,
    *,
    others: Mapping[str, DatasetSpec | Dataset] | None = None,
    metadata: Sequence[PathLike] = (),
    options: FitOptions | None = None,
    device: str | torch.device = "cpu",
    resume: bool = True,
    memory_gib: float | None = None,
    progress: OnProgress = ignore,
) -> Stitched:
    """Stitch the portable models in the files `models` on `dataset`; write all that comes of it to the folder `out`.

    The choice also looks at `others`, further parties' datasets by name; one that bears a model's name is that model's
    own party. `metadata` are the models' `suture.json`, by default those beside them. A model is refused of which a
    pass would take much more memory than networks of its size do; `memory_gib` says how much it may take instead.

    `out` appears in one step when everything is done; until then the work is in `out` + `.unfinished`, where with
    `resume` it goes on after it was stopped. Raises `SutureError` (`out.*`, `model.*`, `metadata.*`, `members.*`,
    `dataset.*`).
    """
    out = Path(out)
    check_out(out)
    members = read_members(models, metadata, device=device, memory_gib=memory_gib)
    names = [member.ref.repo.partition("/")[0] for member in members]
    datasets = {names[0]: dataset, **(others or {})}
    for name in others or {}:
        try:
            check_name(name)
        except ValueError as error:
            raise SutureError("others.name", str(error), where="others") from None
    if names[0] in (others or {}):
        raise SutureError("others.name", f"{names[0]} is the first model, whose data are the fit's own", where="others")
    opened = {name: data if isinstance(data, Dataset) else open_dataset(data) for name, data in datasets.items()}
    with _in_one_step(out, resume=resume) as work:
        checkpoint = work / CHECKPOINT
        own = opened[names[0]]
        fitted = fit(members, own, options=options, device=device, progress=progress, checkpoint=checkpoint, own=0)
        evaluations = {
            party: evaluate(
                members,
                fitted,
                data,
                own=names.index(party) if party in names else None,
                device=device,
                checkpoint=checkpoint / "evaluate" / party,
                metrics=options.metrics if options is not None else (),
                progress=lambda at, party=party: progress(replace(at, step=f"{at.step} {party}")),  # type: ignore[misc]
            )
            for party, data in opened.items()
        }
        choice = choose(fitted.candidates, evaluations, requester=names[0])
        report = build(fitted.candidates, evaluations, choice, requester=names[0], parties_of_members=names, job=JOB)
        model = compose(members, fitted, choice.chosen)
        described = describe_ensemble([member.metadata for member in members], fitted.candidates, report)
        stitched = Stitched(model, described, report, fitted)
        _write(stitched, work)
        shutil.rmtree(checkpoint, ignore_errors=True)  # absent where nothing could be kept
    return stitched


def check_out(out: Path) -> None:
    """Raise `SutureError` `out.exists` if there is something at `out` that a result would have to replace."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SutureError("out.exists", "there is something already", where=str(out), hint="name a new folder")


def read_members(
    models: Sequence[PathLike],
    metadata: Sequence[PathLike] = (),
    *,
    device: str | torch.device = "cpu",
    memory_gib: float | None = None,
) -> list[Member]:
    """Return the portable models in these files (or folders with a `model.safetensors`), each checked first.

    A model's `suture.json` is that of `metadata`, or lies beside it: as `NAME.json` beside `NAME.safetensors`, or as
    `suture.json`. Raises `SutureError` (`model.*`, `metadata.*`, `device.unusable`).
    """
    device = usable(device)
    described = read_metadata(models, metadata)
    members = []
    for name, (path, stated) in zip(_names([path for path, _ in described]), described, strict=True):
        check_against(check_file(path), stated, where=str(path))
        digest = sha256_of(path)
        ref = MemberRef(repo=f"{name}/model", revision=digest[:40], sha256=digest)
        members.append(Member(load(path, device=device, budget=stranger(path.stat().st_size, memory_gib)), stated, ref))
    return members


def read_metadata(models: Sequence[PathLike], metadata: Sequence[PathLike] = ()) -> list[tuple[Path, ModelMetadata]]:
    """Return each model's file and what its `suture.json` says; see `read_members`."""
    paths = [find_model(path) for path in models]
    for path in paths:
        if not path.is_file():
            raise SutureError("model.missing", "there is no such file", where=str(path))
    if metadata and len(metadata) != len(paths):
        raise SutureError(
            "metadata.count", f"{len(metadata)} suture.json for {len(paths)} models", hint="give one for each, in order"
        )
    return list(zip(paths, map(ModelMetadata.read, metadata or map(_beside, paths)), strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each model: its file's, or its folder's where files are called alike."""
    stems = [path.stem for path in paths]
    names = (
        stems
        if len(set(stems)) == len(stems) and MODEL not in {path.name for path in paths}
        else [path.absolute().parent.name for path in paths]
    )
    if len(set(names)) < len(names):
        raise SutureError(
            "model.name", f"two models are called {max(names, key=names.count)}", hint="rename a file or its folder"
        )
    for name, path in zip(names, paths, strict=True):
        try:
            check_name(name)
        except ValueError as error:
            what = "file" if name == path.stem else f"folder {name}"
            raise SutureError("model.name", str(error), where=str(path), hint=f"rename the {what}") from None
    return names


def _beside(path: Path) -> Path:
    own = path.with_suffix(".json")
    return own if own.exists() else path.with_name(METADATA)


@contextmanager
def _in_one_step(out: Path, *, resume: bool) -> Iterator[Path]:
    """Give a folder to work in that becomes `out` if nothing is raised; otherwise it is kept unless it is empty."""
    work = out.absolute().with_name(out.absolute().name + ".unfinished")
    with _writing(work):
        if not resume and work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
        with _writing(out):
            work.rename(out)
    finally:
        with suppress(OSError):
            work.rmdir()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SutureError("out.unwritable", error.strerror or "cannot be written", where=str(path)) from None


def _write(stitched: Stitched, folder: Path) -> None:
    stitched.fitted.save(folder)
    save(stitched.model.graph, stitched.model.tensors, folder / MODEL)
    texts = {
        METADATA: stitched.metadata.to_json(),
        REPORT: stitched.report.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n",
        PAGE: to_html(stitched.report, datetime.now(UTC)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
