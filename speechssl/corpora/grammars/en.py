"""English sentences."""

from __future__ import annotations

from speechssl.corpora.grammars import words

_SMALL = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number(value: int) -> str:
    """Words of 0 to 999."""
    if value < 20:
        return _SMALL[value]
    if value < 100:
        tens, ones = _TENS[value // 10 - 2], value % 10
        return f"{tens} {_SMALL[ones]}" if ones else tens
    rest = f" {number(value % 100)}" if value % 100 else ""
    return f"{_SMALL[value // 100]} hundred{rest}"


SLOTS = {
    "city": words(
        "boston london paris berlin madrid rome vienna dublin oslo lisbon chicago denver seattle "
        "houston sydney toronto cairo tokyo delhi warsaw"
    ),
    "name": words(
        "anna peter maria david laura simon julia martin helen robert emma oscar nina thomas alice "
        "george clara victor sarah henry"
    ),
    "day": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "month": words(
        "january february march april may june july august september october november december"
    ),
    "daytime": ["in the morning", "in the afternoon", "in the evening", "at night", "at noon"],
    "vehicle": ["train", "bus", "plane", "boat", "car", "taxi"],
    "weather": ["sunny", "cloudy", "windy", "cold", "warm", "foggy", "stormy", "dry", "wet"],
    "fall": ["rain", "snow", "hail", "thunder", "fog"],
    "drink": ["coffee", "tea", "water", "milk", "orange juice", "lemonade", "beer", "red wine"],
    "food": [
        *("bread", "soup", "salad", "fish", "chicken", "rice", "pasta", "cheese", "an apple"),
        *("a sandwich", "ice cream", "potatoes", "a pizza", "some cake"),
    ],
    "size": ["small", "medium", "large"],
    "colour": words("red blue green yellow black white brown grey orange purple"),
    "thing": words("book bag coat chair table phone lamp box hat key clock bottle"),
    "room": ["kitchen", "bedroom", "bathroom", "garden", "hall", "office", "garage"],
    "device": ["light", "heating", "radio", "television", "fan", "music", "alarm"],
    "place": words("station airport museum market hospital school bank library theatre park"),
}

TEMPLATES = {
    "travel": [
        ("book_ticket", "i would like a ticket to {city} on {day}, please"),
        ("book_ticket", "please book {digit:count} seats from {city:from} to {city:to}"),
        ("ask_departure", "when does the {vehicle} to {city} leave {daytime}?"),
        ("ask_route", "how do i get from the {place:from} to the {place:to}?"),
        ("tell_trip", "{name} is going to {city} by {vehicle} in {month}"),
        ("ask_platform", "the {vehicle} from {city} arrives at platform {number}"),
        ("ask_distance", "it is {large} miles from {city:from} to {city:to}"),
    ],
    "weather": [
        ("ask_weather", "what is the weather like in {city} on {day}?"),
        ("tell_weather", "it will be {weather:first} and {weather:second} in {city} {daytime}"),
        ("tell_weather", "there will be {fall} over {city} in {month}"),
        ("ask_fall", "will there be {fall} on {day} {daytime}?"),
        ("tell_degrees", "it is {number} degrees and {weather} in {city} today"),
    ],
    "numbers": [
        ("say_number", "the number is {large}"),
        ("say_digits", "my code is {digit:a} {digit:b} {digit:c} {digit:d}"),
        ("say_sum", "{number:a} plus {number:b} is {number:sum}"),
        ("say_digits", "call {name} on {digit:a} {digit:b} {digit:c} {digit:d} {digit:e}"),
        ("say_address", "{name} lives at number {number} near the {place}"),
        ("say_price", "the {colour} {thing} costs {number} dollars"),
    ],
    "orders": [
        ("order_drink", "can i have a {size} {drink}, please?"),
        ("order_food", "i would like {food} and {drink}"),
        ("order_food", "{name} wants {food:first} with {food:second}"),
        ("order_count", "we need {digit:count} cups of {drink} and {food}"),
        ("cancel_order", "please cancel the {food} for table {number}"),
    ],
    "home": [
        ("switch_on", "turn on the {device} in the {room}"),
        ("switch_off", "switch off the {device} in the {room} at {digit:hour} {daytime}"),
        ("find_thing", "where is the {colour} {thing} of {name}?"),
        ("tell_place", "the {thing:first} is on the {colour} {thing:second} in the {room}"),
        ("set_level", "set the {device} in the {room} to {number}"),
    ],
    "time": [
        ("make_appointment", "let us meet {name} at the {place} on {day} {daytime}"),
        ("remind", "remind me to call {name} at {digit:hour} on {day}"),
        ("tell_date", "the meeting is on {day} in {month}, not on {day:other}"),
        ("ask_time", "is the {place} open on {day} {daytime}?"),
        ("tell_age", "{name} is {number} years old in {month}"),
    ],
}
