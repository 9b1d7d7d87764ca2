"""What a network's output is, read off the end of its graph: probabilities, or the logits before them (torch-free)."""

from __future__ import annotations

from suture_contract.errors import SutureError
from suture_contract.model.graph import Graph, Node, Ref
from suture_contract.model.metadata import ModelMetadata

#: What only moves, names or rounds numbers: what the output is, it was before.
_MOVES = frozenset(
    f"aten.{name}"
    for name in """
        view.default reshape.default permute.default transpose.int flatten.using_ints unflatten.int unsqueeze.default
        squeeze.dim squeeze.dims select.int slice.Tensor expand.default contiguous.default clone.default detach.default
        alias.default to.dtype flip.default clamp.default upsample_nearest1d.vec upsample_nearest2d.vec
        upsample_nearest3d.vec upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec
    """.split()  # noqa: SIM905
)
#: What makes probabilities of scores.
_SQUASHES = {
    "aten.softmax.int": "softmax",
    "aten.sigmoid.default": "sigmoid",
    "aten.hardsigmoid.default": "hardsigmoid",
}
#: What ends a network in plain scores, whatever numbers came out on an example.
_SCORES = frozenset(
    f"aten.{name}"
    for name in """
        linear.default addmm.default matmul.default log_softmax.int conv1d.default conv2d.default conv3d.default
        conv1d.padding conv2d.padding conv3d.padding conv_transpose1d.default conv_transpose2d.input
        conv_transpose3d.input
    """.split()  # noqa: SIM905
)

#: What makes logarithms of probabilities: a softmax has these back, a sigmoid does not.
_LOGARITHMS = frozenset(f"aten.{name}" for name in ("log.default", "log_softmax.int", "log_sigmoid.default"))


def squashed_by(graph: Graph) -> str | None:
    """Return what makes the one output probabilities: `softmax`, `sigmoid` or `hardsigmoid`; None for anything else."""
    end = _end(graph)
    return None if end is None else _SQUASHES.get(end.op)


def ends_in_scores(graph: Graph) -> bool:
    """Whether the one output comes straight from a linear layer, a convolution or a logarithm of probabilities."""
    end = _end(graph)
    return end is not None and end.op in _SCORES


def ends_in_logarithm(graph: Graph) -> bool:
    """Whether the one output is a logarithm, of probabilities most likely."""
    end = _end(graph)
    return end is not None and end.op in _LOGARITHMS


def check_output_format(graph: Graph, metadata: ModelMetadata, *, where: str = "suture.json") -> None:
    """Raise `SutureError` `metadata.output` where `suture.json` calls logits what the graph has made probabilities.

    A softmax or sigmoid would be applied a second time, and what a model says would be flattened in silence. So it
    would by a sigmoid of their logarithms, which is never above a half.
    """
    if len(metadata.outputs) != 1 or metadata.task == "regression":
        return
    name, stated = next(iter(metadata.outputs.items()))
    if stated.format == "logits" and (activation := squashed_by(graph)) is not None:
        raise SutureError(
            "metadata.output",
            f"outputs.{name}.format is logits, but the network ends in a {activation}, which gives probabilities",
            where=where,
            hint="export it again with --output probabilities, or output='probabilities'; or leave out its last layer",
        )
    by_sigmoid = metadata.task == "multilabel" or stated.num_channels == 1
    if stated.format == "logits" and by_sigmoid and ends_in_logarithm(graph):
        raise SutureError(
            "metadata.output",
            f"outputs.{name}.format is logits, but the network ends in a logarithm, which a sigmoid makes no "
            "probability of",
            where=where,
            hint="leave the logarithm out: export the scores before it, or the probabilities",
        )


def _end(graph: Graph) -> Node | None:
    """Return the node that computes the only output."""
    output = graph.output
    if not isinstance(output, Ref):
        return None
    node = graph.nodes[output.node]
    while node.op in _MOVES and node.args and isinstance(node.args[0], Ref):
        node = graph.nodes[node.args[0].node]
    return node
