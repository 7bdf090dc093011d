"""Sentences in English and Lithuanian. Row i of each English table means the same as row i of the Lithuanian one.

Slots: `{N}` the person (nominative), `{G}` the person's (genitive), `{D}` to the person (dative), a name or a pronoun;
`{w}` the value (nominative, jobs by gender), `{a}` it with its English article, `{acc} {gen} {loc} {ins}` its cases.
A clause is a sentence without its subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from examples.miniature.world import NUMBERS, Item, Person, Topic, Value

Language = Literal["en", "lt"]


@dataclass(frozen=True)
class Grammar:
    """The templates of one language, and the code that fills their slots."""

    language: Language
    dialect: str  # its name in Belebele
    clauses: dict[Topic, tuple[str, ...]]
    sentences: dict[Topic, tuple[str, ...]]
    questions: dict[Topic, str]
    titles: dict[Topic, str]
    kinds: dict[Topic, str]
    kind_question: str
    kind_sentence: str
    sum_question: str
    sum_sentence: str
    problem: str
    solution: str
    meetings: tuple[str, ...]
    question_label: str
    answer_label: str

    def name(self, person: Person) -> str:
        return person.en if self.language == "en" else person.nom

    def pronoun(self, person: Person) -> str:
        if self.language == "en":
            return "she" if person.female else "he"
        return "ji" if person.female else "jis"

    def word(self, value: Value, *, female: bool) -> str:
        """The value as an answer, in the nominative; jobs in the feminine if `female`."""
        if self.language == "en":
            return value.en
        return value.nom_f if female and value.nom_f else value.nom

    def _slots(self, person: Person, value: Value, by_pronoun: bool) -> dict[str, str]:
        female = person.female
        word = self.word(value, female=female)
        if self.language == "en":
            owner = ("her" if female else "his") if by_pronoun else person.en + "'s"
            subject = self.pronoun(person) if by_pronoun else person.en
            return {"N": subject, "G": owner, "w": word, "a": with_article(word)}
        subject, owner, to = person.nom, person.gen, person.dat
        if by_pronoun:
            subject, owner, to = ("ji", "jos", "jai") if female else ("jis", "jo", "jam")
        ins = value.ins_f if female and value.ins_f else value.ins
        cases = {"acc": value.acc, "gen": value.gen, "loc": value.loc, "ins": ins}
        return {"N": subject, "G": owner, "D": to, "w": word, **cases}

    def clause(self, topic: Topic, form: int, person: Person, value: Value) -> str:
        """A statement about the person without subject and full stop, such as "has a dog"."""
        return self.clauses[topic][form].format(**self._slots(person, value, False))

    def forms(self, topic: Topic) -> int:
        """The number of ways to say a fact."""
        return len(self.clauses[topic]) + len(self.sentences[topic])

    def sentence(self, topic: Topic, form: int, person: Person, value: Value, *, by_pronoun: bool = False) -> str:
        """The fact as a sentence, in one of `forms(topic)` ways; the clauses come first."""
        templates = [f"{{N}} {clause}." for clause in self.clauses[topic]] + list(self.sentences[topic])
        return capitalised(templates[form].format(**self._slots(person, value, by_pronoun)))

    def question(self, topic: Topic, person: Person) -> str:
        owner = person.en + "'s" if self.language == "en" else person.gen
        return self.questions[topic].format(N=self.name(person), G=owner)

    def sum_words(self, a: int, b: int) -> tuple[str, str, str]:
        """A sum in words as (question, answer, sentence)."""
        words = NUMBERS[self.language]
        slots = {"a": words[a], "b": words[b], "c": words[a + b]}
        return self.sum_question.format(**slots), words[a + b], capitalised(self.sum_sentence.format(**slots))

    def count(self, n: int, item: Item) -> str:
        """The noun that follows the number `n`: "apple", "apples"; "obuolį", "obuolius", "obuolių"."""
        if self.language == "en":
            return item.en if n == 1 else item.en_plural
        if n % 10 == 1 and n % 100 != 11:
            return item.acc
        return item.gen_plural if n % 10 == 0 or 11 <= n % 100 <= 19 else item.acc_plural

    def word_problem(self, person: Person, item: Item, a: int, b: int) -> tuple[str, str]:
        """A word problem in the form of GSM8K: (question, answer that ends in `#### N`)."""
        slots = {
            "N": self.name(person),
            "P": capitalised(self.pronoun(person)),
            "a": f"{a} {self.count(a, item)}",
            "b": str(b),
            "b_items": self.count(b, item),
            "items": item.en_plural if self.language == "en" else item.gen_plural,
            "work": f"{a} + {b} = {a + b} {self.count(a + b, item)}",
            "c": str(a + b),
        }
        return self.problem.format(**slots), self.solution.format(**slots)

    def meeting(self, form: int, first: Person, second: Person, who: str, clause: str) -> str:
        """Two people meet, and a clause says something about one of them; `who` is that person's name, or `_`."""
        other = second.en if self.language == "en" else second.ins
        return self.meetings[form].format(A=self.name(first), B=other, who=who, clause=clause)


def with_article(word: str) -> str:
    """An English noun with "a" or "an"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def capitalised(sentence: str) -> str:
    """The sentence with a capital first letter, the rest unchanged (`str.capitalize` lowers the rest)."""
    return sentence[0].upper() + sentence[1:]


ENGLISH: Final = Grammar(
    language="en",
    dialect="eng_Latn",
    clauses={
        "job": ("works as {a}", "is {a}"),
        "town": ("lives in {w}", "comes from {w}", "has a house in {w}"),
        "colour": ("likes the colour {w}", "wears a {w} coat"),
        "pet": ("has {a}", "looks after {a}"),
        "food": ("likes {w}", "often eats {w}", "buys {w} every morning"),
    },
    sentences={
        "job": ("By profession, {N} is {a}.", "{G} work is that of {a}."),
        "town": ("{G} home is in {w}.", "{G} home town is {w}."),
        "colour": ("{G} favourite colour is {w}.", "Of all colours, {N} likes {w} best."),
        "pet": ("{G} pet is {a}.", "At home, {N} keeps {a}."),
        "food": ("{G} favourite food is {w}.", "For dinner, {N} wants to eat {w}."),
    },
    questions={
        "job": "What is {G} job?",
        "town": "What is {G} home town?",
        "colour": "What is {G} favourite colour?",
        "pet": "What pet does {N} have?",
        "food": "What is {G} favourite food?",
    },
    titles={
        "job": "At work",
        "town": "At home",
        "colour": "Favourite colours",
        "pet": "Looking after animals",
        "food": "At the table",
    },
    kinds={"job": "a job", "town": "a town", "colour": "a colour", "pet": "an animal", "food": "a food"},
    kind_question="Which of these words names {kind}?",
    kind_sentence="The word “{w}” names {kind}.",
    sum_question="How much is {a} plus {b}?",
    sum_sentence="{a} plus {b} is {c}.",
    problem="{N} has {a}. {P} buys {b} more {b_items}. How many {items} does {N} have now?",
    solution="{N} has {work}.\n#### {c}",
    meetings=("{A} talked with {B} because {who} {clause}.", "{A} met {B} in the street. {who} {clause}."),
    question_label="Question",
    answer_label="Answer",
)

LITHUANIAN: Final = Grammar(
    language="lt",
    dialect="lit_Latn",
    clauses={
        "job": ("dirba {ins}", "yra {w}"),
        "town": ("gyvena {loc}", "yra iš {gen}", "turi namą {loc}"),
        "colour": ("mėgsta {acc} spalvą", "dėvi {acc} paltą"),
        "pet": ("turi {acc}", "prižiūri {acc}"),
        "food": ("mėgsta {acc}", "dažnai valgo {acc}", "kas rytą perka {acc}"),
    },
    sentences={
        "job": ("Pagal profesiją {N} yra {w}.", "{G} profesija – {w}."),
        "town": ("{G} namai yra {loc}.", "{G} gimtasis miestas yra {w}."),
        "colour": ("Mėgstamiausia {G} spalva yra {w}.", "Iš visų spalvų {D} labiausiai patinka {w}."),
        "pet": ("{G} augintinis yra {w}.", "Namuose {N} laiko {acc}."),
        "food": ("Mėgstamiausias {G} maistas yra {w}.", "Vakarienei {N} nori valgyti {acc}."),
    },
    questions={
        "job": "Kokia yra {G} profesija?",
        "town": "Koks yra {G} gimtasis miestas?",
        "colour": "Kokia yra mėgstamiausia {G} spalva?",
        "pet": "Koks yra {G} augintinis?",
        "food": "Koks yra mėgstamiausias {G} maistas?",
    },
    titles={
        "job": "Darbe",
        "town": "Namie",
        "colour": "Mėgstamos spalvos",
        "pet": "Gyvūnų priežiūra",
        "food": "Prie stalo",
    },
    kinds={"job": "profesiją", "town": "miestą", "colour": "spalvą", "pet": "gyvūną", "food": "maistą"},
    kind_question="Kuris iš šių žodžių reiškia {kind}?",
    kind_sentence="Žodis „{w}“ reiškia {kind}.",
    sum_question="Kiek yra {a} plius {b}?",
    sum_sentence="{a} plius {b} yra {c}.",
    problem="{N} turi {a}. {P} nusiperka dar {b} {b_items}. Kiek {items} {N} turi dabar?",
    solution="{N} turi {work}.\n#### {c}",
    meetings=("{A} kalbėjosi su {B}, nes {who} {clause}.", "{A} gatvėje susitiko su {B}. {who} {clause}."),
    question_label="Klausimas",
    answer_label="Atsakymas",
)

GRAMMARS: Final[dict[Language, Grammar]] = {"en": ENGLISH, "lt": LITHUANIAN}
