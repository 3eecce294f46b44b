"""Every configuration of every recipe parses, and builds the model that its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speechssl.bin.finetune import FinetuneConfig
from speechssl.bin.pretrain import PretrainConfig
from speechssl.bin.vocoder import VocoderTrainConfig, built
from speechssl.config import parse
from speechssl.encoders.conformer import ConformerConfig

EGS = Path(__file__).parents[2] / "egs"
CONFIGS = sorted(EGS.glob("*/*/conf/*.yaml"))

# Published parameter counts: encoder with mask vector, then its head: projection and codewords.
# fairseq's codeword tables have four unused rows more.
PUBLISHED_ENCODERS = {
    "hubert_base_it1": 94_371_712,
    "hubert_base_it2": 94_371_712,
    "hubert_large": 315_435_136,
    "hubert_xlarge": 962_493_824,
    "wavlm_base": 94_381_936,
    "wavlm_base_plus": 94_381_936,
    "wavlm_large": 315_453_120,
    "wav2vec2_base": 94_371_712,
    "data2vec_base": 93_164_288,
    "data2vec_large": 313_276_416,
    "mr_hubert_base": 96_740_224,
    "mr_hubert_large": 319_641_728,
    "hubertopic_base": 94_371_712,
    "hubertopic_large": 315_435_136,
    "mr_hubertopic_base": 96_740_224,
    "mr_hubertopic_large": 319_641_728,
}

# Billions of parameters, of which the papers print one digit after the point.
PUBLISHED_BILLIONS = {"w2v_bert_xl": 0.6, "w2v_bert_xxl": 1.0, "bestrq_xl": 0.6}

# Configurations that lie over others of their folder.
BENEATH = {
    "scratch.yaml": ["finetune.yaml"],
    "pretrained.yaml": ["finetune.yaml"],
    "few_pretrained.yaml": ["finetune.yaml", "pretrained.yaml"],
    "few_scratch.yaml": ["finetune.yaml", "scratch.yaml"],
    "frozen.yaml": ["finetune.yaml"],
    "tune.yaml": ["ecapa.yaml"],
    "tuned.yaml": ["categorical.yaml"],
    "large.yaml": ["ecapa.yaml", "tune.yaml"],
    **{path.name: ["ctc.yaml"] for path in EGS.glob("librispeech/asr/conf/*_*.yaml")},
}


def load(path: Path) -> PretrainConfig | FinetuneConfig | VocoderTrainConfig:
    text = path.read_text()
    if "\nvocoder:" in text:
        return parse(VocoderTrainConfig, ["--config", str(path), "--output", "exp/x"])
    if "\nobjective:" in text:
        return parse(PretrainConfig, ["--config", str(path), "--output", "exp/x"])
    paths = [*(path.with_name(name) for name in BENEATH.get(path.name, [])), path]
    words = ["--output", "exp/x", *(word for p in paths for word in ("--config", str(p)))]
    if not any("\nencoder:" in p.read_text() for p in paths):
        words += ["--init", "exp/pretrained"]
    if path.name == "large.yaml":  # without speeds it keeps the classes of those before
        words += ["--init_head", "true"]
    return parse(FinetuneConfig, words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(EGS)))
def test_every_config_parses_and_builds(path: Path) -> None:
    config = load(path)
    if isinstance(config, VocoderTrainConfig):  # its filters are computed, which meta cannot
        assert sum(p.numel() for p in built(config).parameters()) > 1e6
        return
    with torch.device("meta"):
        if isinstance(config, PretrainConfig):
            assert sum(p.numel() for p in config.objective.build().parameters()) > 1e6
        elif config.encoder is not None:
            assert sum(p.numel() for p in config.encoder.build().parameters()) > 1e5


@pytest.mark.parametrize("name", PUBLISHED_ENCODERS)
def test_published_sizes_are_exact(name: str) -> None:
    config = load(EGS / f"librispeech/ssl/conf/{name}.yaml")
    with torch.device("meta"):
        encoder = config.objective.build().encoder
    assert sum(p.numel() for p in encoder.parameters()) == PUBLISHED_ENCODERS[name]


@pytest.mark.parametrize("name", PUBLISHED_BILLIONS)
def test_published_conformers_have_their_size(name: str) -> None:
    objective = load(EGS / f"librispeech/ssl/conf/{name}.yaml").objective
    sizes = {"w2v_bert_xl": ConformerConfig.w2v_bert_xl, "bestrq_xl": ConformerConfig.bestrq,
             "w2v_bert_xxl": ConformerConfig.w2v_bert_xxl}  # fmt: skip
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in one.parameters())
            for one in (objective.build().encoder, sizes[name]().build())
        ]
    assert counts[0] == counts[1] and round(counts[0] / 1e9, 1) == PUBLISHED_BILLIONS[name]


def test_an4_baselines_have_the_encoder_of_the_pretrained_system() -> None:
    """Scratch is the very encoder that is pretrained; only the dropout may differ."""
    pretrained = load(EGS / "an4/asr/conf/pretrain_hubert_it2.yaml").objective.encoder
    scratch = load(EGS / "an4/asr/conf/scratch.yaml").encoder
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in c.build().state_dict().items()} for c in (pretrained, scratch)
        ]
    assert shapes[0] == shapes[1]


def test_a_run_continues_when_a_new_version_added_an_option(tmp_path: Path) -> None:
    """Its config.yaml lacks the option; the default stands for it, another value does not."""
    import dataclasses

    import yaml

    from speechssl.config import to_dict
    from speechssl.train.folder import open_folder

    config = load(EGS / "mini/ssl/conf/pretrain_it1.yaml")
    old = to_dict(config)
    del old["data"]["speeds"]
    (tmp_path / "checkpoints/step_1").mkdir(parents=True)
    (tmp_path / "checkpoints/step_1/state.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    open_folder(tmp_path, config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, min_seconds=0.1))
    with pytest.raises(ValueError, match=r"data\.min_seconds"):
        open_folder(tmp_path, changed)
