"""Sweeps over λ and seeds: plan, runs, results and verdicts."""
