"""Italian sentences."""

from __future__ import annotations

from speechssl.corpora.grammars import words

_SMALL = words(
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici "
    "quindici sedici diciassette diciotto diciannove"
)
_TENS = ["venti", "trenta", "quaranta", "cinquanta", "sessanta", "settanta", "ottanta", "novanta"]


def number(value: int) -> str:
    """Words of 0 to 999."""
    if value < 20:
        return _SMALL[value]
    if value < 100:
        tens, ones = _TENS[value // 10 - 2], value % 10
        if ones == 3:
            return f"{tens}tré"
        stem = tens[:-1] if ones in (1, 8) else tens  # the vowels meet: ventuno, ventotto
        return f"{stem}{_SMALL[ones]}" if ones else tens
    hundreds = "" if value // 100 == 1 else _SMALL[value // 100]
    return f"{hundreds}cento{number(value % 100) if value % 100 else ''}"


SLOTS = {
    "city": words(
        "roma milano napoli torino firenze bologna venezia genova palermo verona pisa siena parigi "
        "londra berlino madrid vienna bari trieste perugia"
    ),
    "name": words(
        "anna pietro maria davide laura simone giulia martino elena roberto emma oscar nina "
        "tommaso alice giorgio chiara vittorio sara enrico"
    ),
    "day": ["lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato", "domenica"],
    "month": words(
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre "
        "dicembre"
    ),
    "daytime": ["di mattina", "a mezzogiorno", "di pomeriggio", "di sera", "di notte"],
    "vehicle": ["treno", "pullman", "battello", "taxi"],
    "weather": ["bello", "freddo", "caldo", "brutto", "fresco"],
    "fall": ["la pioggia", "la neve", "la grandine", "la nebbia", "un temporale"],
    "drink": ["un caffè", "un tè", "acqua", "latte", "un'aranciata", "una birra", "vino rosso"],
    "food": [
        *("pane", "una zuppa", "un'insalata", "pesce", "pollo", "riso", "pasta", "formaggio"),
        *("un gelato", "patate", "una pizza", "una torta", "una mela"),
    ],
    "colour": ["rossa", "nera", "bianca", "gialla", "verde", "blu", "grigia"],
    "thing": words("borsa giacca lampada scatola bottiglia sedia chiave tazza penna"),
    "room": ["cucina", "camera", "sala", "cantina", "terrazza"],
    "device": ["luce", "radio", "televisione", "musica", "lampada"],
    "place": ["mercato", "museo", "porto", "parco", "teatro", "giardino", "cinema"],
}

TEMPLATES = {
    "travel": [
        ("book_ticket", "vorrei un biglietto per {city} per {day}, per favore"),
        ("book_ticket", "mi servono {number:count} posti da {city:from} a {city:to}"),
        ("ask_departure", "quando parte il {vehicle} per {city} {daytime}?"),
        ("ask_route", "come vado dal {place:from} al {place:to}?"),
        ("tell_trip", "{name} va a {city} in {vehicle} a {month}"),
        ("ask_platform", "il {vehicle} da {city} arriva al binario {number}"),
    ],
    "weather": [
        ("ask_weather", "che tempo fa a {city} {day}?"),
        ("tell_weather", "{day} fa {weather} a {city} {daytime}"),
        ("tell_weather", "a {month} ci sarà {fall} a {city}"),
        ("ask_fall", "ci sarà {fall} {day} a {city}?"),
        ("tell_degrees", "oggi ci sono {number} gradi a {city} e fa {weather}"),
    ],
    "numbers": [
        ("say_number", "il numero è {large}"),
        ("say_digits", "il mio codice è {digit:a} {digit:b} {digit:c} {digit:d}"),
        ("say_sum", "{number:a} più {number:b} fa {number:sum}"),
        ("say_address", "{name} abita al numero {number} vicino al {place}"),
        ("say_price", "la {thing} {colour} costa {number} euro"),
    ],
    "orders": [
        ("order_drink", "vorrei {drink:first} e {drink:second}"),
        ("order_food", "per me {food} e {drink}, per favore"),
        ("order_food", "{name} prende {food:first} con {food:second}"),
        ("cancel_order", "non vogliamo {food} al tavolo {number}"),
    ],
    "home": [
        ("switch_on", "accendi la {device} in {room}"),
        ("switch_off", "spegni la {device} in {room} {daytime}"),
        ("find_thing", "dov'è la {thing} {colour} di {name}?"),
        ("tell_place", "la {thing} {colour} è in {room}"),
    ],
    "time": [
        ("make_appointment", "vediamo {name} {day} {daytime} al {place}"),
        ("remind", "ricordami di chiamare {name} {day}"),
        ("tell_date", "la riunione è {day} a {month}, non {day:other}"),
        ("tell_age", "{name} compie {number} anni a {month}"),
    ],
}
