"""fairseq's MR-HuBERT files, hand-made of random weights, against an hourglass put together here.

Stacks are transformers' HuBERT encoders, samplers torch's convolutions and group norms; the names
are written out once more, independently of the code under test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import speechssl
from speechssl.encoders.multires import MultiresEncoder

transformers = pytest.importorskip("transformers")

DIM = 96
SETTINGS: dict[str, Any] = {
    "_name": "multires_hubert",
    "label_rate_ratios": [1, 2],
    "encoder_layers": 2,
    "override_encoder_layers": "",
    "conv_adapator_kernal": 1,
    "use_plain_updownsample": False,
    "extractor_mode": "default",
    "encoder_embed_dim": DIM,
    "encoder_ffn_embed_dim": 192,
    "encoder_attention_heads": 6,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": "[(48,10,5)] + [(48,3,2)] * 4 + [(48,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "feature_grad_mult": 0.1,
    "dropout": 0.1,
    "encoder_layerdrop": 0.05,
}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True}
OLD_NAMES = [
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"^masked_spec_embed", "mask_emb"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "pos_conv.0.bias"),
    (r"\.attention\.([qkv]|out)_proj", r".self_attn.\1_proj"),
    (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]


class Resample(nn.Module):
    """(B, D, T): the published sampler of kernel 1, in their names."""

    def __init__(self, up: int, down: int, simple: bool) -> None:
        super().__init__()
        self.rates, self.simple = (up, down), simple
        if not simple or up > 1:
            conv = nn.ConvTranspose1d(DIM, DIM, 1, up, output_padding=up - 1, bias=False)
            self.upsample_conv = nn.ModuleList([conv, nn.Dropout(0.0), nn.GroupNorm(1, DIM)])
        if not simple or down > 1:
            conv = nn.Conv1d(DIM, DIM, 1, down, bias=False)
            self.downsample_conv = nn.ModuleList([conv, nn.Dropout(0.0), nn.GroupNorm(1, DIM)])

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.rates
        y = start = x.repeat_interleave(up, 2)
        if hasattr(self, "upsample_conv"):
            conv, _, norm = self.upsample_conv
            y = (F.gelu(norm(conv(x))) + start) * 0.4**0.5
        if hasattr(self, "downsample_conv"):
            conv, _, norm = self.downsample_conv
            y = (F.gelu(norm(conv(y))) + y[..., ::down]) * 0.4**0.5
        return y if self.simple else (y + start[..., ::down]) * 0.4**0.5


class Hourglass:
    """Stacks in the order of their use, each a HuBERT of transformers with its published name."""

    def __init__(self, stacks: tuple[int, ...], large: bool, simple: bool) -> None:
        torch.manual_seed(1)
        self.changes, self.large = len(stacks) // 2, large
        self.stacks = [self._hubert(count) for count in stacks]
        self.down = [Resample(1, 2, simple) for _ in range(self.changes)]
        self.up = [Resample(2, 1, simple) for _ in range(self.changes)]
        with torch.no_grad():  # norms start as identities, which would hide a mistake
            for module in (*self.stacks, *self.down, *self.up):
                for name, parameter in module.named_parameters():
                    if "norm" in name or name.endswith("bias") or "sample_conv.2" in name:
                        parameter.add_(0.2 * torch.randn_like(parameter))

    def _hubert(self, layers: int) -> Any:
        config = transformers.HubertConfig(
            hidden_size=DIM,
            num_hidden_layers=layers,
            num_attention_heads=6,
            intermediate_size=192,
            conv_dim=[48] * 7,
            feat_extract_norm="layer" if self.large else "group",
            do_stable_layer_norm=self.large,
        )
        return transformers.HubertModel(config).eval()

    def state(self) -> dict[str, Tensor]:
        names = [f"encoders.{i}" for i in range(self.changes)] + ["middle_encoder"]
        names += [f"decoders.{i}" for i in range(self.changes)]
        state = {}
        for place, (model, name) in enumerate(zip(self.stacks, names, strict=True)):
            for key, value in model.state_dict().items():
                if place > 0 and (not key.startswith("encoder.") or "pos_conv" in key):
                    continue
                norm = "2.1" if self.large else "2"
                key = re.sub(r"(conv_layers\.\d)\.layer_norm", rf"\1.{norm}", key)
                key = re.sub(r"(conv_layers\.\d)\.conv", r"\1.0", key)
                key = re.sub(r"^encoder\.", f"{name}.", key)
                for pattern, replacement in OLD_NAMES:
                    key = re.sub(pattern, replacement, key)
                state[key] = value
        for i in range(self.changes):
            pairs = ("downsample_modules", self.down[i]), ("upsample_modules", self.up[i])
            for name, module in pairs:
                state |= {f"{name}.{i}.{k}": v for k, v in module.state_dict().items()}
        heads = {
            "final_projs.0.weight": torch.zeros(16, DIM),
            "label_embs_concat.0": torch.zeros(9),
        }
        return state | heads

    @torch.no_grad()
    def outputs(self, wave: Tensor) -> list[Tensor]:
        """The last output at each rate, from the lowest to the highest."""
        first = self.stacks[0]
        x = first.feature_projection(first.feature_extractor(wave).transpose(1, 2))
        x = x[0] if isinstance(x, tuple) else x
        x = x + first.encoder.pos_conv_embed(x)
        residuals, results = [], []
        for place, model in enumerate(self.stacks):
            x = self._stack(model, x) if place != self.changes else x + self._stack(model, x)
            if place > self.changes:
                around = residuals.pop()
                x = x[:, : around.shape[1]] + around
            if place >= self.changes:
                results.append(x)
            else:
                residuals.append(x)
            if place < self.changes:
                x = self.down[place](x.transpose(1, 2)).transpose(1, 2)
            elif place < 2 * self.changes:
                x = self.up[2 * self.changes - 1 - place](x.transpose(1, 2)).transpose(1, 2)
        return results

    def _stack(self, model: Any, x: Tensor) -> Tensor:
        x = x if self.large else model.encoder.layer_norm(x)
        for layer in model.encoder.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return model.encoder.layer_norm(x) if self.large else x


def write(path: Path, state: dict[str, Tensor], large: bool = False, **more: Any) -> Path:
    settings = SETTINGS | (LARGE if large else {}) | more
    task = {"_name": "multires_hubert_pretraining", "normalize": False, "label_rate": 50.0}
    torch.save({"cfg": {"model": settings, "task": task}, "model": state}, path)
    return path


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("stacks", "simple", "more"),
    [
        ((2, 2, 2), False, {}),
        ((1, 3, 2), True, {"override_encoder_layers": "[1, 3, 2]", "use_plain_updownsample": True}),
        # Published under 3-2-1-1-2, whose way up is stacked the other way round.
        ((3, 2, 1, 2, 1), False, {"override_encoder_layers": "[3, 2, 1, 1, 2]",
                                  "label_rate_ratios": "[1, 2, 1, 2]"}),
    ],
)  # fmt: skip
def test_the_outputs_at_all_rates_equal_the_hourglass(
    large: bool, stacks: tuple[int, ...], simple: bool, more: dict[str, Any], tmp_path: Path
) -> None:
    theirs = Hourglass(stacks, large, simple)
    model = speechssl.load(write(tmp_path / "mr.pt", theirs.state(), large, **more))
    encoder = model.encoder
    assert isinstance(encoder, MultiresEncoder)
    assert encoder.config.stacks == stacks
    assert model.provenance["left_out"] == ["final_projs.0.weight", "label_embs_concat.0"]
    for samples in (400, 16000, 16320):  # 1, 49, 50 frames
        wave = torch.randn(1, samples)
        want = theirs.outputs(wave)
        with torch.no_grad():
            found = encoder(wave, torch.tensor([samples]))
        layers = sorted(encoder.resolution_layers.values())
        assert len(layers) == len(want)
        for number, values in zip(layers, want, strict=True):
            assert found.layer(number).shape == values.shape
            assert (found.layer(number) - values).abs().max() < 1e-4


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    state = Hourglass((2, 2, 2), False, False).state()
    state["surplus.weight"] = state.pop("middle_encoder.layer_norm.bias")
    with pytest.raises(ValueError, match=r"missing middle_encoder\.layer_norm\.bias.*surplus"):
        speechssl.load(write(tmp_path / "mr.pt", state))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_adapator_kernal": 7}, "conv_adapator_kernal: found 7, want 1"),
        ({"label_rate_ratios": [2, 3]}, "label_rate_ratios: found"),
        ({"label_rate_ratios": None}, "label_rate_ratios: found None"),
        ({"override_encoder_layers": "[2, 2]"}, "override_encoder_layers: found"),
        ({"encoder_attention_heads": None}, "encoder_attention_heads"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        speechssl.load(write(tmp_path / "mr.pt", {}, **changes))
