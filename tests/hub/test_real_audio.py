"""Features of real recordings: every readable file gets the right number of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.audio import find_audio
from speechssl.hub.model import Model

SMALL = TransformerConfig(
    layers=1, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)


@pytest.mark.corpora
@pytest.mark.parametrize("corpus", ["an4", "fsdd", "librispeech_sample"])
def test_real_files_of_any_rate_give_frames_for_their_length(
    corpora_dir: Path, corpus: str
) -> None:
    folder = corpora_dir / corpus
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    files = find_audio([str(folder)])[::40][:25]
    faults: dict[str, str] = {}
    found = Model(SMALL.build()).extract(
        files, layers=[-1], on_error=lambda name, e: faults.update({name: str(e)})
    )
    assert len(found) + len(faults) == len(files) and len(found) >= len(files) - 2
    for features in found:
        info = soundfile.info(features.id)
        samples = info.frames * 16000 / info.samplerate
        assert abs(features.num_samples - samples) <= 1
        assert features.num_frames == (features.num_samples - 400) // 320 + 1
        assert np.isfinite(features.hidden[1]).all()
