"""Where the pieces are put together: command line, simulation, benchmarks."""
