import doctest

from grandrounds.deploy.bench import noise


def test_the_benchmark_measures_both_samplers_and_prints_a_line() -> None:
    figures = noise.bench_noise(count=20_000, stddev=1 << 17)
    assert set(figures) == {"draws_per_s", "numpy_ratio"}
    assert all(value > 0 for value in figures.values())
    assert "draws/s" in noise.noise_line(figures)


def test_the_example_of_the_printed_line_holds() -> None:
    assert doctest.testmod(noise).failed == 0
