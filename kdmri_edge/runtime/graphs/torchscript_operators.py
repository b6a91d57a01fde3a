"""Operators that the code of a TorchScript archive may call: arithmetic on its tensors.

None of them reads or writes a file, starts something, or prints. What is missing makes an archive
one of unknown origin, which has to be allowed by name.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BUILTINS", "OPS", "TORCH"]

BUILTINS: Final = frozenset(
    ("annotate", "unchecked_cast", "int", "float", "bool", "complex", "len")
)
"""What is called by its bare name: conversions, and notes on types."""

OPS: Final = frozenset(
    f"{space}.{name}"
    for space, names in {
        "quantized": "conv2d conv2d_relu conv_transpose2d linear linear_relu add add_relu mul cat"
        " leaky_relu batch_norm2d instance_norm group_norm layer_norm",
        "prim": "NumToTensor data device dtype shape",
    }.items()
    for name in names.split()
)
"""What is called as ops.NAMESPACE.NAME."""

_ARITHMETIC: Final = """
    abs absolute add addcdiv addcmul addmm addmv baddbmm bmm ceil clamp clamp_max clamp_min clip
    clone complex conj conj_physical copysign cos cosh cross cumprod cumsum deg2rad diff div
    divide dot einsum erf erfc exp exp2 expm1 fix float_power floor floor_divide fmod frac hypot
    imag inner inverse kron lerp linalg_cross linalg_matmul linalg_norm linalg_vecdot
    linalg_vector_norm log log10 log1p log2 logaddexp logsumexp matmul maximum minimum mm mul
    multiply mv nan_to_num neg negative norm outer polar positive pow prod rad2deg real
    reciprocal remainder resolve_conj resolve_neg round rsqrt rsub sgn sigmoid sign sin sinc
    sinh sqrt square std std_mean sub subtract sum tan tanh tensordot true_divide trunc var
    var_mean view_as_complex view_as_real angle arctan2 atan atan2 acos asin mean median nanmean
    nansum amax amin aminmax argmax argmin max min all any cummax cummin count_nonzero
"""
_COMPARISONS: Final = """
    eq equal ge gt isclose isfinite isinf isnan le logical_and logical_not logical_or
    logical_xor lt ne where bitwise_and bitwise_not bitwise_or
"""
_LAYERS: Final = """
    _convolution _convolution_mode conv1d conv2d conv3d convolution conv_transpose1d
    conv_transpose2d conv_transpose3d linear bilinear batch_norm native_batch_norm group_norm
    instance_norm layer_norm rms_norm local_response_norm relu relu6 leaky_relu elu celu selu
    gelu silu mish hardtanh hardswish hardsigmoid softplus softshrink hardshrink tanhshrink
    threshold prelu rrelu log_sigmoid glu softmax log_softmax dropout feature_dropout
    alpha_dropout avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
    max_pool2d_with_indices max_unpool2d lp_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool2d pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
    upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa grid_sampler grid_sampler_2d affine_grid_generator im2col col2im
    scaled_dot_product_attention embedding one_hot cosine_similarity
"""
_FOURIER: Final = """
    fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2
    fft_irfft2 fft_rfftn fft_irfftn fft_fftshift fft_ifftshift fft_hfft fft_ihfft _fft_c2c
    _fft_r2c _fft_c2r
"""
_SHAPES: Final = """
    adjoint alias as_strided atleast_2d copy broadcast_tensors broadcast_to cat chunk
    column_stack concat concatenate constant_pad_nd contiguous copy_ detach diag diag_embed
    diagonal dim expand expand_as fill_ flatten flip fliplr flipud gather hsplit hstack index
    index_put index_put_ index_select is_complex is_floating_point lift_fresh masked_fill
    masked_select matrix_H mH mT meshgrid moveaxis movedim narrow numel numpy_T pad permute
    ravel reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d
    replication_pad2d reshape reshape_as roll rot90 scatter scatter_add select size slice split
    split_with_sizes squeeze stack sym_size t take take_along_dim tensor_split tile to to_dense
    transpose tril triu type_as unbind unflatten unfold unsqueeze unsqueeze_ view view_as vsplit
    vstack zero_ squeeze_ transpose_
"""
_MAKING: Final = """
    arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor
    tensor zeros zeros_like hann_window hamming_window blackman_window bartlett_window
"""
_IN_PLACE: Final = """
    abs_ add_ addcmul_ clamp_ clamp_max_ clamp_min_ cos_ div_ dropout_ elu_ exp_ floor_ gelu_
    hardtanh_ hardswish_ leaky_relu_ log_ masked_fill_ mul_ neg_ pow_ reciprocal_ relu_ relu6_
    round_ rsqrt_ selu_ sigmoid_ silu_ sin_ sqrt_ sub_ tanh_ threshold_ celu_ mish_ hardsigmoid_
"""
_INTEGERS: Final = """
    quantize_per_tensor quantize_per_channel dequantize fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine int_repr q_scale q_zero_point
"""
_NUMBERS: Final = """
    Bool Float FloatImplicit Int IntImplicit ScalarImplicit Complex len item __and__ __or__
    __not__ __is__ __isnot__ __contains__ __getitem__ device dtype append list numpy_T
    is_nonzero
"""

TORCH: Final = frozenset(
    (
        _ARITHMETIC + _COMPARISONS + _LAYERS + _FOURIER + _SHAPES + _MAKING + _IN_PLACE
        + _INTEGERS + _NUMBERS
    ).split()
)  # fmt: skip
"""What is called as torch.NAME."""
