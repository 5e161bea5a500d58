"""Reading safetensors: names, shapes and numbers, and nothing that could run.

A file is the header's length in eight bytes, the header in JSON, and the numbers. It is
mapped, not read, so a tensor costs memory only when it is used. Every fault of a file
is an error that names the file and the tensor.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of one file, by name; read-only and lazy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._header, self._start = self._read_header()
        self._data = np.memmap(path, mode="r", dtype=np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._header[name]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise self._fault(
                f"{name} must be of type {', '.join(DTYPES)}", entry["dtype"]
            )
        begin, end = entry["data_offsets"]
        num_bytes = math.prod(entry["shape"]) * np.dtype(dtype).itemsize
        if end - begin != num_bytes:
            raise self._fault(f"{name} must be {num_bytes} bytes long", end - begin)
        raw = self._data[self._start + begin : self._start + end]
        return raw.view(dtype).reshape(entry["shape"])

    def _read_header(self) -> tuple[dict[str, dict], int]:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if self._size < 8 or length > self._size - 8:
                raise self._fault(
                    "the file must be as long as its header says",
                    f"{self._size} bytes. It looks truncated: fetch it again",
                )
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise self._fault("the header must be JSON", str(error)) from None
        if not isinstance(header, dict):
            raise self._fault("the header must be an object", type(header).__name__)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not _describes_tensor(entry):
                raise self._fault(
                    f"{name} must have a dtype, a shape and data_offsets", entry
                )
            if 8 + length + entry["data_offsets"][1] > self._size:
                raise self._fault(
                    f"{name} must lie within the file",
                    f"a file of {self._size} bytes, which ends before it. "
                    "It looks truncated: fetch it again",
                )
        return header, 8 + length

    def _fault(self, rule: str, got: object) -> ValueError:
        return ValueError(f"load_checkpoint: {rule}, got {got}, in {self.path}.")


def _describes_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    lists: list[Any] = [entry.get("shape"), entry.get("data_offsets")]
    if not all(isinstance(one, list) for one in lists) or len(lists[1]) != 2:
        return False
    return all(isinstance(size, int) and size >= 0 for one in lists for size in one)
