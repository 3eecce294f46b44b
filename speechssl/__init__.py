"""speechssl: self-supervised learning of speech and audio."""

__version__ = "0.1.0"
