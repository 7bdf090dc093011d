"""The generated world: parallel in two languages, grammatically correct, reproducible on every machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples.miniature import text
from examples.miniature.dice import Dice
from examples.miniature.grammar import ENGLISH, GRAMMARS, LITHUANIAN
from examples.miniature.world import ITEMS, MEN, TOPICS, VALUES, WOMEN, World

ONA = next(person for person in WOMEN if person.nom == "Ona")
PAULIUS = next(person for person in MEN if person.nom == "Paulius")


def test_draws_do_not_change_with_python_or_hash_seed() -> None:
    dice = Dice("pinned", 7)
    assert [dice.below(1000) for _ in range(5)] == [542, 950, 310, 642, 965]
    code = "from examples.miniature.dice import Dice; print(Dice('a').shuffled(list(range(9))))"
    runs = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and runs != {b""}


def test_dice_draw_fairly_and_within_bounds() -> None:
    dice = Dice("fair")
    counts = [0] * 5
    for _ in range(5000):
        counts[dice.pick(range(5))] += 1
    assert all(850 < count < 1150 for count in counts)
    assert sorted(dice.shuffled(range(20))) == list(range(20))
    weighted = [dice.weighted({"often": 0.9, "seldom": 0.1}) for _ in range(1000)]
    assert 840 < weighted.count("often") < 960


@pytest.mark.parametrize("seed", range(5))
def test_every_value_of_a_fact_is_about_equally_often_true(seed: int) -> None:
    world = World(seed)
    for topic in TOPICS:
        values = [world.facts[person, topic] for person in world.people]
        assert max(map(values.count, values)) - min(values.count(i) for i in range(len(VALUES[topic]))) <= 1


def test_held_out_facts_are_stated_but_never_asked_in_training_text() -> None:
    world = World(0)
    assert len(world.held) == len(world.facts) // 5
    assert world.held.isdisjoint(world.asked) and len(world.held) + len(world.asked) == len(world.facts)
    shares = {"en": text.PRETRAINING, "lt": text.TASK_B}
    for language, grammar in GRAMMARS.items():
        dice = Dice("held", language)
        documents = "\n".join(text.document(world, language, shares[language], dice) for _ in range(2000))
        asked = {fact for fact in world.facts if grammar.question(fact[1], fact[0]) in documents}
        assert asked == set(world.asked)
        for person, topic in world.held:
            said = [
                grammar.sentence(topic, form, person, world.value((person, topic)))
                for form in range(grammar.forms(topic))
            ]
            assert any(sentence in documents for sentence in said)


def test_text_never_states_a_falsehood() -> None:
    """Every sentence with a person and a value of a topic states the true value."""
    world = World(0)
    for language, grammar in GRAMMARS.items():
        dice = Dice("true", language)
        stories = "\n".join(text.story(world, grammar, dice) for _ in range(500))
        for person in world.people:
            for topic in TOPICS:
                for value in VALUES[topic]:
                    if value != world.value((person, topic)):
                        for form in range(grammar.forms(topic)):
                            assert grammar.sentence(topic, form, person, value) not in stories


def test_equal_dice_give_the_same_story_in_both_languages() -> None:
    world = World(3)
    for i in range(50):
        english = text.document(world, "en", text.HELDOUT, Dice("parallel", i))
        lithuanian = text.document(world, "lt", text.HELDOUT, Dice("parallel", i))
        assert english.count("\n") == lithuanian.count("\n")
        assert english.count(".") == lithuanian.count(".")
        for person in world.people:
            assert (person.en in english) == any(
                form in lithuanian for form in (person.nom, person.gen, person.dat, person.ins)
            )


def test_templates_of_both_languages_are_parallel() -> None:
    for topic in TOPICS:
        assert len(ENGLISH.clauses[topic]) == len(LITHUANIAN.clauses[topic])
        assert len(ENGLISH.sentences[topic]) == len(LITHUANIAN.sentences[topic])
    assert len(ENGLISH.meetings) == len(LITHUANIAN.meetings)


@pytest.mark.parametrize(
    ("n", "english", "lithuanian"),
    [
        (1, "apple", "obuolį"),
        (2, "apples", "obuolius"),
        (9, "apples", "obuolius"),
        (10, "apples", "obuolių"),
        (11, "apples", "obuolių"),
        (19, "apples", "obuolių"),
        (20, "apples", "obuolių"),
        (21, "apples", "obuolį"),
        (22, "apples", "obuolius"),
        (111, "apples", "obuolių"),
    ],
)
def test_numbers_govern_their_nouns(n: int, english: str, lithuanian: str) -> None:
    apple = ITEMS[0]
    assert ENGLISH.count(n, apple) == english
    assert LITHUANIAN.count(n, apple) == lithuanian


def test_lithuanian_agrees_in_case_and_gender() -> None:
    farmer, dog, blue = VALUES["job"][4], VALUES["pet"][0], VALUES["colour"][2]
    siauliai, bread = VALUES["town"][7], VALUES["food"][0]
    say = LITHUANIAN.sentence
    assert say("job", 0, ONA, farmer) == "Ona dirba ūkininke."
    assert say("job", 0, PAULIUS, farmer) == "Paulius dirba ūkininku."
    assert say("job", 3, ONA, farmer) == "Onos profesija – ūkininkė."
    assert say("town", 0, PAULIUS, siauliai) == "Paulius gyvena Šiauliuose."
    assert say("town", 1, ONA, siauliai, by_pronoun=True) == "Ji yra iš Šiaulių."
    assert say("colour", 2, PAULIUS, blue) == "Mėgstamiausia Pauliaus spalva yra mėlyna."
    assert say("colour", 3, ONA, blue) == "Iš visų spalvų Onai labiausiai patinka mėlyna."
    assert say("colour", 3, PAULIUS, blue, by_pronoun=True) == "Iš visų spalvų jam labiausiai patinka mėlyna."
    assert say("pet", 0, ONA, dog) == "Ona turi šunį."
    assert say("food", 4, PAULIUS, bread) == "Vakarienei Paulius nori valgyti duoną."
    assert LITHUANIAN.question("pet", PAULIUS) == "Koks yra Pauliaus augintinis?"
    assert LITHUANIAN.meeting(0, ONA, PAULIUS, "_", "turi šunį") == "Ona kalbėjosi su Pauliumi, nes _ turi šunį."


def test_english_takes_articles_and_possessives() -> None:
    assert ENGLISH.sentence("pet", 0, ONA, VALUES["pet"][0]) == "Anna has a dog."
    assert ENGLISH.sentence("colour", 2, PAULIUS, VALUES["colour"][0]) == "Paul's favourite colour is red."
    assert ENGLISH.sentence("food", 3, ONA, VALUES["food"][0], by_pronoun=True) == "Her favourite food is bread."
    assert ENGLISH.word_problem(ONA, ITEMS[0], 1, 2) == (
        "Anna has 1 apple. She buys 2 more apples. How many apples does Anna have now?",
        "Anna has 1 + 2 = 3 apples.\n#### 3",
    )


def test_words_of_a_language_are_distinct() -> None:
    """Values of a topic have distinct words; otherwise a question would have two correct options."""
    for topic in TOPICS:
        for grammar in GRAMMARS.values():
            for female in (False, True):
                words = [grammar.word(value, female=female) for value in VALUES[topic]]
                assert len(set(words)) == len(words)
    for form in ("en", "nom", "gen", "dat", "ins"):
        names = [getattr(person, form) for person in (*MEN, *WOMEN)]
        assert len(set(names)) == len(names)


def test_every_form_used_by_a_template_exists() -> None:
    """A form missing from the tables would leave a gap in a sentence."""
    for grammar in GRAMMARS.values():
        for topic in TOPICS:
            for value in VALUES[topic]:
                for person in (ONA, PAULIUS):
                    for form in range(grammar.forms(topic)):
                        sentence = grammar.sentence(topic, form, person, value)
                        assert "  " not in sentence and " ." not in sentence and "{" not in sentence
                        assert sentence[0].isupper() and sentence.endswith(".")
