"""Benchmarks: what a classifier learns from synthetic notes, beside what it learns from real ones."""
