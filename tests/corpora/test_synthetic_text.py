"""Grammars of the synthetic corpus."""

from __future__ import annotations

import re

import pytest

from speechssl.corpora.synthetic_speakers import human_variants, seeded
from speechssl.corpora.synthetic_text import (
    grammar,
    grammar_languages,
    plain,
    sentence,
    split_of,
)

LANGUAGES = grammar_languages()


def test_five_languages_have_a_grammar() -> None:
    assert {"en", "de", "es", "fr", "it"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_can_be_filled_and_themes_are_the_same_in_all_languages(
    language: str,
) -> None:
    module = grammar(language)
    assert set(module.TEMPLATES) == set(grammar("en").TEMPLATES)
    known = {*module.SLOTS, "digit", "number", "large"}
    for templates in module.TEMPLATES.values():
        for _, template in templates:
            fields = re.findall(r"\{(\w+)(?::(\w+))?\}", template)
            assert {slot for slot, _ in fields} <= known, template
            names = [name or slot for slot, name in fields]
            assert len(names) == len(set(names)), template
            assert "{" not in re.sub(r"\{\w+(:\w+)?\}", "", template)


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_have_distinct_names_without_digits(language: str) -> None:
    names = [grammar(language).number(value) for value in range(1000)]
    assert len(set(names)) == 1000
    assert not any(re.search(r"\d", name) for name in names)


@pytest.mark.parametrize(
    ("language", "value", "words"),
    [
        ("en", 342, "three hundred forty two"),
        ("de", 321, "dreihunderteinundzwanzig"),
        ("es", 131, "ciento treinta y uno"),
        ("es", 100, "cien"),
        ("fr", 71, "soixante et onze"),
        ("fr", 80, "quatre-vingts"),
        ("fr", 99, "quatre-vingt-dix-neuf"),
        ("fr", 200, "deux cents"),
        ("it", 128, "centoventotto"),
    ],
)
def test_number_words(language: str, value: int, words: str) -> None:
    assert grammar(language).number(value) == words


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_of_the_splits_are_disjoint_under_any_seed(language: str) -> None:
    drawn = {
        split: {sentence(seeded(seed, split), language, split, []).text for seed in range(400)}
        for split in ("train", "valid", "test")
    }
    assert not drawn["train"] & drawn["valid"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["valid"] & drawn["test"]
    assert all(split_of(language, text) == s for s, texts in drawn.items() for text in texts)
    assert len(drawn["train"]) > 300  # not a handful of sentences


def test_slots_are_words_of_the_sentence_and_places_differ() -> None:
    for seed in range(200):
        made = sentence(seeded(seed), "en-gb", "train", ["travel"])
        assert made.theme == "travel" and made.intent
        assert all(value in made.written for value in made.slots.values())
        if {"from", "to"} <= set(made.slots):
            assert made.slots["from"] != made.slots["to"]


def test_plain_text_keeps_words_and_apostrophes_only() -> None:
    assert plain("¿Dónde, l'Hôtel dix-sept?") == "dónde l'hôtel dix sept"


def test_unknown_languages_and_themes_are_errors_that_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"'xx'.*de, en"):
        grammar("xx")
    with pytest.raises(ValueError, match=r"themes: found sport.*weather"):
        sentence(seeded(1), "en", "train", ["sport"])


def test_effects_are_not_people() -> None:
    variants = {"f1": "female", "whisper": "male", "UniRobot": "male", "Mr serious": "unknown"}
    assert human_variants(variants) == [("f1", "female")]
