"""Every module imports where none of the optional packages is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BLOCKED = [
    "k2", "torchaudio", "librosa", "espeakng_loader", "flashlight", "kenlm", "jiwer",
    "matplotlib", "tensorboard", "transformers", "sklearn", "faiss", "h5py", "huggingface_hub",
    "peft", "torchcodec", "pesq", "pystoi",
]  # fmt: skip

PROGRAM = """
import importlib, importlib.abc, pathlib, sys, traceback

blocked = set(sys.argv[2].split(","))

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked by the test", name=name)
        return None

sys.meta_path.insert(0, Block())
root = pathlib.Path(sys.argv[1])
failed = 0
for file in sorted((root / "speechssl").rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] == "__main__":
        continue
    try:
        importlib.import_module(name)
    except Exception:
        failed += 1
        print(f"--- {name}")
        traceback.print_exc(limit=-3, file=sys.stdout)
print("modules failed:", failed)
loaded = sorted(blocked & set(sys.modules))
print("blocked but loaded:", loaded)
sys.exit(bool(failed or loaded))
"""


def test_every_module_imports_with_all_optional_packages_absent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), ",".join(BLOCKED)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_block_itself_blocks() -> None:
    probe = PROGRAM.replace('for file in sorted((root / "speechssl").rglob("*.py")):',
                            "import jiwer\nfor file in []:")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", probe, str(ROOT), ",".join(BLOCKED)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "jiwer is blocked" in done.stderr
