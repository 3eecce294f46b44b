"""`speechssl prepare` and `speechssl synth`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.bin.prepare import corpora, main


def test_help_lists_every_corpus_and_imports_neither_torch_nor_lhotse() -> None:
    code = (
        "import sys; from speechssl.bin.prepare import main; main(['--help']);"
        "sys.exit(bool({'torch', 'lhotse', 'jsonargparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("jsonl", "synthetic", "audio_dir", "librispeech", "librilight", "lhotse_recipe"):
        assert f"  {name} " in done.stdout
    assert "manifest" not in corpora()  # helpers are no corpora


@pytest.mark.parametrize("name", sorted(corpora()))
def test_the_help_of_every_corpus_explains_its_options_without_torch(name: str) -> None:
    code = (
        "import sys; from speechssl.bin.prepare import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout
    assert "Folder for cuts_" in done.stdout


def test_an_unknown_corpus_is_an_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["nothing"]) == 2
    assert "want one of: audio_dir" in capsys.readouterr().err


def test_problems_of_the_data_end_with_status_1_and_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["jsonl", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "no manifest.jsonl" in capsys.readouterr().err


def test_sources_and_names_are_given_as_lists(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.ones(800) / 4, 16000)
        row = {"id": "a", "audio": "a.wav", "split": "train"}
        (tmp_path / name / "manifest.jsonl").write_text(json.dumps(row))
    source = f"[{tmp_path}/one,{tmp_path}/two]"
    out = tmp_path / "out"
    assert main(["jsonl", "--source", source, "--only", "[two]", "--output", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["cuts_train.jsonl.gz"]


def test_synth_is_prepare_synthetic(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    from speechssl.bin.synth import main as synth

    options = ["--utterances", "4", "--speakers", "3", "--languages", "[en-us]", "--jobs", "1"]
    assert synth([*options, "--output", str(tmp_path / "a")]) == 0
    assert main(["synthetic", *options, "--output", str(tmp_path / "b")]) == 0
    names = [sorted(p.name for p in (tmp_path / x).rglob("*.flac")) for x in "ab"]
    assert names[0] == names[1] and len(names[0]) == 5
