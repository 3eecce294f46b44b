"""French sentences."""

from __future__ import annotations

from speechssl.corpora.grammars import words

_SMALL = words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize "
    "dix-sept dix-huit dix-neuf"
)
_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante", 8: "quatre-vingt"}


def number(value: int) -> str:
    """Words of 0 to 999."""
    if value < 20:
        return _SMALL[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        if tens in (7, 9):
            tens, ones = tens - 1, ones + 10
        if ones == 0:
            return _TENS[tens] + ("s" if tens == 8 else "")
        joint = " et " if ones in (1, 11) and tens != 8 else "-"
        return f"{_TENS[tens]}{joint}{_SMALL[ones]}"
    hundreds = "cent" if value // 100 == 1 else f"{_SMALL[value // 100]} cent"
    if value % 100:
        return f"{hundreds} {number(value % 100)}"
    return hundreds + ("s" if value > 100 else "")


SLOTS = {
    "city": words(
        "paris lyon marseille lille bordeaux nantes toulouse nice genève bruxelles londres rome "
        "berlin madrid vienne rennes dijon grenoble tours brest"
    ),
    "name": words(
        "anne pierre marie david laure simon julie martin hélène robert emma oscar nina thomas "
        "alice georges claire victor sarah henri"
    ),
    "day": ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"],
    "month": words(
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"
    ),
    "daytime": ["le matin", "à midi", "le soir", "la nuit"],
    "vehicle": ["train", "bus", "bateau", "car", "taxi"],
    "weather": ["beau", "froid", "chaud", "mauvais", "doux"],
    "fall": ["de la pluie", "de la neige", "de la grêle", "un orage", "du brouillard"],
    "drink": ["du café", "du thé", "de l'eau", "du lait", "un jus d'orange", "du vin", "une bière"],
    "food": [
        *("du pain", "une soupe", "une salade", "du poisson", "du poulet", "du riz", "des pâtes"),
        *("du fromage", "une glace", "une pizza", "un gâteau", "une pomme"),
    ],
    "colour": ["rouge", "noire", "blanche", "jaune", "verte", "bleue", "grise"],
    "thing": ["table", "chaise", "lampe", "boîte", "bouteille", "veste", "montre", "tasse", "clé"],
    "room": ["cuisine", "chambre", "cour", "salle", "cave"],
    "device": ["lumière", "radio", "télévision", "musique", "lampe"],
    "place": ["marché", "musée", "port", "parc", "théâtre", "lycée", "jardin"],
}

TEMPLATES = {
    "travel": [
        ("book_ticket", "je voudrais un billet pour {city}, {day}, s'il vous plaît"),
        ("book_ticket", "il me faut {number:count} places de {city:from} à {city:to}"),
        ("ask_departure", "à quelle heure part le {vehicle} pour {city} {daytime}?"),
        ("ask_route", "comment aller du {place:from} au {place:to}?"),
        ("tell_trip", "{name} va à {city} en {vehicle} en {month}"),
        ("ask_platform", "le {vehicle} de {city} arrive au quai {number}"),
    ],
    "weather": [
        ("ask_weather", "quel temps fait-il à {city} {day}?"),
        ("tell_weather", "il fait {weather} à {city} {day} {daytime}"),
        ("tell_weather", "il y aura {fall} à {city} en {month}"),
        ("ask_fall", "est-ce qu'il y aura {fall} {day} à {city}?"),
        ("tell_degrees", "il fait {number} degrés à {city} en {month}"),
    ],
    "numbers": [
        ("say_number", "le numéro est {large}"),
        ("say_digits", "mon code est {digit:a} {digit:b} {digit:c} {digit:d}"),
        ("say_sum", "{number:a} plus {number:b} font {number:sum}"),
        ("say_address", "{name} habite au numéro {number} près du {place}"),
        ("say_price", "la {thing} {colour} coûte {number} euros"),
    ],
    "orders": [
        ("order_drink", "je voudrais {drink:first} et {drink:second}"),
        ("order_food", "pour moi {food} et {drink}, s'il vous plaît"),
        ("order_food", "{name} prend {food:first} avec {food:second}"),
        ("cancel_order", "annulez {food} pour la table {number}"),
    ],
    "home": [
        ("switch_on", "allume la {device} dans la {room}"),
        ("switch_off", "éteins la {device} dans la {room} {daytime}"),
        ("find_thing", "où est la {thing} {colour} de {name}?"),
        ("tell_place", "la {thing} {colour} est dans la {room}"),
    ],
    "time": [
        ("make_appointment", "on se voit avec {name} {day} {daytime} au {place}"),
        ("remind", "rappelle-moi de téléphoner à {name} {day}"),
        ("tell_date", "la réunion est {day} en {month}, pas {day:other}"),
        ("tell_age", "{name} aura {number} ans en {month}"),
    ],
}
