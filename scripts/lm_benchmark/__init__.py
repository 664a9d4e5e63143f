"""What `scripts/benchmark-hf` and `scripts/benchmark_gpu` time: the work, who does it, and how it is measured."""
