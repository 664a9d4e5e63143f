"""Model FLOPs of an update, and peak FLOP/s of devices: MFU is FLOPs / seconds / peak.

The count contains the FLOPs that the model needs, once. It excludes the optimizer and recomputation: gradient
checkpointing repeats the layers' forward pass (4/3 of their FLOPs), and chunks of the LM head repeat the head's.
Source: Chowdhery et al. 2022, arXiv 2204.02311, appendix B, except for two terms, which only lower the count: attention
is causal, so half of its square is counted, and the LM head runs at targets only.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_benchmark.architecture import Architecture

# Dense bf16 with float32 accumulation, TFLOP/s, from the vendors' data sheets. The first key in a device name applies.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def update_flops(architecture: Architecture, lengths: Sequence[int], targets: int, *, trains_all: bool = True) -> float:
    """Return FLOPs of forward and backward pass: 6 · (N_layers · tokens + N_head · targets) + 6 · L · heads · D · Σ T².

    Args:
        lengths: T of each sequence, tokens.
        targets: number of positions at which the LM head runs.
        trains_all: False for an adapter beside frozen weights, which need no gradient: the first 6 becomes 4. The
            adapter's own FLOPs are not counted.
    """
    passes = 6 if trains_all else 4
    matrices = architecture.layer_parameters * sum(lengths) + architecture.head_parameters * targets
    width = architecture.layers * architecture.heads * architecture.head_dim
    return float(passes * matrices + 6 * width * sum(length**2 for length in lengths))


def peak_tflops(device_name: str) -> float | None:
    """Return the peak of a device from the table, TFLOP/s, or None."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)
