"""Read torch files with pickled settings and dictionaries, running nothing of theirs.

Checkpoints of fairseq keep objects of fairseq, argparse and omegaconf beside their tensors, so
torch's own weights-only reader refuses them, and only fairseq itself could unpickle them. Here
such an object becomes an `Inert`: a record of what it was made of, without behaviour. Tensors
become `LazyTensor`s, which are read when they are asked for, so optimiser states cost nothing. A
name that is in neither list below ends the reading with an error.

Both of torch's formats are read: zip archives, and the older sequence of pickles.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

MAX_PICKLE_BYTES = 2**28
INERT_ROOTS = frozenset({"omegaconf", "argparse", "typing", "hydra", "enum", "pathlib", "numpy"})
"""Packages of which every name becomes an inert record; so do fairseq* and its user folders."""
INERT_NAMES = frozenset(
    {"builtins.getattr", "builtins.object", "builtins.str", "builtins.bytes", "builtins.type",
     "_codecs.encode", "collections.defaultdict", "torch.device", "torch.Tensor"}
)  # fmt: skip
SAFE = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": collections.OrderedDict,
    "torch.Size": tuple,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.bool": bool,
    "builtins.complex": complex,
}
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class RefusedPickle(ValueError):
    """The file asks for something that is neither a tensor nor a setting."""


class Inert:
    """What an object of a foreign class was made of.

    origin: the name of its class, or of the function that was to make it.
    arguments, state, items, pairs: what the pickle handed to the class, to `__setstate__`, to
        `append`, and to item assignment.
    """

    origin = ""

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        self = object.__new__(cls)
        self.__dict__ = {"arguments": arguments, "state": None, "items": [], "pairs": {}}
        return self

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["pairs"][key] = value

    def append(self, item: Any) -> None:
        self.__dict__["items"].append(item)

    add = append

    def extend(self, items: Any) -> None:
        self.__dict__["items"].extend(items)

    def __repr__(self) -> str:
        return f"<{self.origin}>"


@dataclasses.dataclass
class Storage:
    """Numbers in the file: `count` of `dtype` from byte `start`, once the file's end is known."""

    path: Path
    dtype: torch.dtype
    count: int
    start: int = -1

    def load(self) -> Tensor:
        """(count,) as they lie in the file."""
        size = self.count * self.dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=self.dtype)
        raw = np.fromfile(self.path, np.uint8, size, offset=self.start)
        if len(raw) != size:
            raise ValueError(f"{self.path}: ends after {len(raw)} of {size} bytes of a tensor")
        return torch.from_numpy(raw).view(self.dtype)


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        flat = self.storage.load().view(self.dtype)
        # as_strided checks that the view lies within the numbers read.
        return flat.as_strided(self.shape, self.stride, self.offset).contiguous()


class _Function:
    """A function that pickles may call; unlike a Python function, they can set nothing on it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RefusedPickle("the file sets attributes of a function")

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickle("the file sets the state of a function")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> LazyTensor:
    return _typed_tensor(storage, offset, shape, stride, None, None, storage.dtype)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> LazyTensor:
    numbers = (int(offset), *map(int, shape), *map(int, stride))
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or min(numbers) < 0:
        raise RefusedPickle("the file describes a tensor without storage or with negative sizes")
    return LazyTensor(storage, numbers[0], tuple(map(int, shape)), tuple(map(int, stride)), dtype)


def _from_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(function, _Function):
        raise RefusedPickle(f"the file makes a tensor by {function!r}")
    return function(*arguments)


def _reconstruct(kind: Any, *_: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise RefusedPickle(f"the file reconstructs {kind!r}")
    return kind()


FUNCTIONS = {
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_tensor_v3": _Function(_typed_tensor),
    "torch._utils._rebuild_parameter": _Function(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _Function(_from_type),
    "copyreg._reconstructor": _Function(_reconstruct),
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path, storages: dict[str, Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.storages = path, storages
        self.kinds: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in SAFE:
            return SAFE[full]
        if full in FUNCTIONS:
            return FUNCTIONS[full]
        if module in ("torch", "torch.storage"):
            if name in STORAGES:
                return STORAGES[name]
            if isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
        root = module.split(".")[0]
        if full in INERT_NAMES or root in INERT_ROOTS or _of_fairseq(root):
            return self.kinds.setdefault(full, type("Inert", (Inert,), {"origin": full}))
        raise RefusedPickle(
            f"{self.path}: refused: it asks for {full}, which is neither a tensor nor a setting; "
            "nothing in the file was run"
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not (isinstance(pid, tuple) and 5 <= len(pid) <= 6 and pid[0] == "storage"):
            raise RefusedPickle(f"{self.path}: refused: found the reference {pid!r}")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0:
            raise RefusedPickle(f"{self.path}: refused: found a storage of {dtype!r}, {count!r}")
        if len(pid) == 6 and pid[5] is not None:
            raise RefusedPickle(f"{self.path}: refused: storages that are parts of others")
        return self.storages.setdefault(str(key), Storage(self.path, dtype, count))


def _of_fairseq(root: str) -> bool:
    return root.startswith("fairseq") or root == "examples"


def read_torch_file(path: str | Path) -> Any:
    """The object that `torch.save` wrote, of plain containers, `LazyTensor` and `Inert`.

    Raises `RefusedPickle` if it holds anything else, and `ValueError` if it is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(path, file)
            file.seek(0)
            return _read_legacy(path, file)
    except RefusedPickle:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # a broken pickle raises anything
        raise ValueError(
            f"{path}: found no torch file that can be read ({type(error).__name__}: {error})"
        ) from None


def _read_zip(path: Path, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries or "constants.pkl" in entries:
            raise ValueError(f"{path}: found a zip file without data.pkl, want one of torch.save")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError(f"{path}: found big-endian numbers, want little-endian ones")
        storages: dict[str, Storage] = {}
        if entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{path}: found a data.pkl above {MAX_PICKLE_BYTES} bytes")
        content = _Reader(io.BytesIO(archive.read(entries["data.pkl"])), path, storages).load()
    for key, storage in storages.items():
        info = entries.get(f"data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: found no uncompressed data/{key}")
        if info.file_size < storage.count * storage.dtype.itemsize:
            raise ValueError(
                f"{path}: data/{key} has {info.file_size} bytes, fewer than its tensor"
            )
        file.seek(info.header_offset + 26)
        storage.start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return content


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _read_legacy(path: Path, file: IO[bytes]) -> Any:
    storages: dict[str, Storage] = {}

    def read() -> Any:
        return _Reader(file, path, storages).load()

    if read() != _LEGACY_MAGIC:
        raise ValueError(f"{path}: found another kind of file, want one of torch.save")
    read()  # the protocol version
    if not read().get("little_endian", True):
        raise ValueError(f"{path}: found big-endian numbers, want little-endian ones")
    content = read()
    position = None
    for key in read():
        storage = storages[str(key)]
        position = file.tell() if position is None else position
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.count:
            raise ValueError(f"{path}: found {count} numbers of storage {key}, not {storage.count}")
        storage.start = position + 8
        position = storage.start + count * storage.dtype.itemsize
    return content


def load_tensors(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, read one after the other; anything else is an error."""
    for name, value in values.items():
        if not isinstance(value, LazyTensor):
            raise ValueError(f"{name}: found {type(value).__name__}, want a tensor")
        yield name, value.load()


def plain(value: Any, depth: int = 0) -> Any:
    """Settings as dicts, lists, strings and numbers, whichever objects held them.

    Knows argparse.Namespace and dataclasses (their state), omegaconf's containers and nodes, and
    enum members (their value).
    """
    if depth > 60:
        raise ValueError("settings: found more than 60 levels, want a tree")
    if isinstance(value, Mapping):
        return {k: plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    if not isinstance(value, Inert):
        return value
    if isinstance(value.state, Mapping):
        for key in ("_content", "_val"):
            if key in value.state:
                return plain(value.state[key], depth + 1)
        return plain(value.state, depth + 1)
    if value.pairs or value.items:
        return plain(value.pairs or value.items, depth + 1)
    return plain(value.arguments[0], depth + 1) if len(value.arguments) == 1 else repr(value)
