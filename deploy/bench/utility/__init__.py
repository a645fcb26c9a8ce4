"""Benchmarks: how useful an adapter is by each way of training it, on the same patients and from the same start."""
