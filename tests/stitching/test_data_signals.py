"""Signals in files of text as programs write them: every channel and point is read, and nothing else."""

from __future__ import annotations

import gzip

import numpy as np
import pandas
import pytest
from tests.stitching.kinds import DRAWN, LEADS, described, folders, refused, values

from suture_contract.model.metadata import InputSpec
from suture_stitching.data import open_dataset

NAMES = ["I", "II", "V1"]
FREE = InputSpec(format="signal", num_channels=3, spatial_shape=(None,))


def frame(columns=NAMES, **options) -> pandas.DataFrame:
    return pandas.DataFrame(DRAWN.normal(size=(40, 3)), columns=columns, **options)


@pytest.mark.parametrize(
    ("write", "left_out"),
    [
        (lambda path: frame().to_csv(path, index=False), None),
        (lambda path: frame().to_csv(path), ""),
        (lambda path: frame(index=pandas.Index(np.arange(40) / 500, name="Time (s)")).to_csv(path), "Time (s)"),
        (lambda path: frame(index=pandas.Index(range(40), name="sample")).to_csv(path, sep=";", decimal=","), "sample"),
        (lambda path: frame(columns=[0, 1, 2]).to_csv(path, index=False), None),
        (lambda path: frame(columns=[0, 1, 2]).to_csv(path), ""),
        (lambda path: np.savetxt(path, frame().to_numpy()), None),
        (lambda path: np.savetxt(path, frame().to_numpy(), delimiter=",", header="I,II,V1"), None),
        (lambda path: path.write_text(frame().to_csv(index=False).replace("\n", ",\n")), None),
        (lambda path: path.write_text("sep=;\n" + frame().to_csv(index=False, sep=";")), None),
    ],
    ids="plain index time samples numbered both spaces comment trailing separator".split(),  # noqa: SIM905
)
def test_texts_of_signals_hold_their_channels_alone(tmp_path, write, left_out):
    root = folders(tmp_path / "s", lambda path, _: write(path.with_suffix(".csv")))
    dataset = open_dataset(described(root, input=FREE, format="signal_folder"))
    assert dataset.input_shape == (3, 40)
    assert any(f"'{left_out}'" in note for note in dataset.notes) == (left_out is not None)
    assert np.abs(values(root, input=FREE, format="signal_folder")[0]).max() < 8


def test_zipped_texts_are_read(tmp_path):
    root = folders(
        tmp_path / "s",
        lambda path, _: path.with_suffix(".csv.gz").write_bytes(gzip.compress(frame().to_csv(index=False).encode())),
    )
    assert values(root, input=LEADS)[0].shape == (20, 3, 40)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda signal: signal.replace(signal.iloc[3, 1], np.nan), "are empty"),
        (lambda signal: signal.assign(V2=np.nan)[["I", "V2", "II", "V1"]], "are empty"),
        (lambda signal: signal.astype(object).replace(signal.iloc[3, 1], "lead off"), "texts between its numbers"),
    ],
)
def test_gaps_and_texts_are_named(tmp_path, spoil, why):
    root = folders(tmp_path / "s", lambda path, _: spoil(frame()).to_csv(path.with_suffix(".csv"), index=False))
    assert why in refused(root, "dataset.unreadable_image", input=LEADS, format="signal_folder")


def test_lines_of_several_lengths_are_named(tmp_path):
    root = folders(tmp_path / "s", lambda path, _: path.with_suffix(".csv").write_text("1,2,3\n1,2\n1,2,3\n"))
    assert "several numbers of cells" in refused(root, "dataset.unreadable_image", format="signal_folder")


def test_whole_numbers_that_begin_as_if_they_counted_are_values(tmp_path):
    root = folders(tmp_path / "s", lambda path, _: path.with_suffix(".csv").write_text("0,1,2\n" + "5,7,9\n" * 39))
    assert values(root, input=LEADS, format="signal_folder")[0].shape == (20, 3, 40)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_signals_in_another_unit_are_refused(tmp_path, kind):
    reads = InputSpec(format="signal", num_channels=3, spatial_shape=(40,), value_range=(-5000.0, 5000.0))
    if kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, images=DRAWN.normal(size=(20, 3, 40)), labels=np.arange(20) % 2)
    else:
        path = folders(tmp_path / "s", lambda path, _: np.save(path.with_suffix(".npy"), frame().to_numpy().T))
    assert "next to 0" in refused(path, "dataset.value_range", input=reads)
    assert values(path, input=reads, intensity=(-5000, 5000))[0].shape == (20, 3, 40)
