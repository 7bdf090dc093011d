"""The invented world: its people, its words, and its facts. Every inflected form is stored, none is derived.

Nothing here is about a real person. The facts are drawn from a seed; the words are the same in every world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from examples.miniature.dice import Dice

Topic = Literal["job", "town", "colour", "pet", "food"]
TOPICS: Final[tuple[Topic, ...]] = ("job", "town", "colour", "pet", "food")


@dataclass(frozen=True)
class Person:
    """A first name in English, and in Lithuanian in the cases that the sentences need."""

    en: str
    nom: str
    gen: str
    dat: str
    ins: str
    female: bool


@dataclass(frozen=True)
class Value:
    """The value of a fact: a word in English, and in Lithuanian in the cases that the sentences need.

    `nom_f` and `ins_f` are the feminine forms of jobs; colours are feminine in the nominative (spalva, a colour).
    """

    en: str
    nom: str
    acc: str = ""
    gen: str = ""
    loc: str = ""
    ins: str = ""
    nom_f: str = ""
    ins_f: str = ""


@dataclass(frozen=True)
class Item:
    """A thing that is counted. Lithuanian counts 1 in the accusative singular, 2-9 plural, 10-20 in the genitive."""

    en: str
    en_plural: str
    acc: str
    acc_plural: str
    gen_plural: str


MEN: Final = (
    Person("John", "Jonas", "Jono", "Jonui", "Jonu", False),
    Person("Peter", "Petras", "Petro", "Petrui", "Petru", False),
    Person("Paul", "Paulius", "Pauliaus", "Pauliui", "Pauliumi", False),
    Person("Thomas", "Tomas", "Tomo", "Tomui", "Tomu", False),
    Person("Mark", "Markas", "Marko", "Markui", "Marku", False),
    Person("Luke", "Lukas", "Luko", "Lukui", "Luku", False),
    Person("Andrew", "Andrius", "Andriaus", "Andriui", "Andriumi", False),
    Person("Anthony", "Antanas", "Antano", "Antanui", "Antanu", False),
    Person("George", "Jurgis", "Jurgio", "Jurgiui", "Jurgiu", False),
    Person("Vincent", "Vincas", "Vinco", "Vincui", "Vincu", False),
    Person("Simon", "Simonas", "Simono", "Simonui", "Simonu", False),
    Person("Joseph", "Juozas", "Juozo", "Juozui", "Juozu", False),
)
WOMEN: Final = (
    Person("Anna", "Ona", "Onos", "Onai", "Ona", True),
    Person("Mary", "Marija", "Marijos", "Marijai", "Marija", True),
    Person("Eve", "Ieva", "Ievos", "Ievai", "Ieva", True),
    Person("Lucy", "Liucija", "Liucijos", "Liucijai", "Liucija", True),
    Person("Helen", "Elena", "Elenos", "Elenai", "Elena", True),
    Person("Barbara", "Barbora", "Barboros", "Barborai", "Barbora", True),
    Person("Christine", "Kristina", "Kristinos", "Kristinai", "Kristina", True),
    Person("Agatha", "Agota", "Agotos", "Agotai", "Agota", True),
    Person("Sophia", "Sofija", "Sofijos", "Sofijai", "Sofija", True),
    Person("Theresa", "Teresė", "Teresės", "Teresei", "Terese", True),
    Person("Ursula", "Uršulė", "Uršulės", "Uršulei", "Uršule", True),
    Person("Emily", "Emilija", "Emilijos", "Emilijai", "Emilija", True),
)

VALUES: Final[dict[Topic, tuple[Value, ...]]] = {
    "job": (
        Value("teacher", "mokytojas", ins="mokytoju", nom_f="mokytoja", ins_f="mokytoja"),
        Value("doctor", "gydytojas", ins="gydytoju", nom_f="gydytoja", ins_f="gydytoja"),
        Value("driver", "vairuotojas", ins="vairuotoju", nom_f="vairuotoja", ins_f="vairuotoja"),
        Value("baker", "kepėjas", ins="kepėju", nom_f="kepėja", ins_f="kepėja"),
        Value("farmer", "ūkininkas", ins="ūkininku", nom_f="ūkininkė", ins_f="ūkininke"),
        Value("painter", "tapytojas", ins="tapytoju", nom_f="tapytoja", ins_f="tapytoja"),
        Value("singer", "dainininkas", ins="dainininku", nom_f="dainininkė", ins_f="dainininke"),
        Value("writer", "rašytojas", ins="rašytoju", nom_f="rašytoja", ins_f="rašytoja"),
    ),
    "town": (
        Value("Vilnius", "Vilnius", gen="Vilniaus", loc="Vilniuje"),
        Value("Kaunas", "Kaunas", gen="Kauno", loc="Kaune"),
        Value("Alytus", "Alytus", gen="Alytaus", loc="Alytuje"),
        Value("Utena", "Utena", gen="Utenos", loc="Utenoje"),
        Value("Birzai", "Biržai", gen="Biržų", loc="Biržuose"),
        Value("Telsiai", "Telšiai", gen="Telšių", loc="Telšiuose"),
        Value("Palanga", "Palanga", gen="Palangos", loc="Palangoje"),
        Value("Siauliai", "Šiauliai", gen="Šiaulių", loc="Šiauliuose"),
    ),
    "colour": (
        Value("red", "raudona", acc="raudoną"),
        Value("green", "žalia", acc="žalią"),
        Value("blue", "mėlyna", acc="mėlyną"),
        Value("yellow", "geltona", acc="geltoną"),
        Value("white", "balta", acc="baltą"),
        Value("black", "juoda", acc="juodą"),
        Value("brown", "ruda", acc="rudą"),
        Value("grey", "pilka", acc="pilką"),
    ),
    "pet": (
        Value("dog", "šuo", acc="šunį"),
        Value("cat", "katė", acc="katę"),
        Value("horse", "arklys", acc="arklį"),
        Value("goat", "ožka", acc="ožką"),
        Value("hen", "višta", acc="vištą"),
        Value("sheep", "avis", acc="avį"),
        Value("rabbit", "triušis", acc="triušį"),
        Value("goose", "žąsis", acc="žąsį"),
    ),
    "food": (
        Value("bread", "duona", acc="duoną"),
        Value("cheese", "sūris", acc="sūrį"),
        Value("soup", "sriuba", acc="sriubą"),
        Value("honey", "medus", acc="medų"),
        Value("porridge", "košė", acc="košę"),
        Value("fish", "žuvis", acc="žuvį"),
        Value("rice", "ryžiai", acc="ryžius"),
        Value("meat", "mėsa", acc="mėsą"),
    ),
}

ITEMS: Final = (
    Item("apple", "apples", "obuolį", "obuolius", "obuolių"),
    Item("pear", "pears", "kriaušę", "kriaušes", "kriaušių"),
    Item("book", "books", "knygą", "knygas", "knygų"),
    Item("egg", "eggs", "kiaušinį", "kiaušinius", "kiaušinių"),
    Item("coin", "coins", "monetą", "monetas", "monetų"),
    Item("pencil", "pencils", "pieštuką", "pieštukus", "pieštukų"),
)

NUMBERS: Final[dict[str, tuple[str, ...]]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "lt": ("nulis", "vienas", "du", "trys", "keturi", "penki", "šeši", "septyni", "aštuoni", "devyni", "dešimt"),
}

Fact = tuple[Person, Topic]


class World:
    """Four men and four women with five facts each; a fifth of the facts appears in no quiz of the training text.

    Attributes:
        people: the inhabitants.
        facts: (person, topic) -> index of its value in `VALUES[topic]`.
        held: facts that the running text tells but no quiz in the training text asks.
    """

    def __init__(self, seed: int = 0, men: int = 4, women: int = 4) -> None:
        dice = Dice("world", seed)
        self.seed = seed
        self.people: tuple[Person, ...] = (*dice.sample(MEN, men), *dice.sample(WOMEN, women))
        self.facts: dict[Fact, int] = {}
        for topic in TOPICS:
            # Each value about equally often, so that guessing the most frequent answer does not help.
            indices = list(range(len(VALUES[topic])))
            spread = (indices * len(self.people))[: len(self.people) - len(self.people) % len(indices)]
            spread += dice.sample(indices, len(self.people) % len(indices))
            for person, index in zip(self.people, dice.shuffled(spread), strict=True):
                self.facts[person, topic] = index
        self.held: frozenset[Fact] = frozenset(dice.sample(sorted_facts(self.facts), len(self.facts) // 5))
        self.asked: tuple[Fact, ...] = tuple(fact for fact in sorted_facts(self.facts) if fact not in self.held)

    def value(self, fact: Fact) -> Value:
        return VALUES[fact[1]][self.facts[fact]]

    def wrong(self, fact: Fact, dice: Dice, k: int) -> list[Value]:
        """`k` different values that the fact does not have."""
        pool = VALUES[fact[1]]
        return dice.sample([value for i, value in enumerate(pool) if i != self.facts[fact]], k)


def sorted_facts(facts: dict[Fact, int]) -> list[Fact]:
    """The facts in an order that does not depend on how the dictionary was filled."""
    return sorted(facts, key=lambda fact: (fact[0].en, TOPICS.index(fact[1])))
