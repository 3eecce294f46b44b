"""speechssl: self-supervised learning of speech and audio.

>>> import speechssl
>>> model = speechssl.load("exp/hubert_it2")
>>> features = model.extract(["a.flac", "b.wav"], layers=[6, 9])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from speechssl.hub.featurizer import Featurizer
    from speechssl.hub.model import Model

__version__ = "0.1.0"
__all__ = ["Featurizer", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Torch is imported when a model is wanted, not by `import speechssl`.
    if name == "Featurizer":
        from speechssl.hub.featurizer import Featurizer

        return Featurizer
    raise AttributeError(f"module 'speechssl' has no attribute {name!r}")


def load(
    path: str | Path, device: Any = "cpu", dtype: Any = None, *, settings: Any = None
) -> Model:
    """Open a model for use: an own folder, or a public checkpoint of any format; see hub.load."""
    from speechssl.hub.load import load as open_for_use

    return open_for_use(path, device, dtype, settings=settings)
