import gzip
import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from fake_data import idx_bytes, python2_pickle, python3_pickle

from datamodules.files import DataError, read_idx, read_pickle, require, require_folder

KEYS = ("data", "labels")
BATCH = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [3, 1, 2]}
VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some_file"


def fault(read, *arguments):
    """Message of the DataError that reading must end with."""
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return str(caught.value)


def test_require_names_a_file_that_is_missing_or_altered(path):
    message = fault(require, path)
    assert f"{path} is missing" in message
    assert "--data.root" in message
    assert "--data.download true" in message
    assert f"{path.parent} is missing" in fault(require, path.parent)  # a folder is no file
    path.write_bytes(b"content")
    assert require(path) == require(path, "9a0364b9e99bb480dd25e1f0284c8555") == path
    path.write_bytes(b"Content")
    message = fault(require, path, "9a0364b9e99bb480dd25e1f0284c8555")
    assert f"{path} is damaged" in message
    assert "9a0364b9e99bb480dd25e1f0284c8555" in message


def test_require_folder_names_a_missing_folder_and_what_it_should_hold(path):
    assert require_folder(path.parent, "images") == path.parent
    assert f"{path} (images) is missing" in fault(require_folder, path, "images")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_idx(tmp_path, suffix):
    path, content = tmp_path / f"values{suffix}", idx_bytes(VALUES)
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert np.array_equal(read_idx(path), VALUES)
    assert read_idx(path).dtype == np.uint8


CONTENT = idx_bytes(VALUES)
DAMAGED_IDX = {
    "empty": b"",
    "header cut off": CONTENT[:9],
    "values cut off": CONTENT[:-1],
    "values missing": CONTENT[:16],
    "more values than promised": CONTENT + b"\0",
    "does not begin with zeros": b"\1" + CONTENT[1:],
    "not unsigned bytes": CONTENT[:2] + b"\x0d" + CONTENT[3:],
    "some text": b"<html>404 Not Found</html>",
    "impossible size": struct.pack(">HBB4I", 0, 0x08, 4, 2**31, 2**31, 2**31, 2**31),
}


@pytest.mark.parametrize("content", DAMAGED_IDX.values(), ids=DAMAGED_IDX)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_names_an_idx_file_that_is_damaged_inside(tmp_path, content, suffix):
    path = tmp_path / f"values{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert f"{path} is damaged" in fault(read_idx, path)


def test_names_a_gzip_file_that_is_damaged(tmp_path):
    path, packed = tmp_path / "values.gz", gzip.compress(CONTENT)
    wrong_byte = [packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :] for place in (0, 12, 30)]
    for content in (CONTENT, *wrong_byte, *(packed[:end] for end in (1, 5, 12, -9, -4, -1))):
        path.write_bytes(content)
        assert f"{path} is damaged" in fault(read_idx, path)


PICKLERS = {
    "Python 2": python2_pickle,
    "Python 3": python3_pickle,
    "protocol 2": lambda batch: pickle.dumps(batch, protocol=2),
    "protocol 4": lambda batch: pickle.dumps(batch, protocol=4),
    "protocol 5": lambda batch: pickle.dumps(batch, protocol=5),
}


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_reads_pickled_batches(path, dump, dtype):
    path.write_bytes(dump({"data": BATCH["data"].astype(dtype), "labels": [3, 1, 2], "note": "n° 1"}))
    batch = read_pickle(path, KEYS)
    assert np.array_equal(batch["data"], BATCH["data"])
    assert batch["data"].dtype == dtype
    assert batch["labels"] == [3, 1, 2]
    assert batch["note"] == "n° 1"


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
def test_reads_arrays_that_are_stored_column_by_column_or_with_the_high_byte_first(path, dump):
    data = np.arange(12).reshape(3, 4)
    path.write_bytes(dump({"data": np.asfortranarray(data), "labels": data.astype(">i8")}))
    batch = read_pickle(path, KEYS)
    assert np.array_equal(batch["data"], data)
    assert np.array_equal(batch["labels"], data)


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
def test_reads_numbers_of_numpy_in_lists(path, dump):
    path.write_bytes(dump({"data": BATCH["data"], "labels": [np.int64(3), np.uint8(200), np.float32(0.5)]}))
    assert read_pickle(path, KEYS)["labels"] == [3, 200, 0.5]


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
def test_names_a_pickle_that_was_cut_off_anywhere_or_is_none(path, dump):
    content = dump(BATCH)
    for something in (*(content[:length] for length in range(0, len(content), 5)), bytes(100), b"<html>404 Not Found"):
        path.write_bytes(something)
        assert f"{path} is damaged" in fault(read_pickle, path, KEYS)


@pytest.mark.parametrize("batch", [{"data": 1}, {}, [1, 2], "data labels", None])
def test_names_a_pickle_that_lacks_a_key(path, batch):
    path.write_bytes(pickle.dumps(batch, protocol=2))
    message = fault(read_pickle, path, KEYS)
    assert f"{path} is not a data batch" in message
    assert "data or labels" in message


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_runs_nothing_that_a_pickle_asks_for(tmp_path, path, protocol):
    mark = tmp_path / "was_run"
    content = pickle.dumps(BATCH | {"note": Calls(os.system, f"touch '{mark}'")}, protocol=protocol)
    path.write_bytes(content)
    message = fault(read_pickle, path, KEYS)
    assert not mark.exists()
    assert str(path) in message
    assert f"{os.system.__module__}.system" in message
    assert "Nothing in it was run" in message
    pickle.loads(content)
    assert mark.exists()  # the attack works on an ordinary unpickler


FORBIDDEN = {
    "eval": Calls(eval, "1 + 1"),
    "exec": Calls(exec, "pass"),
    "getattr": Calls(getattr, "text", "upper"),
    "open": Calls(open, os.devnull),
    "numpy function": Calls(np.load, os.devnull),
    "numpy scalar type": np.float64,
    "a class": io.BytesIO,
}


@pytest.mark.parametrize("wanted", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("protocol", [2, 4])
def test_refuses_all_but_arrays_and_plain_values(path, wanted, protocol):
    path.write_bytes(pickle.dumps(BATCH | {"note": wanted}, protocol=protocol))
    message = fault(read_pickle, path, KEYS)
    assert "which no image data set needs" in message
    assert str(path) in message


class ForgedDtype:
    """Unpickles as the dtype of Python objects, with the flags of one of plain bytes."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class ForgedArray:
    """Unpickles as an array of eight bytes that numpy takes for the address of an object."""

    def __reduce__(self):
        build, arguments, _ = np.empty(0, np.uint8).__reduce__()
        return build, arguments, (1, (1,), ForgedDtype(), False, bytes(8))


FORGED = {
    "a method of something allowed": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "wrong byte in the name of an encoding": pickle.dumps(BATCH, protocol=2).replace(b"latin1", b"lotin1"),
    "bytes to be taken for the address of an object": pickle.dumps(BATCH | {"data": ForgedArray()}, protocol=2),
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_names_a_pickle_that_is_forged(path, content):
    path.write_bytes(content)
    assert f"{path} is damaged" in fault(read_pickle, path, KEYS)


def test_a_forged_place_in_the_memo_takes_no_memory(path):
    path.write_bytes(b"\x80\x02Nr" + (3_000_000).to_bytes(4, "little") + b".")
    tracemalloc.start()
    try:
        assert f"{path} is not a data batch" in fault(read_pickle, path, KEYS)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # 48 MB with the unpickler in C
    finally:
        tracemalloc.stop()
