"""German sentences."""

from __future__ import annotations

from speechssl.corpora.grammars import words

_SMALL = words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]


def number(value: int) -> str:
    """Words of 0 to 999."""
    if value < 20:
        return _SMALL[value]
    if value < 100:
        tens, ones = _TENS[value // 10 - 2], value % 10
        unit = "ein" if ones == 1 else _SMALL[ones]
        return f"{unit}und{tens}" if ones else tens
    hundreds = "ein" if value // 100 == 1 else _SMALL[value // 100]
    return f"{hundreds}hundert{number(value % 100) if value % 100 else ''}"


SLOTS = {
    "city": words(
        "berlin hamburg münchen köln dresden leipzig wien zürich paris london rom madrid bremen "
        "stuttgart nürnberg hannover kassel warschau prag kiel"
    ),
    "name": words(
        "anna peter maria jonas laura simon julia martin helga robert emma oskar nina thomas greta "
        "georg klara viktor sarah heinrich"
    ),
    "day": ["montag", "dienstag", "mittwoch", "donnerstag", "freitag", "samstag", "sonntag"],
    "month": words(
        "januar februar märz april mai juni juli august september oktober november dezember"
    ),
    "daytime": ["am morgen", "am mittag", "am nachmittag", "am abend", "in der nacht"],
    "vehicle": ["zug", "bus", "wagen", "dampfer", "nachtzug"],
    "weather": ["sonnig", "wolkig", "windig", "kalt", "warm", "neblig", "stürmisch", "trocken"],
    "fall": ["regen", "schnee", "hagel", "gewitter", "nebel"],
    "drink": ["kaffee", "tee", "wasser", "milch", "orangensaft", "limonade", "bier", "rotwein"],
    "food": [
        *("brot", "suppe", "salat", "fisch", "hähnchen", "reis", "nudeln", "käse", "kuchen"),
        *("ein brötchen", "eis", "kartoffeln", "eine pizza"),
    ],
    "colour": ["rote", "blaue", "grüne", "gelbe", "schwarze", "weiße", "braune", "graue"],
    "thing": words("tasche jacke lampe uhr flasche kiste mütze brille tasse vase"),
    "room": ["küche", "garage", "halle", "werkstatt", "wohnung"],
    "device": ["licht", "radio", "gerät", "fenster", "telefon"],
    "place": ["bahnhof", "flughafen", "markt", "park", "hafen", "strand", "see"],
}

TEMPLATES = {
    "travel": [
        ("book_ticket", "ich hätte gern eine fahrkarte nach {city} für {day}"),
        ("book_ticket", "bitte buchen sie {number:count} plätze von {city:from} nach {city:to}"),
        ("ask_departure", "wann fährt der {vehicle} nach {city} {daytime} ab?"),
        ("ask_route", "wie komme ich vom {place:from} zum {place:to}?"),
        ("tell_trip", "{name} fährt im {month} mit dem {vehicle} nach {city}"),
        ("ask_platform", "der {vehicle} aus {city} kommt auf gleis {number} an"),
    ],
    "weather": [
        ("ask_weather", "wie wird das wetter in {city} am {day}?"),
        ("tell_weather", "in {city} wird es {daytime} {weather:first} und {weather:second}"),
        ("tell_weather", "im {month} gibt es {fall} in {city}"),
        ("ask_fall", "gibt es am {day} {fall} in {city}?"),
        ("tell_degrees", "heute sind es {number} grad in {city} und es ist {weather}"),
    ],
    "numbers": [
        ("say_number", "die nummer ist {large}"),
        ("say_digits", "mein code ist {digit:a} {digit:b} {digit:c} {digit:d}"),
        ("say_sum", "{number:a} plus {number:b} ist {number:sum}"),
        ("say_address", "{name} wohnt in der nummer {number} am {place}"),
        ("say_price", "die {colour} {thing} kostet {number} euro"),
    ],
    "orders": [
        ("order_drink", "ich möchte bitte {drink:first} und {drink:second}"),
        ("order_food", "ich hätte gern {food} und {drink}"),
        ("order_food", "{name} möchte {food:first} mit {food:second}"),
        ("cancel_order", "bitte streichen sie {food} für tisch {number}"),
    ],
    "home": [
        ("switch_on", "schalte das {device} in der {room} ein"),
        ("switch_off", "schalte das {device} in der {room} {daytime} aus"),
        ("find_thing", "wo ist die {colour} {thing} von {name}?"),
        ("tell_place", "die {colour} {thing} liegt in der {room}"),
    ],
    "time": [
        ("make_appointment", "wir treffen {name} am {day} {daytime} am {place}"),
        ("remind", "erinnere mich am {day} an {name}"),
        ("tell_date", "die sitzung ist am {day} im {month}, nicht am {day:other}"),
        ("tell_age", "{name} wird im {month} {number} jahre alt"),
    ],
}
