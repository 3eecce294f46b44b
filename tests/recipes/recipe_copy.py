"""Recipes in another place, with an environment whose programs only write down their calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>{log}
"""


def lay_out(folder: Path, *recipes: str, note: str = NOTE) -> Path:
    """Copy folders below egs, and tools; return an environment whose programs run `note`.

    {log} in `note` is folder/calls.
    """
    ignore = shutil.ignore_patterns("data", "exp", "*.md")
    for name in (*(f"egs/{r}" for r in recipes), "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    (folder / "tools/setup.sh").write_text("#!/usr/bin/env bash\n")
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "speechssl"):
        (venv / "bin" / name).write_text(note.replace("{log}", str(folder / "calls")))
        (venv / "bin" / name).chmod(0o755)
    return venv


def run_recipe(script: Path, venv: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe with the programs of an environment."""
    return subprocess.run(
        ["bash", str(script), *words], capture_output=True, text=True, check=False,
        env=os.environ | {"SPEECHSSL_VENV": str(venv), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


class RecipeCopy:
    """`recipes`: folders below egs that the recipe needs, its own among them."""

    def __init__(self, folder: Path, *recipes: str) -> None:
        self.folder = folder
        self.venv = lay_out(folder, *recipes)

    def run(self, recipe: str, *words: str, venv: Path | None = None) -> tuple[int, str]:
        """Exit status, and what was shown."""
        done = run_recipe(self.folder / f"egs/{recipe}/run.sh", venv or self.venv, *words)
        return done.returncode, done.stdout + done.stderr

    def calls(self, recipe: str, *words: str) -> list[str]:
        """The programs that the recipe starts, with their words; it has to end well."""
        (self.folder / "calls").write_text("")
        code, shown = self.run(recipe, *words)
        assert code == 0, shown
        return (self.folder / "calls").read_text().splitlines()


def run_in_earnest(recipe: str, *words: str) -> str:
    """Run a recipe of this tree with the real programs; what it showed."""
    import pytest

    if not (ROOT / ".venv").is_dir() and "SPEECHSSL_VENV" not in os.environ:
        pytest.skip("the recipes use .venv; tools/setup.sh makes it")
    done = subprocess.run(
        ["bash", str(ROOT / f"egs/{recipe}/run.sh"), *words], capture_output=True, text=True,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
