"""Sentence grammars of the synthetic corpus, one module per language.

A grammar module defines

- `TEMPLATES`: theme -> list of (intent, template), where `{slot}` or `{slot:name}` in a template
  is replaced by a filler of `slot` and recorded under `name` (default: the slot's own name);
- `SLOTS`: slot -> fillers;
- `number(value)`: the words of 0 to 999, which fill `{digit}` (0-9), `{number}` (0-99) and
  `{large}` (100-999).
"""


def words(text: str) -> list[str]:
    """A list of single words, written as one string."""
    return text.split()
