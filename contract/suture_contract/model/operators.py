"""The operators a portable model may use: a frozen list of exact names (torch-free).

Every entry is attack surface, so each is here because a network that hospitals really train, or composing one, needs
it. None of them writes to its arguments, draws random numbers, or returns a size that depends on the data.
"""

from __future__ import annotations

_CONVOLUTION = """
    conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding
    conv_transpose1d conv_transpose2d.input conv_transpose3d.input
"""
_PRODUCT = "linear matmul mm bmm addmm einsum scaled_dot_product_attention"
_NORMALISATION = "batch_norm instance_norm group_norm layer_norm rms_norm"
_POOLING = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
"""
_RESAMPLING = """
    upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec
    upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec pad
    upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec
    _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec
    grid_sampler im2col col2im unfold
"""
_ACTIVATION = """
    relu leaky_relu prelu elu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid softplus relu6 selu celu mish
    softmax.int log_softmax.int log_sigmoid glu threshold
"""
_ARITHMETIC = """
    add.Tensor sub.Tensor mul.Tensor div.Tensor neg addcmul pow.Tensor_Scalar sqrt rsqrt exp log abs clamp rsub.Scalar
    sin cos tan asin acos atan atan2 sinh cosh log2 log10 log1p exp2 expm1 erf sign floor ceil round trunc
    pow.Tensor_Tensor pow.Scalar remainder.Scalar remainder.Tensor floor_divide maximum minimum
    nan_to_num cumsum cumprod
    sum sum.dim_IntList mean mean.dim amax amin linalg_vector_norm var.correction std.correction prod.dim_int logsumexp
    any.dim all.dim cdist
    eq.Tensor ne.Tensor gt.Tensor lt.Tensor ge.Tensor le.Tensor
    bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor isnan
    eq.Scalar ne.Scalar gt.Scalar lt.Scalar ge.Scalar le.Scalar logical_not masked_fill.Scalar where.self bitwise_not
"""
_IDENTITY = "clone contiguous detach to.dtype alias"
_ORDER = "max.dim min.dim argmax argmin sort topk gather scatter.src scatter.value"
_RECURRENT = "lstm.input gru.input rnn_tanh.input rnn_relu.input"
_INDEXING = """
    embedding index.Tensor index_select slice.Tensor select.int split.Tensor split_with_sizes chunk unbind.int
    slice_scatter select_scatter
"""
_SHAPE = """
    cat stack view reshape permute transpose.int flatten.using_ints unflatten.int unsqueeze squeeze.dim squeeze.dims
    expand expand_as roll flip repeat tril triu diagonal sym_size.int
"""
_FACTORY = "zeros ones full zeros_like ones_like full_like new_zeros arange arange.start arange.start_step"


def _full_name(name: str) -> str:
    return f"aten.{name}" if "." in name else f"aten.{name}.default"


#: Exact `aten.<name>.<overload>` strings.
ATEN: frozenset[str] = frozenset(
    _full_name(name)
    for group in (
        _CONVOLUTION,
        _PRODUCT,
        _NORMALISATION,
        _POOLING,
        _RESAMPLING,
        _ACTIVATION,
        _ARITHMETIC,
        _IDENTITY,
        _ORDER,
        _RECURRENT,
        _INDEXING,
        _SHAPE,
        _FACTORY,
    )
    for name in group.split()
)

#: Arithmetic on sizes.
SYM: frozenset[str] = frozenset({"sym.add", "sym.sub", "sym.mul", "sym.floordiv", "sym.mod", "sym.neg"})

GETITEM = "getitem"

#: Every operator beside the two leaves `input` and `tensor`.
OPERATORS: frozenset[str] = ATEN | SYM | {GETITEM}

#: Element types by torch name, with their safetensors name and size in bytes.
DTYPES: dict[str, tuple[str, int]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
