"""Model FLOPs of an update, and what a device can do: MFU is their quotient over the seconds.

Counted is what the model needs, once: recomputing (gradient checkpointing runs the layers a second time, which makes
4/3 of the layers' FLOPs; so do chunks of the LM head) and the optimizer are not. Chowdhery et al. 2022, arXiv
2204.02311, appendix B, but for two terms that only lower it: attention is causal, so half of its square, and the LM
head runs at targets alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_benchmark.architecture import Architecture

# Dense bf16 with float32 accumulation, TFLOP/s, by the vendor's data sheets; looked for in the device's name, in order.
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
    """FLOPs of a forward and a backward pass: 6 · (N_layers · tokens + N_head · targets) + 6 · L · heads · D · Σ T².

    Args:
        lengths: T of each sequence, tokens.
        targets: positions that the LM head runs at.
        trains_all: False for an adapter beside frozen weights, which need no gradient: 4 in the place of the first 6.
            The adapter's own are left out.
    """
    passes = 6 if trains_all else 4
    matrices = architecture.layer_parameters * sum(lengths) + architecture.head_parameters * targets
    width = architecture.layers * architecture.heads * architecture.head_dim
    return float(passes * matrices + 6 * width * sum(length**2 for length in lengths))


def peak_tflops(device_name: str) -> float | None:
    """The table's entry for a device, or None."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)
