"""Workload, contenders and measurement of `scripts/benchmark-hf` and `scripts/benchmark_gpu`."""
