"""Arrays as bytes: what numpy and Flower read, what is refused."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedquilt import npy

DTYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1"])


@given(DTYPES.flatmap(lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, min_side=0, max_dims=3))))
def test_an_array_comes_back_with_its_bits(array):
    back = npy.unpack(npy.pack(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(DTYPES.flatmap(lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, min_side=0, max_dims=3))))
def test_numpy_and_flower_read_the_same_bytes(array):
    data = npy.pack(array)
    assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == array.tobytes()
    assert Array(str(array.dtype), array.shape, "numpy.ndarray", data).numpy().tobytes() == array.tobytes()


def test_an_array_in_fortran_order_travels_in_c_order():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert npy.unpack(npy.pack(array)).tolist() == array.tolist()


def test_a_decoded_array_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        npy.unpack(npy.pack(np.zeros(3)))[0] = 1


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.array(["text"]), np.array([1 + 2j]), np.zeros(2, ">f4")],
    ids=["object", "text", "complex", "big-endian"],
)
def test_only_plain_little_endian_numbers_are_read(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"header|bytes"):
        npy.unpack(buffer.getvalue())


@given(st.data())
def test_mutated_bytes_give_an_array_or_a_value_error(data):
    whole = bytearray(npy.pack(np.arange(12, dtype=np.float32).reshape(3, 4)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(ValueError):
        assert isinstance(npy.unpack(cut), np.ndarray)


def test_a_header_that_promises_more_than_there_is_is_refused_without_allocating():
    data = npy.pack(np.zeros(3, np.float32)).replace(b"(3,)", b"(333333333333333,)")
    with pytest.raises(ValueError, match=r"needs|header"):
        npy.unpack(data)
