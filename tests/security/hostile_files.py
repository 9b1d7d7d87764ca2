"""What the corpus tries: files that each attempt something, by the layer that refuses them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
from tests.security.corpus_parts import NEW, changed, model, put_at, renamed, retold, with_op
from tests.security.mutants import Parts


class Exploit:
    """What a pickle does when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle was opened",)


def _zip(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def format_files() -> dict[str, tuple[str, bytes]]:
    """Return code and content of each file that the first layer refuses."""
    whole = changed(lambda header, graph: None)
    length = int.from_bytes(whole[:8], "little")
    pickled, archive = pickle.dumps(Exploit()), _zip({"archive/data.pkl": pickle.dumps(Exploit())})

    def claiming(size: int) -> bytes:
        return size.to_bytes(8, "little") + whole[8:]

    def headed(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    nested = '{"n": 0}'
    for _ in range(40):
        nested = f"[{nested}]"
    return {
        "empty-file": ("model.empty", b""),
        "one-byte-like-a-pickle": ("model.truncated", b"\x80"),
        "seven-bytes": ("model.truncated", b"\0" * 7),
        "header-length-beyond-the-file": ("model.truncated", claiming(len(whole))),
        "header-length-of-exabytes": ("model.header", claiming(2**63 - 1)),
        "header-length-all-ones": ("model.header", claiming(2**64 - 1)),
        "header-length-zero": ("model.header", claiming(0)),
        "header-length-cuts-the-json": ("model.graph", claiming(length - 10)),
        "header-length-reaches-into-tensors": ("model.graph", claiming(length + 30)),
        "header-not-utf8": ("model.header", headed(b'{"\xff\xfe": 1}')),
        "header-with-byte-order-mark": ("model.header", headed(b"\xef\xbb\xbf{}")),
        "header-is-a-list": ("model.header", headed(b"[]")),
        "header-nested-deeply": ("model.graph", headed(b'{"a":' * 1500)),
        "header-with-nan": ("model.graph", headed(b'{"__metadata__": NaN}')),
        "header-number-of-5000-digits": ("model.graph", headed(b'{"a": ' + b"9" * 5000 + b"}")),
        "header-lone-surrogate-as-tensor-name": ("model.tensors", retold('"t1"', '"\\ud800"')),
        "pickle": ("model.not_portable", pickled),
        "pickle-protocol-2": ("model.not_portable", pickle.dumps(Exploit(), protocol=2)),
        "pickle-protocol-0": ("model.header", b"cos\nsystem\n(S'id'\ntR."),
        "zip-of-torch-save": ("model.not_portable", archive),
        "pt2-archive": ("model.not_portable", _zip({"archive_format": b"pt2", "models/model.json": b"{}"})),
        "hdf5": ("model.not_portable", b"\x89HDF\r\n\x1a\n" + b"\0" * 64),
        "numpy-array": ("model.not_portable", _npy()),
        "zip-hidden-behind-the-tensors": ("model.tensors", whole + archive),
        "tensors-cut-off": ("model.truncated", whole[:-4]),
        "weights-without-a-graph": ("model.not_portable", changed(lambda h, g: h.pop("__metadata__"))),
        "metadata-is-a-list": ("model.not_portable", put_at("header", "__metadata__", value=["suture.portable"])),
        "metadata-of-a-later-version": ("model.version", put_at("header", "__metadata__", "version", value="2")),
        "metadata-with-a-script": ("model.header", put_at("header", "__metadata__", "script", value="import os")),
        "metadata-graph-is-an-object": ("model.header", put_at("header", "__metadata__", "graph", value={})),
        "metadata-torch-of-a-megabyte": ("model.header", put_at("header", "__metadata__", "torch", value="2" * 100)),
        "key-twice-tensor": ("model.graph", retold('"t1"', '"t0"')),
        "key-twice-metadata": ("model.graph", retold('"version": "1"', '"version": "1", "version": "1"')),
        "key-twice-graph": ("model.graph", retold('"ops": [', '"ops": [], "ops": [', in_graph=True)),
        "key-twice-reference": ("model.graph", retold('{"n": 3}', '{"n": 0, "n": 3}', in_graph=True)),
        "offsets-overlap": ("model.tensors", put_at("header", "t1", "data_offsets", value=[0, 16])),
        "offsets-leave-a-gap": ("model.tensors", put_at("header", "t1", "data_offsets", value=[132, 148])),
        "offsets-backwards": ("model.tensors", put_at("header", "t1", "data_offsets", value=[144, 128])),
        "offsets-behind-the-file": ("model.tensors", put_at("header", "t1", "data_offsets", value=[2**40, 2**40 + 16])),
        "offsets-negative": ("model.tensors", put_at("header", "t1", "data_offsets", value=[-16, 0])),
        "offsets-as-floats": ("model.tensors", put_at("header", "t1", "data_offsets", value=[128.0, 144.0])),
        "tensor-size-overflows-64-bits": ("model.tensors", put_at("header", "t1", "shape", value=[2**32, 2**32])),
        "tensor-size-negative": ("model.tensors", put_at("header", "t1", "shape", value=[-2, -2])),
        "tensor-size-true": ("model.tensors", put_at("header", "t1", "shape", value=[4, True])),
        "tensor-of-99-dimensions": ("model.tensors", put_at("header", "t1", "shape", value=[4] + [1] * 98)),
        "tensor-type-object": ("model.tensors", put_at("header", "t1", "dtype", value="object")),
        "tensor-type-is-a-list": ("model.tensors", put_at("header", "t1", "dtype", value=["F32"])),
        "tensor-with-strides": ("model.tensors", put_at("header", "t1", "strides", value=[0])),
        "tensor-nobody-reads": ("model.tensors", put_at("graph", "nodes", 2, 1, value=["t0"])),
        "tensor-that-is-not-there": ("model.tensors", put_at("graph", "nodes", 2, 1, value=["t9"])),
        "name-path-traversal": ("model.tensors", renamed("../../etc/passwd")),
        "name-absolute-path": ("model.tensors", renamed("/etc/passwd")),
        "name-of-windows-device": ("model.tensors", renamed("C:\\nul")),
        "name-with-zero-byte": ("model.tensors", renamed("weight\0.txt")),
        "name-with-terminal-escape": ("model.tensors", renamed("\x1b[2Jweight")),
        "name-right-to-left": ("model.tensors", renamed("weight\u202egpj")),
        "name-empty": ("model.tensors", renamed("")),
        "name-with-newline": ("model.tensors", renamed("weight\n")),
        "operator-unknown": ("model.operator", with_op("aten.exploit.default")),
        "operator-in-place": ("model.operator", with_op("aten.relu_.default")),
        "operator-writes-elsewhere": ("model.operator", with_op("aten.relu.out")),
        "operator-reads-files": ("model.operator", with_op("aten.from_file.default")),
        "operator-random": ("model.operator", with_op("aten.rand.default")),
        "operator-of-uninitialised-memory": ("model.operator", with_op("aten.empty.memory_format")),
        "operator-any-memory": ("model.operator", with_op("aten.as_strided.default")),
        "operator-size-from-data": ("model.operator", with_op("aten.nonzero.default")),
        "operator-of-a-custom-library": ("model.operator", with_op("evil.relu.default")),
        "operator-higher-order": ("model.operator", with_op("higher_order.cond.default")),
        "operator-by-attribute": ("model.operator", with_op("aten.relu.default.__globals__")),
        "operator-by-class": ("model.operator", with_op("aten.__class__.__init__")),
        "operator-by-bases": ("model.operator", with_op("aten.relu.__class__")),
        "operator-of-python": ("model.operator", with_op("builtins.exec.default")),
        "operator-os-system": ("model.operator", with_op("os.system")),
        "operator-without-overload": ("model.operator", with_op("aten.relu")),
        "operator-cyrillic-letter": ("model.operator", with_op("aten.r\u0435lu.default")),
        "operator-zero-width-space": ("model.operator", with_op("aten.relu\u200b.default")),
        "operator-with-newline": ("model.operator", with_op("aten.relu.default\n")),
        "operator-upper-case": ("model.operator", with_op("ATEN.RELU.DEFAULT")),
        "operator-empty": ("model.operator", with_op("")),
        "operator-is-a-number": ("model.graph", with_op(7)),  # type: ignore[arg-type]
        "operator-index-negative": ("model.graph", put_at("graph", "nodes", 4, 0, value=-1)),
        "module-path-is-markup": ("model.graph", put_at("graph", "modules", 1, value="<script>alert(1)</script>")),
        "module-path-traversal": ("model.graph", put_at("graph", "modules", 1, value="../../head")),
        "module-path-with-control-characters": ("model.graph", put_at("graph", "modules", 1, value="head\r\x1b]0;x\a")),
        "module-path-right-to-left": ("model.graph", put_at("graph", "modules", 1, value="head\u202e")),
        "module-path-of-a-megabyte": ("model.graph", put_at("graph", "modules", 1, value="h" * 600)),
        "reference-forward": ("model.graph", put_at("graph", "nodes", 3, 1, 0, value={"n": 4})),
        "reference-to-itself": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": 4})),
        "reference-negative": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": -1})),
        "reference-true": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": True})),
        "reference-as-float": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": 3.0})),
        "reference-of-many-digits": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": 10**400})),
        "argument-with-unknown-tag": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"call": "os.system"})),
        "argument-with-two-tags": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value={"n": 3, "d": "bool"})),
        "argument-name-with-underscores": ("model.graph", put_at("graph", "nodes", 4, 2, "__class__", value=0)),
        "argument-text-with-newline": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value="a\nimport os")),
        "argument-on-another-device": (
            "model.graph",
            put_at("graph", "nodes", 4, 2, "device", value={"device": "cuda:7"}),
        ),
        "argument-number-beyond-64-bits": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value=2**63)),
        "argument-float-overflows": ("model.graph", retold('[{"n": 3}]', "[1e999]", in_graph=True)),
        "argument-nested-deeply": ("model.graph", put_at("graph", "nodes", 4, 1, 0, value=json.loads(nested))),
        "output-nested-deeply": ("model.graph", put_at("graph", "output", value=json.loads(nested))),
        "output-that-is-not-there": ("model.graph", put_at("graph", "output", value={"n": 5})),
        "output-name-with-control-characters": (
            "model.graph",
            put_at("graph", "output", value={"dict": {"y\x1b[2J": {"n": 4}}}),
        ),
        "outputs-not-described": ("model.graph", put_at("graph", "outputs", value=[])),
        "input-size-as-nan": ("model.graph", retold("[null, 3, 8, 8]", "[null, NaN, 8, 8]", in_graph=True)),
        "input-size-as-float": ("model.graph", put_at("graph", "inputs", 0, "shape", value=[None, 3.0, 8, 8])),
        "input-type-unknown": ("model.graph", put_at("graph", "inputs", 0, "dtype", value="complex64")),
        "graph-with-hooks": ("model.graph", put_at("graph", "hooks", value=[])),
        "graph-without-nodes": ("model.graph", put_at("graph", "nodes", value=[])),
        "graph-without-input": ("model.graph", put_at("graph", "inputs", value=[])),
    }


def types_files() -> dict[str, Parts]:
    """Return what the second layer refuses."""
    statistics = [{"n": 0}, {"n": 1}, {"n": 1}, {"n": 2}, {"n": 3}]
    three: dict[str, tuple[str, list[int]]] = {"a": ("F32", [3]), "b": ("F32", [3]), "c": ("F32", [3])}
    relu, x = "aten.relu.default", {"n": 0}
    return {
        "argument-missing": model((relu, [])),
        "argument-too-many": model((relu, [x, x])),
        "argument-twice": model(("aten.softmax.int", [x, 1], {"dim": 1})),
        "argument-unknown": model((relu, [x], {"out": x})),
        "argument-number-for-a-tensor": model((relu, [3])),
        "argument-text-for-a-tensor": model((relu, ["x"])),
        "argument-text-for-a-number": model(("aten.softmax.int", [x, "1"])),
        "argument-tensor-for-a-number": model(("aten.softmax.int", [x, x])),
        "argument-size-for-a-tensor": model(("aten.sym_size.int", [x, 0]), (relu, [{"n": 1}])),
        "argument-true-for-a-number": model(("aten.softmax.int", [x, True])),
        "argument-empty-list-of-tensors": model(("aten.cat.default", [[], 0])),
        "argument-made-up-memory-format": model(("aten.clone.default", [x], {"memory_format": "__class__"})),
        "argument-stride-zero": model(("aten.max_pool2d.default", [x, [2, 2], [0, 0]])),
        "argument-kernel-zero": model(("aten.avg_pool2d.default", [x, [0, 0]])),
        "argument-dilation-negative": model(("aten.max_pool2d.default", [x, [2, 2], [1, 1], [0, 0], [-1, -1]])),
        "argument-groups-zero": model(("aten.group_norm.default", [x, 0])),
        "argument-padding-negative": model(("aten.max_pool2d.default", [x, [2, 2], [1, 1], [-1, -1]])),
        "argument-beyond-32-bits": model(("aten.roll.default", [x, [2**40], [1]])),
        "attention-that-is-random": model(("aten.scaled_dot_product_attention.default", [x, x, x, None, 0.5])),
        "batch-norm-that-rewrites-its-weights": model(
            ("aten.batch_norm.default", [*statistics, True, 0.1, 1e-5, False]), **three
        ),
        "instance-norm-that-rewrites-its-weights": model(
            ("aten.instance_norm.default", [*statistics, True, 0.1, 1e-5, False]), **three
        ),
        "factory-on-no-device": model(("aten.zeros.default", [[2, 2]])),
        "factory-on-device-none": model(("aten.zeros.default", [[2, 2]], {"device": None})),
        "item-of-a-tensor": model((relu, [x]), ("getitem", [{"n": 1}, 0])),
        "output-that-is-no-tensor": model(("aten.sym_size.int", [x, 0])),
        "output-of-several-tensors": model(("aten.split.Tensor", [x, 1, 1])),
        "sizes-from-tensors": model(("sym.add", [x, 1]), ("aten.zeros.default", [[{"n": 1}]], NEW)),
    }


def dry_files() -> dict[str, tuple[str, Parts]]:
    """Return code and model of what the dry run refuses."""
    x, run, over = {"n": 0}, "model.run_failed", "model.over_budget"
    size = ("aten.sym_size.int", [x, 0])

    def doubled(count: int) -> Parts:
        return model(*(("aten.cat.default", [[{"n": i}, {"n": i}], 0]) for i in range(count)))

    def recurrent(op: str, state: list[int], weights: list[list[int]], layers: int = 1) -> Parts:
        states = {"a": ("F32", [2, 5, 4]), "b": ("F32", state)}
        named = {f"w{i}": ("F32", shape) for i, shape in enumerate(weights)}
        refs = [{"n": 3 + i} for i in range(len(weights))]
        initial: Any = [{"n": 2}, {"n": 2}] if op == "lstm" else {"n": 2}
        args = [{"n": 1}, initial, refs, True, layers, 0.0, False, False, True]
        return model((f"aten.{op}.input", args), ("getitem", [{"n": 3 + len(weights)}, 0]), **states, **named)

    lstm = [[12, 4], [12, 3], [12], [12]]
    flat = ("aten.flatten.using_ints", [x, 1])
    zero = [size, ("sym.sub", [{"n": 1}, {"n": 1}])]
    return {
        "lstm-wrong-state": (run, recurrent("lstm", [1, 2, 7], lstm)),
        "lstm-state-of-another-batch": (run, recurrent("lstm", [1, 9, 3], lstm)),
        "lstm-too-few-weights": (run, recurrent("lstm", [1, 2, 3], lstm[:2])),
        "lstm-state-without-dimensions": (run, recurrent("lstm", [], lstm)),
        "lstm-of-1000-layers": (run, recurrent("lstm", [1, 2, 3], lstm, 1000)),
        "lstm-weights-too-small": (run, recurrent("lstm", [1, 2, 3], [[1, 1], [1, 1], [1], [1]])),
        "gru-wrong-state": (run, recurrent("gru", [1, 2, 7], [[9, 4], [9, 3], [9], [9]])),
        "gru-state-empty": (run, recurrent("gru", [1, 2, 0], [[0, 4], [0, 0], [0], [0]])),
        "factory-of-terabytes": (over, model(("aten.zeros.default", [[2**20, 2**20]], NEW))),
        "factory-whose-size-overflows": (run, model(("aten.zeros.default", [[2**31 - 1] * 4], NEW))),
        "factory-of-negative-size": (run, model(("aten.zeros.default", [[-1, 4]], NEW))),
        "arange-of-terabytes": (
            over,
            model(
                ("aten.arange.default", [2**31 - 1], {"device": {"device": "input"}}),
                ("aten.to.dtype", [{"n": 1}, {"d": "float32"}]),
            ),
        ),
        "arange-to-nan": (run, model(("aten.arange.default", [{"f": "nan"}], {"device": {"device": "input"}}))),
        "broadcast-of-terabytes": (
            over,
            model(
                ("aten.zeros.default", [[2**16, 1]], NEW),
                ("aten.zeros.default", [[1, 2**20]], NEW),
                ("aten.add.Tensor", [{"n": 1}, {"n": 2}]),
            ),
        ),
        "repeat-like-a-zip-bomb": (over, model(("aten.repeat.default", [x, [10**4, 10**3, 10**3, 10]]))),
        "expand-like-a-zip-bomb": (
            over,
            model(
                ("aten.unsqueeze.default", [x, 1]),
                ("aten.expand.default", [{"n": 1}, [-1, 2**30, -1, -1, -1]]),
                ("aten.relu.default", [{"n": 2}]),
            ),
        ),
        "doubling-sixty-times": (over, doubled(60)),
        "padding-of-terabytes": (over, model(("aten.pad.default", [x, [10**6] * 4]))),
        "padding-beyond-64-bits": (run, model(("aten.pad.default", [x, [2**31 - 1] * 8]))),
        "upsampling-of-terabytes": (over, model(("aten.upsample_nearest2d.vec", [x, None, [1e6, 1e6]]))),
        "upsampling-by-nan": (run, model(("aten.upsample_nearest2d.vec", [x, None, [{"f": "nan"}, {"f": "nan"}]]))),
        "upsampling-by-infinity": (
            run,
            model(("aten.upsample_nearest2d.vec", [x, None, [{"f": "inf"}, {"f": "inf"}]])),
        ),
        "attention-over-millions": (
            over,
            model(
                flat,
                ("aten.unsqueeze.default", [{"n": 1}, 1]),
                ("aten.expand.default", [{"n": 2}, [-1, 2**22, -1]]),
                ("aten.scaled_dot_product_attention.default", [{"n": 3}, {"n": 3}, {"n": 3}]),
            ),
        ),
        "results-by-the-million": (
            run,
            model(
                ("aten.unsqueeze.default", [x, 0]),
                ("aten.expand.default", [{"n": 1}, [2**31 - 1, -1, -1, -1, -1]]),
                ("aten.unbind.int", [{"n": 2}, 0]),
                ("getitem", [{"n": 3}, 0]),
            ),
        ),
        "sizes-without-end": (
            run,
            model(
                size,
                ("sym.add", [{"n": 1}, 2**40]),
                *(("sym.mul", [{"n": i + 2}, {"n": i + 2}]) for i in range(60)),
                ("aten.zeros.default", [[{"n": 62}]], NEW),
            ),
        ),
        "size-divided-by-zero": (
            run,
            model(size, ("sym.floordiv", [{"n": 1}, 0]), ("aten.zeros.default", [[{"n": 2}]], NEW)),
        ),
        "stride-computed-as-zero": (run, model(*zero, ("aten.max_pool2d.default", [x, [2, 2], [{"n": 2}, {"n": 2}]]))),
        "stride-computed-as-zero-transposed": (
            run,
            model(
                size,
                ("sym.sub", [{"n": 2}, {"n": 2}]),
                ("aten.conv_transpose2d.input", [x, {"n": 1}, None, [{"n": 3}, {"n": 3}]]),
                w=("F32", [3, 2, 2, 2]),
            ),
        ),
        "groups-computed-as-zero": (run, model(*zero, ("aten.group_norm.default", [x, {"n": 2}]))),
        "item-that-is-not-there": (run, model(("aten.split.Tensor", [x, 1, 1]), ("getitem", [{"n": 1}, 99]))),
        "view-of-another-size": (run, model(("aten.view.default", [x, [7, -1]]))),
        "kernel-larger-than-the-image": (run, model(("aten.max_pool2d.default", [x, [99, 99]]))),
        "weights-of-another-width": (run, model(("aten.linear.default", [x, {"n": 1}]), w=("F32", [4, 5]))),
        "einsum-nonsense": (run, model(("aten.einsum.default", ["->->,,..", [x, x]]))),
        "einsum-of-terabytes": (
            over,
            model(
                flat,
                ("aten.einsum.default", ["ab,cd,ef,gh->abcdefgh", [{"n": 1}, {"n": 1}, {"n": 1}, {"n": 1}]]),
            ),
        ),
        "output-of-another-size-than-stated": ("model.outputs", model(("aten.relu.default", [x]))),
    }


def running_files() -> dict[str, tuple[str, str, Parts, bytes | None]]:
    """Return layer, code, model and bytes of what can only be refused when it is read or run: values, not sizes."""
    x = {"n": 0}
    far = (2**40).to_bytes(8, "little", signed=True)
    embedding = model(("aten.embedding.default", [{"n": 1}, {"n": 2}]), a=("F32", [4, 2]), b=("I64", [1]))
    embedding[1]["outputs"] = [{"shape": [1, 2], "dtype": "float32"}]
    index = model(("aten.index.Tensor", [{"n": 1}, [{"n": 2}]]), a=("F32", [4, 2]), b=("I64", [1]))
    index[1]["outputs"] = [{"shape": [1, 2], "dtype": "float32"}]
    softmax = model(("aten.softmax.int", [x, 2**31 - 1]))
    softmax[1]["outputs"] = [{"shape": [None, 3, 8, 8], "dtype": "float32"}]
    flags = model(("aten.where.self", [{"n": 1}, x, x]), a=("BOOL", [8]))
    flags[1]["outputs"] = [{"shape": [None, 3, 8, 8], "dtype": "float32"}]
    return {
        "embedding-far-outside": ("run", "model.run_failed", embedding, b"\0" * 32 + far),
        "index-far-outside": ("run", "model.run_failed", index, b"\0" * 32 + far),
        "dimension-that-is-not-there": ("run", "model.run_failed", softmax, None),
        "truth-value-of-seven": ("load", "model.tensors", flags, b"\7" * 8),
    }


def metadata_files() -> dict[str, str]:
    """Return what is tried in `suture.json`; all are refused with `metadata.invalid`."""
    good: dict[str, Any] = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"image": {"num_channels": 3, "spatial_shape": [8, 8]}},
        "outputs": {"class": {"num_channels": 2}},
        "labels": ["benign", "malignant"],
        "license": "CC-BY-4.0",
    }

    def having(**changes: Any) -> str:
        return json.dumps({**good, **changes})

    return {
        "labels-with-terminal-escape": having(labels=["benign", "\x1b[2Jmalignant"]),
        "labels-with-newline": having(labels=["benign", "malig\nnant"]),
        "labels-with-zero-byte": having(labels=["benign", "malignant\0"]),
        "labels-right-to-left": having(labels=["benign", "\u202etnangilam"]),
        "labels-zero-width-twins": having(labels=["benign", "benign\u200b"]),
        "labels-lone-surrogate": having(labels=["benign", "\ud800"]),
        "labels-twice": having(labels=["benign", "benign"]),
        "labels-too-few": having(labels=["benign"]),
        "labels-that-are-numbers": having(labels=[0, 1]),
        "label-of-a-page": having(labels=["benign", "m" * 300]),
        "label-empty": having(labels=["benign", ""]),
        "metadata-unknown-field": having(hooks=["import os"]),
        "metadata-path-as-member": having(
            lineage={
                "job": "job_1",
                "requester": "north",
                "candidate": "c00",
                "members": [{"repo": "../../etc/passwd", "revision": "0" * 40, "sha256": "0" * 64}],
            }
        ),
        "metadata-channels-by-the-billion": having(outputs={"class": {"num_channels": 10**12}}),
        "metadata-metric-nan": json.dumps({**good, "eval_metrics": {"accuracy": float("nan")}}),
        "metadata-nested-deeply": '{"inputs":' + "[" * 2000,
        "metadata-input-name-is-markup": having(inputs={"a\n<script>": {"num_channels": 3, "spatial_shape": [8, 8]}}),
    }
