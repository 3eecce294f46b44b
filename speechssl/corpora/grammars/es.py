"""Spanish sentences."""

from __future__ import annotations

from speechssl.corpora.grammars import words

_SMALL = words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro "
    "veinticinco veintiséis veintisiete veintiocho veintinueve"
)
_TENS = ["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]
_HUNDREDS = words(
    "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos "
    "novecientos"
)


def number(value: int) -> str:
    """Words of 0 to 999."""
    if value < 30:
        return _SMALL[value]
    if value < 100:
        tens, ones = _TENS[value // 10 - 3], value % 10
        return f"{tens} y {_SMALL[ones]}" if ones else tens
    if value == 100:
        return "cien"
    rest = f" {number(value % 100)}" if value % 100 else ""
    return f"{_HUNDREDS[value // 100 - 1]}{rest}"


SLOTS = {
    "city": words(
        "madrid barcelona sevilla valencia granada bilbao toledo lima bogotá caracas quito "
        "santiago parís londres roma berlín lisboa viena málaga zaragoza"
    ),
    "name": words(
        "ana pedro maría david laura simón julia martín elena roberto emma óscar nina tomás alicia "
        "jorge clara víctor sara enrique"
    ),
    "day": ["lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"],
    "month": words(
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"
    ),
    "daytime": ["por la mañana", "a mediodía", "por la tarde", "por la noche"],
    "vehicle": ["tren", "autobús", "avión", "barco", "taxi"],
    "weather": ["sol", "viento", "frío", "calor", "niebla"],
    "fall": ["lluvia", "nieve", "granizo", "tormenta", "niebla"],
    "drink": ["café", "té", "agua", "leche", "zumo de naranja", "limonada", "cerveza", "vino"],
    "food": [
        *("pan", "sopa", "ensalada", "pescado", "pollo", "arroz", "pasta", "queso", "tarta"),
        *("un bocadillo", "helado", "patatas", "una pizza"),
    ],
    "colour": ["roja", "negra", "blanca", "amarilla", "verde", "azul", "gris"],
    "thing": words("bolsa chaqueta lámpara caja botella silla mesa llave taza gorra"),
    "room": ["cocina", "sala", "oficina", "terraza", "entrada"],
    "device": ["radio", "luz", "televisión", "alarma", "música"],
    "place": ["aeropuerto", "museo", "mercado", "hospital", "banco", "parque", "teatro", "puerto"],
}

TEMPLATES = {
    "travel": [
        ("book_ticket", "quisiera un billete a {city} para el {day}, por favor"),
        ("book_ticket", "necesito {number:count} asientos de {city:from} a {city:to}"),
        ("ask_departure", "¿cuándo sale el {vehicle} a {city} {daytime}?"),
        ("ask_route", "¿cómo voy del {place:from} al {place:to}?"),
        ("tell_trip", "{name} va a {city} en {vehicle} en {month}"),
        ("ask_platform", "el {vehicle} de {city} llega al andén {number}"),
    ],
    "weather": [
        ("ask_weather", "¿qué tiempo hace en {city} el {day}?"),
        ("tell_weather", "en {city} hace {weather} {daytime}"),
        ("tell_weather", "habrá {fall} en {city} en {month}"),
        ("ask_fall", "¿habrá {fall} el {day} en {city}?"),
        ("tell_degrees", "hoy hay {number} grados en {city} y hace {weather}"),
    ],
    "numbers": [
        ("say_number", "el número es {large}"),
        ("say_digits", "mi código es {digit:a} {digit:b} {digit:c} {digit:d}"),
        ("say_sum", "{number:a} más {number:b} son {number:sum}"),
        ("say_address", "{name} vive en el número {number} cerca del {place}"),
        ("say_price", "la {thing} {colour} cuesta {number} euros"),
    ],
    "orders": [
        ("order_drink", "quisiera {drink:first} y {drink:second}, por favor"),
        ("order_food", "para mí {food} con {drink}"),
        ("order_food", "{name} quiere {food:first} con {food:second}"),
        ("cancel_order", "no queremos {food} en la mesa {number}"),
    ],
    "home": [
        ("switch_on", "enciende la {device} en la {room}"),
        ("switch_off", "apaga la {device} en la {room} {daytime}"),
        ("find_thing", "¿dónde está la {thing} {colour} de {name}?"),
        ("tell_place", "la {thing} {colour} está en la {room}"),
    ],
    "time": [
        ("make_appointment", "nos vemos con {name} el {day} {daytime} en el {place}"),
        ("remind", "recuérdame llamar a {name} el {day}"),
        ("tell_date", "la reunión es el {day} en {month}, no el {day:other}"),
        ("tell_age", "{name} cumple {number} años en {month}"),
    ],
}
