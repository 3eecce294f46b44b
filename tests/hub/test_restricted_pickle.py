"""Foreign checkpoints are read as data: nothing that they name is ever run."""

from __future__ import annotations

import argparse
import collections
import enum
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.hub.restricted_pickle import (
    Inert,
    LazyTensor,
    RefusedPickle,
    load_tensors,
    plain,
    read_torch_file,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package `fairseq` for the time of writing only."""
    module = types.ModuleType("fairseq.data.dictionary")
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, module)
    return module


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_come_back(zipped: bool, tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "f32": base.view(4, 6),
        "transposed": base.view(4, 6).t(),
        "part": base[5:11],
        "half": torch.randn(3, 2).half(),
        "bf16": torch.randn(3, 2).bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    path = tmp_path / "x.pt"
    torch.save({"model": state, "n": 3}, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert found["n"] == 3
    assert all(isinstance(v, LazyTensor) for v in found["model"].values())
    loaded = dict(load_tensors(found["model"]))
    assert loaded.keys() == state.keys()
    for name, want in state.items():
        assert loaded[name].dtype == want.dtype
        assert torch.equal(loaded[name], want.detach()), name


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_fairseq_become_inert_records(
    zipped: bool, tmp_path: Path, fake: types.ModuleType
) -> None:
    class Dictionary:
        def __init__(self) -> None:
            self.symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", "E"]

    class Choice(enum.Enum):
        layer = "layer_norm"

    for kind, name in ((Dictionary, "Dictionary"), (Choice, "Choice")):
        kind.__module__, kind.__qualname__ = "fairseq.data.dictionary", name
        setattr(fake, name, kind)
    content = {
        "args": argparse.Namespace(arch="hubert", layers=12, mode=Choice.layer),
        "task_state": {"dictionaries": [Dictionary()]},
        "score": np.float64(0.5),
        "history": collections.OrderedDict(a=[1, (2, 3)], b={4}),
    }
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    del sys.modules["fairseq"], sys.modules["fairseq.data"], sys.modules["fairseq.data.dictionary"]
    found = read_torch_file(path)
    assert isinstance(found["args"], Inert) and found["args"].origin == "argparse.Namespace"
    assert plain(found["args"]) == {"arch": "hubert", "layers": 12, "mode": "layer_norm"}
    assert plain(found["task_state"])["dictionaries"][0]["symbols"][-1] == "E"
    assert isinstance(found["score"], Inert)
    assert found["history"] == {"a": [1, (2, 3)], "b": {4}}
    assert "fairseq" not in sys.modules


def test_containers_of_omegaconf_become_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shaped as omegaconf pickles them: `_content` of nodes, each with `_val` and its parent."""
    module = types.ModuleType("omegaconf")
    for name in ("DictConfig", "ListConfig", "AnyNode", "ContainerMetadata"):
        kind = type(name, (), {"__module__": "omegaconf"})
        setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, "omegaconf", module)

    def node(value: Any, parent: Any) -> Any:
        made = module.AnyNode()
        made.__dict__ |= {"_val": value, "_parent": parent}
        return made

    config = module.DictConfig()
    inner = module.ListConfig()
    inner.__dict__ |= {"_content": [node(1, inner), node(2, inner)], "_parent": config}
    config.__dict__ |= {
        "_metadata": module.ContainerMetadata(),
        "_parent": None,
        "_content": {"layers": node(12, config), "list": inner, "normalize": node(True, config)},
    }
    torch.save({"cfg": config}, tmp_path / "x.pt")
    monkeypatch.delitem(sys.modules, "omegaconf")
    found = read_torch_file(tmp_path / "x.pt")
    assert plain(found["cfg"]) == {"layers": 12, "list": [1, 2], "normalize": True}


EVIL: dict[str, Any] = {
    "os.system": lambda p: Calls(os.system, f"touch {p}"),
    "eval": lambda p: Calls(eval, f"open({str(p)!r}, 'w')"),
    "exec": lambda p: Calls(exec, f"open({str(p)!r}, 'w')"),
    "open": lambda p: Calls(open, str(p), "w"),
    "torch.load": lambda p: Calls(torch.load, str(p)),
    "importlib": lambda p: Calls(__import__, "antigravity"),
    "partial": lambda p: Calls(__import__("functools").partial, os.system, f"touch {p}"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", EVIL)
def test_a_malicious_file_is_refused_and_does_not_run(
    what: str, zipped: bool, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    content = {"model": {"w": torch.zeros(2)}, "args": EVIL[what](victim)}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedPickle, match=r"refused: it asks for .* nothing in the file was run"):
        read_torch_file(tmp_path / "x.pt")
    assert not victim.exists()


def _raw(path: Path, code: bytes) -> None:
    """A zip of torch whose pickle is written by hand."""
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.path\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        # Setting attributes of an admitted function, and of an admitted class.
        b"ctorch._utils\n_rebuild_tensor_v2\n(dS'__defaults__'\n)sb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'_call'\nNstb.",
        # An object made without its class's __new__.
        b"ccopy_reg\n_reconstructor\n(ccollections\nOrderedDict\nc__builtin__\nobject\nNtR.",
        b"P1\n.",
    ],
)
def test_handmade_pickles_are_refused(code: bytes, tmp_path: Path) -> None:
    _raw(tmp_path / "x.pt", code)
    with pytest.raises(RefusedPickle):
        read_torch_file(tmp_path / "x.pt")


def test_getattr_in_a_file_is_only_a_record(tmp_path: Path) -> None:
    torch.save({"x": Calls(getattr, "abc", "upper")}, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")["x"]
    assert isinstance(found, Inert) and found.arguments == ("abc", "upper")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02K\x01.", b"RIFFxxxxWAVE"])
def test_other_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt"):
        read_torch_file(tmp_path / "x.pt")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(1000)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="ends after 3900 of 4000 bytes"):
        read_torch_file(tmp_path / "x.pt")["w"].load()


def test_a_view_beyond_its_storage_is_an_error(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(10)}, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")["w"]
    beyond = LazyTensor(found.storage, 5, (10,), (1,), torch.float32)
    with pytest.raises(RuntimeError, match="out of bounds"):
        beyond.load()


def test_what_we_refuse_pickle_itself_would_have_run(tmp_path: Path) -> None:
    """The refusal is worth something only if the file works."""
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(EVIL["os.system"](victim)))
    assert victim.exists()
