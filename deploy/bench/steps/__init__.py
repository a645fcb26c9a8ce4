"""Benchmarks of a private training step, beside the same step without privacy, on processors and on GPUs."""
