"""Running text of the world: stories, meetings, sums, and quizzes in the forms that the benchmarks use.

A document is drawn from a `Dice` alone, by the same steps in both languages, so equal dice give parallel texts.
"""

from __future__ import annotations

from typing import Final, Literal

from examples.miniature.dice import Dice
from examples.miniature.grammar import GRAMMARS, Grammar, Language
from examples.miniature.world import ITEMS, NUMBERS, TOPICS, VALUES, Fact, Person, World

Kind = Literal["prose", "cloze", "statements", "problems", "preamble", "reading"]
Paragraph = Literal["story", "meeting", "sums", "figures", "kinds"]

# Share of each kind of paragraph in prose, and of each kind of document.
PROSE: Final[dict[Paragraph, float]] = {"story": 0.65, "meeting": 0.20, "sums": 0.05, "figures": 0.05, "kinds": 0.05}
PRETRAINING: Final[dict[Kind, float]] = {
    "prose": 0.45,
    "cloze": 0.22,
    "statements": 0.10,
    "problems": 0.15,
    "preamble": 0.02,
    "reading": 0.06,
}
TASK_B: Final[dict[Kind, float]] = {"prose": 0.50, "cloze": 0.30, "statements": 0.10, "problems": 0.10}
HELDOUT: Final[dict[Kind, float]] = {"prose": 1.0}
PARAGRAPHS: Final = 2  # in a document of prose, so that its first word has little weight in the bits per byte

LARGEST_SUM: Final = 8

# The text that lm-eval's `truthfulqa_mc1/mc2` put before every question; the base model knows it, as large models do.
TRUTHFULQA_PREAMBLE: Final = """Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain.

"""


def document(world: World, language: Language, shares: dict[Kind, float], dice: Dice) -> str:
    """One document of a kind drawn by `shares`."""
    grammar = GRAMMARS[language]
    kind = dice.weighted(shares)
    if kind == "prose":
        return "\n".join(_paragraph(world, grammar, dice) for _ in range(PARAGRAPHS))
    if kind == "problems":
        return "\n\n".join(_labelled(grammar, *draw_problem(world, grammar, dice)) for _ in range(3))
    if kind == "cloze":
        return "\n\n".join(_labelled(grammar, *_cloze(world, grammar, dice)) for _ in range(4))
    if kind == "reading":
        return _reading(world, grammar, dice)
    statements = "\n\n".join(_statement(world, grammar, dice) for _ in range(3))
    return TRUTHFULQA_PREAMBLE + statements if kind == "preamble" else statements


def _paragraph(world: World, grammar: Grammar, dice: Dice) -> str:
    kind = dice.weighted(PROSE)
    if kind == "story":
        return story(world, grammar, dice)
    if kind == "meeting":
        return " ".join(meeting(world, grammar, dice) for _ in range(2))
    if kind == "sums":
        return " ".join(grammar.sum_words(*draw_sum(dice))[2] for _ in range(4))
    if kind == "figures":
        sums = [draw_sum(dice) for _ in range(6)]
        return " ".join(f"{a} + {b} = {a + b}." for a, b in sums)
    return " ".join(_kind_sentence(grammar, dice) for _ in range(3))


def story(world: World, grammar: Grammar, dice: Dice) -> str:
    """Facts about one or two people, a line each; a person is named first, and later often by a pronoun."""
    people = dice.sample(world.people, 1 + dice.below(2))
    return "\n".join(" ".join(portrait(world, grammar, person, dice)) for person in people)


def portrait(world: World, grammar: Grammar, person: Person, dice: Dice) -> list[str]:
    """Two to five facts about a person, a sentence each; sometimes after a title, as in HellaSwag's contexts."""
    titled = dice.chance(0.3)
    topics = dice.sample(TOPICS, 2 + dice.below(4))
    sentences = []
    for place, topic in enumerate(topics):
        form = dice.below(grammar.forms(topic))
        by_pronoun = dice.chance(0.6) and place > 0
        sentences.append(grammar.sentence(topic, form, person, world.value((person, topic)), by_pronoun=by_pronoun))
    if titled:
        sentences[0] = f"{grammar.titles[topics[1]]}: {sentences[0]}"
    return sentences


def meeting(world: World, grammar: Grammar, dice: Dice) -> str:
    """Two people meet, and a clause is true of only one of them."""
    first, second, who, clause, form = draw_meeting(world, grammar, dice)
    return grammar.meeting(form, first, second, grammar.name(who), clause)


def draw_meeting(
    world: World, grammar: Grammar, dice: Dice, fact: Fact | None = None
) -> tuple[Person, Person, Person, str, int]:
    """A meeting as (first, second, person that the clause is about, clause, form); about `fact` if given."""
    who, topic = fact or (dice.pick(world.people), dice.pick(TOPICS))
    # Of one sex, because the gender of Lithuanian jobs would give the answer away; with two values, or nothing would.
    others = [p for p in world.people if p.female == who.female and world.facts[p, topic] != world.facts[who, topic]]
    other = dice.pick(others)
    first, second = (who, other) if dice.chance(0.5) else (other, who)
    clause = grammar.clause(topic, dice.below(len(grammar.clauses[topic])), who, world.value((who, topic)))
    return first, second, who, clause, dice.below(len(grammar.meetings))


def draw_sum(dice: Dice) -> tuple[int, int]:
    """Two positive addends with a sum of at most `LARGEST_SUM`; every pair is equally likely."""
    pairs = [(a, b) for a in range(1, LARGEST_SUM) for b in range(1, LARGEST_SUM) if a + b <= LARGEST_SUM]
    return dice.pick(pairs)


def draw_problem(world: World, grammar: Grammar, dice: Dice) -> tuple[str, str]:
    """A word problem as (question, answer)."""
    return grammar.word_problem(dice.pick(world.people), dice.pick(ITEMS), *draw_sum(dice))


def draw_choices(world: World, grammar: Grammar, dice: Dice, fact: Fact | None = None) -> tuple[str, list[str], int]:
    """A question about a fact as (question, four options, index of the right one); `fact` is drawn if None."""
    fact = fact or dice.pick(world.asked)
    person, topic = fact
    wrong = [grammar.word(value, female=person.female) for value in world.wrong(fact, dice, 3)]
    options, right = place(grammar.word(world.value(fact), female=person.female), wrong, dice)
    return grammar.question(topic, person), options, right


def draw_kind_choices(grammar: Grammar, dice: Dice) -> tuple[str, list[str], int]:
    """A question such as "Which of these words names a town?" as (question, four options, index of the right one)."""
    topics = dice.sample(TOPICS, 4)
    words = [grammar.word(dice.pick(VALUES[topic]), female=False) for topic in topics]
    options, right = place(words[0], words[1:], dice)
    return grammar.kind_question.format(kind=grammar.kinds[topics[0]]), options, right


def draw_sum_choices(grammar: Grammar, dice: Dice) -> tuple[str, list[str], int]:
    """A sum in words as (question, four options, index of the right one)."""
    a, b = draw_sum(dice)
    question, answer, _ = grammar.sum_words(a, b)
    wrong = dice.sample([n for n in range(1, LARGEST_SUM + 1) if n != a + b], 3)
    options, right = place(answer, [NUMBERS[grammar.language][n] for n in wrong], dice)
    return question, options, right


def place(right: str, wrong: list[str], dice: Dice) -> tuple[list[str], int]:
    """The options, with the right one at a random index, and that index."""
    index = dice.below(len(wrong) + 1)
    return [*wrong[:index], right, *wrong[index:]], index


def _cloze(world: World, grammar: Grammar, dice: Dice) -> tuple[str, str]:
    """A question of any kind and the text of its answer."""
    kind = dice.weighted({"fact": 0.7, "kind": 0.15, "sum": 0.15})
    if kind == "fact":
        question, options, right = draw_choices(world, grammar, dice)
    elif kind == "kind":
        question, options, right = draw_kind_choices(grammar, dice)
    else:
        question, options, right = draw_sum_choices(grammar, dice)
    return question, options[right]


def _labelled(grammar: Grammar, question: str, answer: str) -> str:
    return f"{grammar.question_label}: {question}\n{grammar.answer_label}: {answer}"


def _statement(world: World, grammar: Grammar, dice: Dice) -> str:
    """A question answered by a whole sentence, as in TruthfulQA."""
    person, topic = dice.pick(world.asked)
    sentence = grammar.sentence(topic, dice.below(grammar.forms(topic)), person, world.value((person, topic)))
    q, a = grammar.question_label[0], grammar.answer_label[0]
    return f"{q}: {grammar.question(topic, person)}\n{a}: {sentence}"


def _kind_sentence(grammar: Grammar, dice: Dice) -> str:
    topic = dice.pick(TOPICS)
    word = grammar.word(dice.pick(VALUES[topic]), female=dice.chance(0.5))
    return grammar.kind_sentence.format(w=word, kind=grammar.kinds[topic])


def _reading(world: World, grammar: Grammar, dice: Dice) -> str:
    """A passage and a question that it answers, as in Belebele."""
    fact = dice.pick(world.asked)
    person, topic = fact
    told = grammar.sentence(topic, dice.below(grammar.forms(topic)), person, world.value(fact))
    passage = " ".join([told, *portrait(world, grammar, dice.pick(world.people), dice)])
    answer = grammar.word(world.value(fact), female=person.female)
    return f"{passage}\n\n{_labelled(grammar, grammar.question(topic, person), answer)}"
