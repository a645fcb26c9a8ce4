"""Benchmarks: what a piece costs on this machine, beside a named baseline, in one run."""
