"""VoxCeleb: how training cuts are divided, what each phase starts, and all in earnest once."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_copy import ROOT, RecipeCopy, run_in_earnest

from speechssl.bin.finetune import FinetuneConfig
from speechssl.config import parse
from speechssl.corpora import voxceleb2
from speechssl.data.fields import cut_rows, field_of

sys.path.append(str(Path(__file__).parents[1] / "corpora"))
from test_superb_corpora import write_wave
from test_voxceleb_layouts import make_voxceleb2

RECIPE = ROOT / "egs/voxceleb/speaker"


def divide(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["divide.py", *map(str, words)])
    runpy.run_path(str(RECIPE / "local/divide.py"), run_name="__main__")


def test_calibration_speakers_are_left_out_and_few_recordings_are_of_many_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_voxceleb2(tmp_path, seconds=0.1)
    config = voxceleb2.Config(source=str(tmp_path), output=str(tmp_path / "all"))
    cuts = voxceleb2.prepare(config)["dev"]
    words = ("--cuts", cuts, "--calibration-speakers", 3, "--calibration-cuts", 3, "--share", 0.2,
             "--cohort-cuts", 2)  # fmt: skip
    divide(monkeypatch, *words, "--output", tmp_path / "a")
    found = {
        n: list(cut_rows([str(tmp_path / f"a/cuts_{n}.jsonl.gz")]))
        for n in ("train", "valid", "calibration", "cohort")
    }
    ids = {n: {r["id"] for r in x} for n, x in found.items()}
    speakers = {n: {field_of(r, "speaker") for r in x} for n, x in found.items()}
    assert len(speakers["calibration"]) == 3 and len(speakers["train"]) == 5
    assert not speakers["calibration"] & speakers["train"]
    assert speakers["valid"] == speakers["cohort"] == speakers["train"]
    assert not ids["train"] & ids["valid"] and ids["cohort"] <= ids["train"]
    assert len(ids["train"]) + len(ids["valid"]) == 5 * 6
    for name, count in (("calibration", 3), ("cohort", 2)):
        for who in speakers[name]:
            own = [field_of(r, "video") for r in found[name] if field_of(r, "speaker") == who]
            assert len(own) == len(set(own)) == count
    divide(monkeypatch, *words, "--output", tmp_path / "b")
    one, two = ((tmp_path / d / "cuts_cohort.jsonl.gz").read_bytes() for d in "ab")
    assert one == two
    with pytest.raises(SystemExit, match="found 8 speakers"):
        divide(monkeypatch, "--cuts", cuts, "--calibration-speakers", 7, "--output", tmp_path / "c")


@pytest.mark.parametrize("upstream", ["logmel", "random"])
@pytest.mark.parametrize("name", ["ecapa", "xvector", "identification"])
def test_every_upstream_serves_every_system(name: str, upstream: str) -> None:
    words = ["--config", str(RECIPE / f"conf/{name}.yaml"), "--output", "exp/x",
             "--config", str(ROOT / f"egs/realmini/upstream/{upstream}.yaml"),
             "--head.classes", "[a,b]", "--head.class_counts", "[1,1]"]  # fmt: skip
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert not any(p.requires_grad for p in head.encoder.parameters())
    assert any(p.requires_grad for p in head.parameters())
    if name == "xvector":
        assert (config.head.margin, config.head.margin_kind, head.margin.kind) == (
            0.4, "cosine", "cosine",
        )  # fmt: skip
    if name == "ecapa":
        # Two speakers, each at three speeds, with three centres.
        assert head.margin.centres == 3 and head.margin.weight.shape == (18, 256)


def test_phases_lie_over_each_other() -> None:
    words = ["--init", "exp/head", "--init_head", "true", "--output", "exp/x"]
    for name in ("ecapa", "tune", "large"):
        words += ["--config", str(RECIPE / f"conf/{name}.yaml")]
    config = parse(FinetuneConfig, words)
    assert config.head.network == "ecapa" and config.head.margin == 0.5
    assert config.head.freeze_encoder_steps == 0 and config.head.freeze_front_end
    assert config.train.encoder_rate_scale == 0.1 and config.data.max_seconds == 6


def test_voices_at_other_speeds_are_speakers_until_the_large_margin_keeps_their_classes() -> None:
    words = ["--output", "exp/x", "--init", "exp/head"]
    found = {}
    for name in ("ecapa", "tune", "large"):
        words += ["--config", str(RECIPE / f"conf/{name}.yaml")]
        found[name] = parse(FinetuneConfig, [*words, "--init_head", "true"])
    assert all(c.head.other_speeds == [0.9, 1.1] for c in found.values())
    speeds = {"ecapa": [0.9, 1.0, 1.1], "tune": [0.9, 1.0, 1.1], "large": []}
    assert {n: c.data.speeds for n, c in found.items()} == speeds
    # As SUPERB has it, the x-vector's speakers are those of the corpus.
    xvector = parse(FinetuneConfig, [*words[:4], "--config", str(RECIPE / "conf/xvector.yaml")])
    assert xvector.data.speeds == xvector.head.other_speeds == []


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> RecipeCopy:
    folder = tmp_path_factory.mktemp("recipe")
    found = RecipeCopy(folder, "voxceleb/speaker", "realmini/upstream")
    for name in ("vox1", "vox2", "musan", "rirs", "hubert"):
        (found.folder / name).mkdir()
    return found


def corpora(copy: RecipeCopy, *names: str) -> list[str]:
    options = {"vox1": "voxceleb-one", "vox2": "voxceleb-two"}
    return [w for n in names for w in (f"--{options.get(n, n)}", str(copy.folder / n))]


def test_phases_go_on_from_each_other_and_all_trials_are_scored_four_ways(
    copy: RecipeCopy,
) -> None:
    words = corpora(copy, "vox1", "vox2", "musan", "rirs")
    words += ["--upstream", str(copy.folder / "hubert")]
    calls = copy.calls("voxceleb/speaker", *words)
    lists, text = str(copy.folder / "vox1"), "\n".join(calls)
    assert any(f"--trials {lists}/list_test_all2.txt" in c and "prepare" in c for c in calls)
    head, tune, large = (c for c in calls if "speechssl.bin.finetune" in c)
    folder = "exp/hubert_ecapa/seed1"
    assert f"--init {copy.folder}/hubert" in head and "--init_head" not in head
    assert f"--init {folder}/head --init_head true" in tune and "conf/tune.yaml" in tune
    assert f"--init {folder}/tune --init_head true" in large and "conf/large.yaml" in large
    for call in (head, tune):
        kinds = "".join(
            f"{{cuts: data/musan/cuts_{name}.jsonl.gz, ratio_db: {rest}}}, "
            for name, rest in (("noise", "[0, 15]"), ("music", "[5, 15]"),
                               ("speech", "[13, 20], count: [3, 7]"))
        )  # fmt: skip
        assert f"noises: [{kinds[:-2]}]" in call and "parts: [noise, music, speech]" in text
        assert "rir_cuts: data/rirs/cuts_sim_rir.jsonl.gz" in call
    assert "mixing" not in large
    scores = [c for c in calls if c.startswith("speechssl score")]
    assert len(scores) == 12 and all(f"--decode {folder}/large/" in c for c in scores)
    for letter, name in zip("OEH", ("veri_test2", "list_test_all2", "list_test_hard2")):
        own = [c for c in scores if f"/large/{letter}_" in c]
        assert len(own) == 4 and all(f"--trials {lists}/{name}.txt" in c for c in own)
    assert sum("--cohort_means true" in c for c in scores) == 6
    assert sum(f"--plda {folder}/large/cohort" in c for c in scores) == 3
    calibrated = [c for c in scores if "--calibrate " in c]
    assert len(calibrated) == 3 and all("vox2/calibration.txt" in c for c in calibrated)
    assert not any("identification" in c for c in calls)


def test_log_mel_energies_are_not_tuned_and_superbs_verifier_hears_voxceleb1(
    copy: RecipeCopy,
) -> None:
    words = [*corpora(copy, "vox1"), "--train-on", "vox1", "--system", "xvector"]
    calls = copy.calls("voxceleb/speaker", *words, "--exp", "exp1", "--data", "data1")
    assert not any("voxceleb2" in c for c in calls)
    trained = [c for c in calls if "speechssl.bin.finetune" in c]
    assert ["conf/large.yaml" in c for c in trained] == [False, True]
    assert "--config ../../realmini/upstream/logmel.yaml" in trained[0]
    assert "--init exp1/logmel_xvector/seed1/head" in trained[1]
    assert "--cuts data1/vox1/test/cuts_train.jsonl.gz" in next(c for c in calls if "divide" in c)
    assert sum(c.startswith("speechssl score") for c in calls) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--voxceleb-one", "nowhere"], "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/"),
        (["--voxceleb-one", "."], "--voxceleb-two: found '', want the corpus folder"),
        (["--train-on", "vox1", "--trials", "O E"], "test speakers that it trains on"),
        (["--system", "resnet"], "want ecapa or xvector"),
        (["--train-on", "vox1", "--voxceleb-one", ".", "--musan", "nowhere"], "openslr.org/17"),
        (["--phases", "head all"], "want some of head tune large"),
        (["--trials", "O X"], "want some of O E H"),
    ],
)
def test_what_is_missing_is_named(copy: RecipeCopy, words: list[str], told: str) -> None:
    code, shown = copy.run("voxceleb/speaker", "--data", "data2", "--exp", "exp2", *words)
    assert code == 2 and told in shown.splitlines()[-1]


def write_miniatures(folder: Path) -> None:
    random = np.random.default_rng(0)
    names = []
    for who in range(1, 5):
        for take in range(1, 5):
            names.append(f"id1000{who}/video{take % 2}/0000{take}.wav")
            write_wave(folder / "vox1/wav" / names[-1], 1.1)
    pairs = [(a, b) for a in names for b in names if a < b]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a, b in pairs]
    for name, share in (("veri_test2", 1), ("list_test_all2", 1), ("list_test_hard2", 2)):
        (folder / f"vox1/{name}.txt").write_text("".join(lines[::share]))
    parts = "".join(f"{max(1, int(n[-5]) - 1)} {n}\n" for n in names)
    (folder / "vox1/iden_split.txt").write_text(parts)
    make_voxceleb2(folder / "vox2")
    for name, seconds in (
        ("musan/noise/free-sound/noise-free-sound-0000", 3.0),
        ("musan/music/fma/music-fma-0000", 3.0),
        *((f"musan/speech/librivox/speech-librivox-000{i}", 2.0) for i in range(7)),
        ("RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001", 0.2),
        ("RIRS_NOISES/simulated_rirs/mediumroom/Room001/Room001-00001", 0.2),
        ("RIRS_NOISES/simulated_rirs/largeroom/Room001/Room001-00001", 0.2),
    ):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        fading = np.exp(-np.arange(round(16000 * seconds)) / 4000)
        soundfile.write(path, 0.3 * fading * random.standard_normal(len(fading)), 16000)
    (folder / "musan/music/fma/ANNOTATIONS").write_text("music-fma-0000 baroque N someone\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_stage_runs_on_miniatures(tmp_path: Path) -> None:
    from speechssl.encoders.transformer import TransformerConfig
    from speechssl.model_file import save_model

    write_miniatures(tmp_path)
    encoder = TransformerConfig(
        front_end="log_mel", front_norm="layer", front_dim=16, layers=1, dim=16, ffn_dim=16,
        heads=2, pos_conv_kernel=8, pos_conv_groups=2,
    )  # fmt: skip
    save_model(str(tmp_path / "model"), encoder, encoder.build().state_dict())
    run_in_earnest(
        "voxceleb/speaker", "--voxceleb-one", str(tmp_path / "vox1"),
        "--voxceleb-two", str(tmp_path / "vox2"),
        "--musan", str(tmp_path / "musan"), "--rirs", str(tmp_path / "RIRS_NOISES"), "--upstream",
        str(tmp_path / "model"), "--calibration-speakers", "3", "--trials", "O H", "--steps", "2",
        "--identification", "true", "--exp", str(tmp_path / "exp"),
        "--data", str(tmp_path / "data"),
        "--overrides", "--data.num_workers 0 --train.tensorboard false --data.batch_seconds 12 "
        "--data.max_batch_seconds 12",
    )  # fmt: skip
    folder = tmp_path / "exp/model_ecapa/seed1"
    for name in ("O_cosine", "O_asnorm", "O_plda", "O_calibrated", "H_calibrated"):
        results = json.loads((folder / "large" / name / "results.json").read_text())
        assert 0 <= results["eer"] <= 1 and ("cllr" in results) == ("calibrated" in name)
    assert results["cohort"] == 5
    assert "DET curve" in (folder / "large/report.html").read_text()
    known = json.loads((folder / "identification/test/results.json").read_text())
    assert known["utterances"] == 4 and len(known["classes"]) == 4
