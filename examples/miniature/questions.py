"""Questions about the world in the column schemas of the seven benchmarks, so that lm-eval's own task files read them.

The languages differ in words only: row i of each file is the same question in English and in Lithuanian. Facts that no
quiz of the training text asks are among the questions; the ids of their rows, where rows have ids, contain `held`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from examples.miniature import text
from examples.miniature.dice import Dice
from examples.miniature.grammar import Grammar
from examples.miniature.world import TOPICS, Fact, Person, Topic, World, sorted_facts

Row = dict[str, Any]
T = TypeVar("T")

# Subjects of MMLU with questions of their kind; lm-eval sorts them into its four groups.
SUBJECTS: Final[dict[str, Topic | str]] = {
    "elementary_mathematics": "sum",  # STEM
    "high_school_biology": "pet",
    "formal_logic": "kind",  # humanities
    "high_school_geography": "town",  # social sciences
    "sociology": "job",
    "nutrition": "food",  # other
}
MMLU_ROWS: Final = {"dev": 5, "validation": 15, "test": 15}
LETTERS: Final = ["A", "B", "C", "D"]


def files(world: World, grammar: Grammar) -> Iterator[tuple[str, list[Row]]]:
    """Every file as (path under `questions/<language>`, its rows)."""
    yield "arc_easy/train.jsonl", arc_easy(world, grammar, "train", world.asked[:20])
    yield "arc_easy/validation.jsonl", arc_easy(world, grammar, "validation", world.asked[-20:])
    yield "arc_easy/test.jsonl", arc_easy(world, grammar, "test", every_fact(world), kinds=20, sums=20)
    yield "belebele/test.jsonl", belebele(world, grammar, "test", 30)
    yield "gsm8k/train.jsonl", gsm8k(world, grammar, "train", 20)
    yield "gsm8k/test.jsonl", gsm8k(world, grammar, "test", 60)
    yield "hellaswag/train.jsonl", hellaswag(world, grammar, "train", world.asked[:20])
    yield "hellaswag/validation.jsonl", hellaswag(world, grammar, "validation", every_fact(world) * 2)
    yield "truthfulqa/validation.jsonl", truthfulqa(world, grammar, "validation", every_fact(world))
    yield "winogrande/train.jsonl", winogrande(world, grammar, "train", world.asked[:20])
    yield "winogrande/validation.jsonl", winogrande(world, grammar, "validation", every_fact(world) * 2)
    for subject in SUBJECTS:
        for split, n in MMLU_ROWS.items():
            yield f"mmlu/{split}/{subject}.jsonl", mmlu(world, grammar, split, subject, n)


def every_fact(world: World) -> tuple[Fact, ...]:
    """All facts, shuffled, so that the first rows are a fair sample if `evaluate.limit` is set."""
    return tuple(Dice(world.seed, "every_fact").shuffled(sorted_facts(world.facts)))


def arc_easy(
    world: World, grammar: Grammar, split: str, facts: tuple[Fact, ...], kinds: int = 0, sums: int = 0
) -> list[Row]:
    """Questions about facts, questions such as "Which of these words names a town?", and sums in words."""
    dice = Dice(world.seed, "arc_easy", split)
    drawn = [(text.draw_choices(world, grammar, dice, fact), fact in world.held) for fact in facts]
    drawn += [(choices, False) for choices in distinct(lambda: text.draw_kind_choices(grammar, dice), kinds)]
    drawn += [(choices, False) for choices in distinct(lambda: text.draw_sum_choices(grammar, dice), sums)]
    return [
        {
            "id": f"MINIATURE_{split}_{i}" + "_held" * held,
            "question": question,
            "choices": {"text": options, "label": LETTERS},
            "answerKey": LETTERS[right],
        }
        for i, ((question, options, right), held) in enumerate(dice.shuffled(drawn))
    ]


def belebele(world: World, grammar: Grammar, split: str, passages: int) -> list[Row]:
    """Two questions on each passage, which contains the answers."""
    dice = Dice(world.seed, "belebele", split)
    rows = []
    for passage in range(passages):
        first, second = dice.sample(world.people, 2)
        facts = [(first, dice.pick(TOPICS)), (second, dice.pick(TOPICS))]
        told = []
        for person, topic in facts:
            for said in (topic, dice.pick([other for other in TOPICS if other != topic])):
                form = dice.below(grammar.forms(said))
                told.append(grammar.sentence(said, form, person, world.value((person, said)), by_pronoun=said != topic))
        for number, fact in enumerate(facts, start=1):
            question, options, right = text.draw_choices(world, grammar, dice, fact)
            rows.append(
                {
                    "link": f"miniature:{split}/{passage}",
                    "question_number": number,
                    "flores_passage": " ".join(told),
                    "question": question,
                    **{f"mc_answer{i}": option for i, option in enumerate(options, start=1)},
                    "correct_answer_num": str(right + 1),
                    "dialect": grammar.dialect,
                    "ds": "",
                }
            )
    return rows


def gsm8k(world: World, grammar: Grammar, split: str, n: int) -> list[Row]:
    """Small sums as stories about people and things; the answer ends in `#### N`."""
    dice = Dice(world.seed, "gsm8k", split)
    drawn = distinct(lambda: text.draw_problem(world, grammar, dice), n)
    return [{"question": question, "answer": answer} for question, answer in drawn]


def hellaswag(world: World, grammar: Grammar, split: str, facts: tuple[Fact, ...]) -> list[Row]:
    """A sentence about a person and four continuations, one of which is true."""
    dice = Dice(world.seed, "hellaswag", split)
    rows = []
    for i, (person, topic) in enumerate(facts):
        told = dice.pick([other for other in TOPICS if other != topic])
        context = grammar.sentence(told, dice.below(grammar.forms(told)), person, world.value((person, told)))
        form = dice.below(len(grammar.clauses[topic]))
        values = [world.value((person, topic)), *world.wrong((person, topic), dice, 3)]
        right, *wrong = [grammar.clause(topic, form, person, value) + "." for value in values]
        endings, label = text.place(right, wrong, dice)
        rows.append(
            {
                "ind": i,
                "activity_label": grammar.titles[topic],
                "ctx_a": context,
                "ctx_b": grammar.pronoun(person),
                "ctx": f"{context} {grammar.pronoun(person)}",
                "endings": endings,
                "source_id": f"miniature~{split}_{i}" + "_held" * ((person, topic) in world.held),
                "split": "val" if split == "validation" else split,
                "split_type": "indomain",
                "label": str(label),
            }
        )
    return rows


def mmlu(world: World, grammar: Grammar, split: str, subject: str, n: int) -> list[Row]:
    """Questions of one subject: about the facts of its topic, sums, or what a word names."""
    dice = Dice(world.seed, "mmlu", split, subject)
    about = SUBJECTS[subject]
    if about == "sum":
        drawn = distinct(lambda: text.draw_sum_choices(grammar, dice), n)
    elif about == "kind":
        drawn = distinct(lambda: text.draw_kind_choices(grammar, dice), n)
    else:
        facts = [fact for fact in sorted_facts(world.facts) if fact[1] == about]
        drawn = distinct(lambda: text.draw_choices(world, grammar, dice, dice.pick(facts)), n)
    return [
        {"question": question, "subject": subject, "choices": options, "answer": right}
        for question, options, right in drawn
    ]


def truthfulqa(world: World, grammar: Grammar, split: str, facts: tuple[Fact, ...]) -> list[Row]:
    """Answers in whole sentences, each in one of two forms: two true and four false."""
    dice = Dice(world.seed, "truthfulqa", split)
    rows = []
    for fact in facts:
        person, topic = fact
        forms = dice.sample(range(grammar.forms(topic)), 2)
        wrong = world.wrong(fact, dice, 4)
        true = [grammar.sentence(topic, form, person, world.value(fact)) for form in forms]
        false = [grammar.sentence(topic, forms[i % 2], person, value) for i, value in enumerate(wrong)]
        rows.append(
            {
                "question": grammar.question(topic, person),
                "mc1_targets": {"choices": [true[0], *false], "labels": [1, 0, 0, 0, 0]},
                "mc2_targets": {"choices": [*true, *false], "labels": [1, 1, 0, 0, 0, 0]},
            }
        )
    return rows


def winogrande(world: World, grammar: Grammar, split: str, facts: tuple[Fact, ...]) -> list[Row]:
    """Two people meet, and a clause is true of one of them, whose name is the blank."""
    dice = Dice(world.seed, "winogrande", split)
    rows: list[Row] = []
    drawn: list[tuple[Person, Person, Person, str, int]] = []
    for fact in facts:
        meeting = text.draw_meeting(world, grammar, dice, fact)
        while meeting in drawn:  # a fact may occur twice, but not with the same two people in the same words
            meeting = text.draw_meeting(world, grammar, dice, fact)
        drawn.append(meeting)
        first, second, who, clause, form = meeting
        rows.append(
            {
                "sentence": grammar.meeting(form, first, second, "_", clause),
                "option1": grammar.name(first),
                "option2": grammar.name(second),
                "answer": "1" if who == first else "2",
            }
        )
    return rows


def distinct(draw: Callable[[], T], n: int) -> list[T]:
    """`n` different draws; the world is large enough for every `n` used here."""
    seen: list[T] = []
    for _ in range(1000 * n):
        if len(seen) == n:
            break
        drawn = draw()
        if drawn not in seen:
            seen.append(drawn)
    assert len(seen) == n, f"only {len(seen)} of {n} different questions"
    return seen
