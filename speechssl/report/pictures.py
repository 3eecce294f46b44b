"""Pictures and sounds inside a page: spectrograms as PNG, recordings as FLAC, both in base64."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np

ROWS = 128
RANGE_DB = 65.0
# From silence to the loudest: dark violet over red to light yellow, in even steps of lightness.
ANCHORS = (
    (8, 6, 30), (47, 16, 92), (110, 30, 112), (173, 48, 95), (226, 88, 66), (250, 152, 60),
    (253, 217, 130), (252, 250, 220),
)  # fmt: skip


def png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """(H, W) uint8 numbers of colours and (256, 3) uint8 colours -> a PNG file."""
    height, width = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.astype(np.uint8)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def palette() -> np.ndarray:
    """(256, 3) uint8 between the anchors."""
    places = np.linspace(0, len(ANCHORS) - 1, 256)
    return np.stack(
        [np.interp(places, range(len(ANCHORS)), channel) for channel in zip(*ANCHORS, strict=True)],
        axis=1,
    ).astype(np.uint8)


def spectrogram(wave: np.ndarray, rate: int) -> bytes:
    """(L,) -> PNG, 100 columns a second, 128 rows from half the rate (top) to 0, 65 dB deep.

    Silence is the darkest colour; the level is relative to the loudest point of this recording.
    """
    from speechssl.score.cepstrum import power_spectra

    spectra = power_spectra(wave, rate)[::2]
    usable = spectra[:, 1 : 1 + ROWS * ((spectra.shape[1] - 1) // ROWS)]
    power = usable.reshape(len(spectra), ROWS, -1).max(2).T[::-1]
    level = 10 * np.log10(np.maximum(power, 1e-12) / max(float(power.max()), 1e-12))
    shade = np.clip(1 + level / RANGE_DB, 0, 1) if power.max() > 1e-12 else np.zeros(power.shape)
    return png(np.round(255 * shade).astype(np.uint8), palette())


def flac(wave: np.ndarray, rate: int) -> bytes:
    """(L,) in [-1, 1] -> a FLAC file of 16 bits."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def inline(data: bytes, kind: str) -> str:
    """A data URL. kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
