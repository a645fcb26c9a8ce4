import numpy as np

from grandrounds.deploy.audit.directions import Directions


def directions(dimension: int = 100, seed: bytes = bytes(32)) -> Directions:
    return Directions(dimension=dimension, seed=seed)


def test_all_directions_are_orthonormal() -> None:
    rows = directions().rows(range(100))
    np.testing.assert_allclose(rows @ rows.T, np.eye(100), atol=1e-12)


def test_coordinates_are_inner_products_with_the_first_directions() -> None:
    vector = np.random.default_rng(1).integers(-1000, 1000, 100)
    rows = directions().rows(range(7))
    np.testing.assert_allclose(directions().coordinates(vector, 7), rows @ vector, rtol=1e-9)


def test_another_seed_has_other_directions_and_the_same_seed_the_same() -> None:
    assert np.array_equal(directions().rows([3]), directions().rows([3]))
    assert not np.allclose(directions().rows([3]), directions(seed=b"1" * 32).rows([3]))
