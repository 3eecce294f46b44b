"""The recipes' shell: help, unknown options, and stages that are not done twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted(ROOT.glob("egs/*/*/run.sh")), ROOT / "tools/setup.sh", ROOT / "tools/test.sh"]


def shell(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, words)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_help_lists_each_option_and_does_nothing(script: Path) -> None:
    found = shell(script, "--help")
    assert found.returncode == 0
    assert "Options, with their defaults:" in found.stdout
    assert "--" in found.stdout.split("Options, with their defaults:")[1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_unknown_option_and_missing_value_are_errors(script: Path) -> None:
    unknown = shell(script, "--bogus", "1")
    assert unknown.returncode == 2
    assert "--bogus" in unknown.stderr
    bare = shell(script, "exp")
    assert bare.returncode == 2


def test_option_values_are_never_evaluated(tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text(
        f'set -eu\nname=x  # a name\nsource {ROOT}/tools/shell/parse_options.sh\necho "$name"\n'
    )
    found = shell(script, "--name", "$(touch evil); a b")
    assert found.stdout == "$(touch evil); a b\n"
    assert not (tmp_path / "evil").exists()


def test_a_stage_runs_once_and_again_after_failure_or_change(tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text(
        f"set -euo pipefail\nstage=1\nstop_stage=2\nsource {ROOT}/tools/shell/stages.sh\n"
        'stage 1 "one" && { run m/a bash -c "echo x >>count; exit $1" ; }\n'
        'stage 3 "never" && { echo no >>count; }\nexit 0\n'
    )
    assert shell(script, "1", cwd=tmp_path).returncode != 0
    assert shell(script, "0", cwd=tmp_path).returncode == 0
    assert shell(script, "0", cwd=tmp_path).returncode == 0
    assert (tmp_path / "count").read_text() == "x\nx\n"


def _side_by_side(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "p.sh"
    script.write_text(
        f"set -euo pipefail\nstage=1\nstop_stage=2\nsource {ROOT}/tools/shell/stages.sh\n"
        f'one() {{ {body}; }}\nside_by_side "$@"\necho all done\n'
    )
    return shell(script, *arguments, cwd=folder)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_side_by_side_does_every_word_once(tmp_path: Path, jobs: int) -> None:
    found = _side_by_side(tmp_path, 'echo "$1" >>count; echo ran "$1"', str(jobs), "one", *"abc")
    assert found.returncode == 0, found.stderr
    assert sorted((tmp_path / "count").read_text().split()) == ["a", "b", "c"]
    prefix = "[b] " if jobs > 1 else ""
    assert f"{prefix}ran b\n" in found.stdout
    assert found.stdout.endswith("all done\n")


def test_side_by_side_runs_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for the other's sign of life."""
    body = 'touch "$1"; for i in {1..100}; do [[ -e a && -e b ]] && return; sleep 0.1; done; exit 1'
    assert _side_by_side(tmp_path, body, "2", "one", "a", "b").returncode == 0


def test_the_next_one_starts_as_soon_as_any_has_ended(tmp_path: Path) -> None:
    """The first waits for the third, which the end of the second lets in."""
    body = '[[ $1 != a ]] || for i in {1..99}; do [[ -e c ]] && return; sleep 0.1; done; touch "$1"'
    assert _side_by_side(tmp_path, body, "2", "one", *"abc").returncode == 0
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_side_by_side_fails_with_any_of_its_runs(tmp_path: Path, jobs: int) -> None:
    body = '[[ $1 != a ]]; sleep 0.5; echo "$1" >>count'
    found = _side_by_side(tmp_path, body, str(jobs), "one", *"abc")
    assert found.returncode != 0
    assert "all done" not in found.stdout
    # The run beside it ends; none is begun afterwards.
    done = (tmp_path / "count").read_text() if (tmp_path / "count").exists() else ""
    assert done == ("" if jobs == 1 else "b\n")


def test_a_recipe_is_started_from_anywhere() -> None:
    found = shell("egs/mini/ssl/run.sh", "--seeds", "1 2", "--help", cwd=ROOT)
    assert found.returncode == 0 and "--stop-stage" in found.stdout
