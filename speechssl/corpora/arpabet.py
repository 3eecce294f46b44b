"""ARPAbet's 39 phones as one letter each, so that a recogniser of letters recognises phones.

Its character error rate is then the phone error rate (where words are not kept apart).
"""

from __future__ import annotations

PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH",
    "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH",
    "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
LETTERS = dict(zip(PHONES, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLM", strict=True))
"""Phone -> letter; the same in every corpus."""


def spelled(phones: str, where: str) -> str:
    """Letters of 'F_B IH0_I SH_E': stress and places in the word are dropped.

    Raises `ValueError`, naming `where`, for what is not one of ARPAbet's phones.
    """
    plain = [phone.split("_")[0].rstrip("0123456789") for phone in phones.split()]
    unknown = [phone for phone in plain if phone not in LETTERS]
    if unknown:
        raise ValueError(f"found the phone {unknown[0]!r} in {where!r}, want ARPAbet's: AA to ZH")
    return "".join(LETTERS[phone] for phone in plain)
