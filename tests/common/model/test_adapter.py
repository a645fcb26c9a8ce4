import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.errors import EnvelopeError, ModelError
from grandrounds.common.model.adapter import AdapterLayout, vector_bytes, vector_from_bytes, vector_sha256

SHAPES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4
)


@given(SHAPES)
def test_flattening_and_cutting_again_gives_the_same_tensors(shapes):
    layout = AdapterLayout.of(shapes)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.dimension,)
    for name, tensor in layout.unflatten(vector).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_the_layout_does_not_depend_on_the_order_of_the_tensors():
    shapes = {"b": (2, 3), "a": (4,), "c": (1, 1)}
    layouts = {AdapterLayout.of(dict(order)) for order in itertools.permutations(shapes.items())}
    assert len(layouts) == 1
    assert len({layout.sha256 for layout in layouts}) == 1


def test_the_hash_tells_names_and_shapes_apart():
    layouts: list[dict[str, tuple[int, ...]]]
    layouts = [{"a": (2, 3)}, {"a": (3, 2)}, {"b": (2, 3)}, {"a": (6,)}, {"a": (2,), "b": (3,)}, {}]
    assert len({AdapterLayout.of(shapes).sha256 for shapes in layouts}) == len(layouts)


def test_a_layout_out_of_order_is_refused():
    with pytest.raises(ModelError):
        AdapterLayout((("b", (1,)), ("a", (1,))))


@pytest.mark.parametrize("tensors", [{"a": np.zeros((3, 2))}, {"b": np.zeros((2, 3))}, {}])
def test_tensors_of_another_layout_are_refused(tensors):
    with pytest.raises(ModelError):
        AdapterLayout.of({"a": (2, 3)}).flatten(tensors)


@pytest.mark.parametrize("shape", [(5,), (7,), (2, 3), (0,)])
def test_a_vector_of_another_length_is_refused(shape):
    with pytest.raises(ModelError):
        AdapterLayout.of({"a": (2, 3)}).unflatten(np.zeros(shape, dtype=np.float32))


def test_bytes_are_little_endian_float32_and_come_back():
    vector = np.array([1.0, -2.0, 0.1], dtype=np.float32)
    assert vector_bytes(vector).hex() == "0000803f000000c0cdcccc3d"
    assert vector_bytes(vector.astype(">f4")) == vector_bytes(vector)
    np.testing.assert_array_equal(vector_from_bytes(vector_bytes(vector), dimension=3), vector)
    assert vector_sha256(vector) == hashlib.sha256(vector_bytes(vector)).hexdigest()


@pytest.mark.parametrize("payload", [b"", b"\0" * 11, b"\0" * 16])
def test_bytes_of_another_length_are_refused(payload):
    with pytest.raises(EnvelopeError):
        vector_from_bytes(payload, dimension=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_adapter_that_is_not_finite_is_refused(value):
    with pytest.raises(EnvelopeError):
        vector_from_bytes(vector_bytes(np.array([0.0, value], dtype=np.float32)), dimension=2)
