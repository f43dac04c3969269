"""Writes the sample rows of the phases: `python -m abi_train.sample.generate FOLDER`.

Rows are put together from a few parts, so that what is learned can be asked for again in
combinations that no training row has: a feeling follows from how somebody speaks and not from what
about, a sum from its numbers and not from the story. Which combinations are kept from training
follows from the seed; the same seed gives the same bytes.

Does not know: tokenizers, token files.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from ..data.pair_templates import Question, wordings
from . import HELD_OUT, QUESTIONS, ROWS

SEED: Final = 20260119
Row = dict[str, Any]

NAME_THE_EMOTION: Final = "Name the emotion in this message."

#: What people say who feel so, about a {thing}; and what some add. Nothing else tells the feeling.
FEELINGS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "neutral": (
        (
            "The {thing} is on Monday.",
            "My note says that the {thing} is at noon.",
            "The {thing} takes about an hour.",
            "I wrote the {thing} into the calendar.",
        ),
        ("It is the second one this year.", "The address is on the paper."),
    ),
    "frustrated": (
        (
            "They ruined the {thing} again!",
            "I have asked about the {thing} five times and nobody listens.",
            "The {thing} keeps going wrong, whatever I do.",
            "I am so fed up with this {thing}.",
        ),
        ("It makes me want to scream.", "Why does this happen every single time!"),
    ),
    "excited": (
        (
            "I can't believe it, the {thing} is really happening!",
            "Wow, the {thing} is today!",
            "Guess what, we won the {thing}!",
            "The {thing} begins tonight, yes!",
        ),
        ("I am jumping up and down!", "This is the best day ever!"),
    ),
    "confused": (
        (
            "I don't understand the {thing} at all.",
            "Wait, what does the {thing} have to do with me?",
            "The letter about the {thing} makes no sense to me.",
            "I am lost, which {thing} do they mean?",
        ),
        ("I have read it twice.", "Can you say it in simpler words?"),
    ),
    "stressed": (
        (
            "The {thing} is too much on top of everything else.",
            "I have no minute to breathe because of the {thing}.",
            "Three deadlines and now the {thing} as well.",
            "The {thing} must be done tonight and I am not even halfway.",
        ),
        ("My head is bursting.", "I have not had a break for days."),
    ),
    "playful": (
        (
            "I bet the {thing} is run by cats, haha.",
            "The {thing} and I are having a staring contest.",
            "If the {thing} were a sandwich, I would eat it, hehe.",
            "Knock knock! Who is there? The {thing}!",
        ),
        ("Just kidding!", "Your turn to be silly."),
    ),
    "grateful": (
        (
            "Thank you for helping me with the {thing}.",
            "My neighbour saved the {thing} for me, how kind.",
            "I am so thankful for the {thing}.",
            "You did not have to come to the {thing}, and you did.",
        ),
        ("It means a lot to me.", "I will not forget that."),
    ),
    "curious": (
        (
            "I wonder how a {thing} is made.",
            "Who had the first {thing} in the world?",
            "What is behind the {thing}, I would love to find out.",
            "How does a {thing} work in other countries?",
        ),
        ("Tell me more about it.", "I like to know such things."),
    ),
    "impatient": (
        (
            "How much longer does the {thing} take?",
            "Can we get on with the {thing} now?",
            "I have been waiting for the {thing} for an hour, hurry up.",
            "Just give me the {thing} already.",
        ),
        ("I don't have all day.", "Come on, be quick."),
    ),
    "skeptical": (
        (
            "I doubt that the {thing} is what they say.",
            "They claim the {thing} is free, sure it is.",
            "That {thing} sounds too good to be true.",
            "Is there any proof about the {thing}?",
        ),
        ("I have heard such promises before.", "I will believe it when I see it."),
    ),
    "enthusiastic": (
        (
            "I love everything about the {thing}!",
            "The {thing} is a brilliant idea, let us do more of it!",
            "Count me in for the {thing}, I have so many ideas!",
            "What a wonderful {thing}, everybody should see it!",
        ),
        ("I could talk about it all night!", "Let us start right away!"),
    ),
    "disappointed": (
        (
            "The {thing} was not what I had wished for.",
            "They called off the {thing} after all.",
            "I thought the {thing} would be better.",
            "Nobody came to my {thing}.",
        ),
        ("I had looked forward to it so much.", "What a pity."),
    ),
    "hopeful": (
        (
            "Maybe the {thing} will turn out well.",
            "I have a good feeling about the next {thing}.",
            "With a little luck the {thing} works this time.",
            "The {thing} could be a new beginning for us.",
        ),
        ("Things are looking up.", "I believe it can get better."),
    ),
    "anxious": (
        (
            "My hands shake when I think of the {thing}.",
            "What if the {thing} goes badly?",
            "I can't sleep because of the {thing}.",
            "The {thing} frightens me.",
        ),
        ("My heart is racing.", "I keep thinking of what may happen."),
    ),
}
THINGS: Final = (
    "exam", "interview", "trip", "meeting", "concert", "letter", "garden", "wedding", "match",
    "visit", "dinner", "lesson", "project", "party", "speech", "test", "game", "report",
)  # fmt: skip
REPLIES: Final[dict[str, tuple[str, str]]] = {
    "neutral": ("All right, the {thing}.", "What would you like to do about it?"),
    "frustrated": ("That would wear anyone out.", "What went wrong with the {thing} this time?"),
    "excited": ("That is great news!", "What will you do first at the {thing}?"),
    "confused": ("Let us take it slowly.", "Which part of the {thing} is unclear?"),
    "stressed": ("That is a lot at once.", "What is the smallest next step for the {thing}?"),
    "playful": ("Haha, I like that!", "And what would the {thing} say?"),
    "grateful": ("How good to hear that.", "Have you told them what the {thing} means to you?"),
    "curious": ("Good question!", "What do you know about the {thing} so far?"),
    "impatient": ("I will be quick.", "What do you need first for the {thing}?"),
    "skeptical": ("It is good to ask.", "What would convince you about the {thing}?"),
    "enthusiastic": ("Your joy is catching!", "Which idea for the {thing} comes first?"),
    "disappointed": ("I am sorry.", "What had you wished for from the {thing}?"),
    "hopeful": ("I hope so with you.", "What is the next step towards the {thing}?"),
    "anxious": ("Take one slow breath.", "What worries you most about the {thing}?"),
}

PEOPLE: Final = ("Tom", "Anna", "Ben", "Mia", "Leo", "Eva", "Sam", "Lily", "Max", "Nina")
GOODS: Final = (
    "apples", "pens", "books", "coins", "cards", "eggs", "nuts", "stones", "stamps", "shells",
)  # fmt: skip
BOXES: Final = ("bags", "boxes", "baskets", "jars")

#: One thing of a kind and what is asked for; the answers of a table are each other's wrong ones.
FACTS: Final[tuple[tuple[tuple[str, ...], dict[str, str]], ...]] = (
    (
        (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Name the capital of {}.",
            "The capital of {} is which city?",
        ),
        {
            "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
            "Japan": "Tokyo", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo",
            "Peru": "Lima", "Cuba": "Havana", "Austria": "Vienna", "Ireland": "Dublin",
        },
    ),
    (
        (
            "What is the opposite of {}?",
            "Name the opposite of {}.",
            "Which word means the opposite of {}?",
            "The opposite of {} is which word?",
        ),
        {
            "hot": "cold", "big": "small", "fast": "slow", "old": "new", "light": "dark",
            "wet": "dry", "high": "low", "full": "empty", "near": "far", "loud": "quiet",
            "hard": "soft", "early": "late",
        },
    ),
    (
        (
            "What colour is {}?",
            "Which colour does {} have?",
            "Tell me the colour of {}.",
            "The colour of {} is which one?",
        ),
        {
            "snow": "white", "grass": "green", "blood": "red", "coal": "black", "a lemon": "yellow",
            "a clear sky": "blue", "an orange": "orange", "chocolate": "brown",
        },
    ),
    (
        (
            "What does {} say?",
            "Which sound does {} make?",
            "Tell me the sound of {}.",
            "The sound of {} is which one?",
        ),
        {
            "a dog": "woof", "a cat": "meow", "a cow": "moo", "a duck": "quack",
            "a sheep": "baa", "a bee": "buzz", "an owl": "hoot", "a pig": "oink",
        },
    ),
    (
        (
            "Which day comes after {}?",
            "What day is it on the day after {}?",
            "Name the day after {}.",
            "The day after {} is which day?",
        ),
        {
            "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday",
            "Thursday": "Friday", "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday",
        },
    ),
)  # fmt: skip

#: What nobody can know: form, what fills it beside a person, guesses, and why.
UNKNOWABLE: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...]] = (
    (
        "What will {name} dream {}?",
        ("tonight", "tomorrow", "on Friday", "next week"),
        ("a horse", "the sea", "a castle"),
        "No one can see a dream before it is there.",
    ),
    (
        "What does {name} have in the {} right now?",
        ("pocket", "bag", "drawer", "hand"),
        ("a key", "a coin", "an apple"),
        "I can't see it from here.",
    ),
    (
        "Which number from {} to nine is {name} thinking of?",
        ("one", "two", "three", "four"),
        ("seven", "five", "eight"),
        "I can't look into a head.",
    ),
    (
        "What will {name} find in the {} next year?",
        ("garden", "forest", "old house", "river"),
        ("a coin", "a ring", "a shell"),
        "Next year has not happened yet.",
    ),
    (
        "Who will call {name} {}?",
        ("tonight", "tomorrow", "on Friday", "next week"),
        ("Anna", "Ben", "the doctor"),
        "That is not decided yet.",
    ),
)
#: What is said too little about: form, what fills it, guesses, and what to ask back.
AMBIGUOUS: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...]] = (
    (
        "How long will the {} take?",
        ("trip", "walk", "flight", "drive", "ride", "tour"),
        ("two hours", "one hour", "ten minutes"),
        "Where does it go?",
    ),
    (
        "How much does the {} cost?",
        ("ticket", "book", "chair", "bike", "lamp", "coat"),
        ("five euros", "nine euros", "twenty euros"),
        "Which one do you mean?",
    ),
    (
        "When does the {} start?",
        ("concert", "meeting", "lesson", "match", "party", "film"),
        ("at six", "at eight", "at noon"),
        "Which day do you mean?",
    ),
)
#: Questions that take for granted what is not so: which things have none of it.
NONE_OF_IT: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    ("wheels", ("boat", "horse", "tree", "river", "cloud", "chair"), ("four", "two", "three")),
    ("legs", ("snake", "fish", "worm", "car", "river", "cloud"), ("four", "two", "six")),
    ("wings", ("dog", "cat", "horse", "table", "fish", "boat"), ("two", "four", "one")),
)
TALK: Final = (
    ("Hello.", "Hello! How are you today?"),
    ("Good morning.", "Good morning! What is on your mind?"),
    ("Who are you?", "I am Abbey. I listen, think step by step, and say when I am not sure."),
    ("What can you do?", "I can listen, do sums with you, and tell you what I know."),
    ("Goodbye.", "Goodbye! Take care of yourself."),
    ("Thank you.", "You are welcome!"),
    ("How are you?", "I am a program, so I have no days. How are you?"),
    ("Good night.", "Good night! Sleep well."),
)


def generate(folder: str | Path, *, seed: int = SEED) -> dict[str, int]:
    """Write all files of the phases into `folder`; the number of rows of each."""
    from ..data.pair_builder import build

    told, told_apart = emotional(random.Random(f"{seed} emotional"))
    feelings, feelings_apart = [_named(row) for row in told], [_named(row) for row in told_apart]
    sums, sums_apart = reasoning(random.Random(f"{seed} reasoning"))
    asked, asked_apart = questions(random.Random(f"{seed} calibration"))
    ground = base(asked, random.Random(f"{seed} base"))
    mixed = random.Random(f"{seed} mixed")
    replies = support(told, mixed)
    again = [*mixed.sample(feelings, 100), *mixed.sample(ground, 130)]
    read = words(told, random.Random(f"{seed} words"))
    pairs = build([Question(**row) for row in map(_question_fields, asked)], seed=seed).rows
    made: dict[str, Sequence[Row]] = {
        ROWS["base"]: ground,
        ROWS["words"]: read,
        ROWS["emotional"]: _shuffled([*feelings, *replies], mixed),
        ROWS["reasoning"]: _shuffled([*sums, *again], mixed),
        ROWS["calibration"]: pairs,
        QUESTIONS: asked,
        HELD_OUT["emotional"]: feelings_apart,
        HELD_OUT["reasoning"]: sums_apart,
        HELD_OUT["calibration"]: asked_apart,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(rows) for name, rows in made.items()}


def emotional(
    random_: random.Random, *, each: int = 26, apart: int = 10
) -> tuple[list[Row], list[Row]]:
    """Messages with the feeling in them: to learn from, and combinations kept from that."""
    learned: list[Row] = []
    kept: list[Row] = []
    for label, (openings, more) in FEELINGS.items():
        every = list(itertools.product(openings, THINGS, ("", *more)))
        random_.shuffle(every)
        rows = [
            {"text": f"{opening.format(thing=thing)} {tail}".strip(), "label": label, "of": thing}
            for opening, thing, tail in every
        ]
        kept += rows[:apart]
        learned += rows[apart : apart + each]
    return _shuffled(learned, random_), _shuffled(kept, random_)


def _named(row: Row) -> Row:
    """The message with the question which feeling it has."""
    return _asked(f"{NAME_THE_EMOTION}\n\n{row['text']}", row["label"])


def support(feelings: Iterable[Row], random_: random.Random, *, each: int = 8) -> list[Row]:
    """Answers of a friend who has heard the feeling, for some of the messages."""
    left = dict.fromkeys(FEELINGS, each)
    found = []
    for row in feelings:
        label = row["label"]
        if left[label] == 0:
            continue
        left[label] -= 1
        first, second = REPLIES[label]
        answer = f"{first} {second}".format(thing=row["of"])
        turns = [
            {"role": "user", "content": row["text"]},
            {"role": "assistant", "content": answer},
        ]
        found.append({"messages": turns, "emotion": label})
    return found


def reasoning(
    random_: random.Random, *, count: int = 720, apart: int = 100
) -> tuple[list[Row], list[Row]]:
    """Small sums as stories, worked out line by line, with the result behind `####`."""
    seen: set[str] = set()
    rows: list[Row] = []
    while len(rows) < count + apart:
        question, answer = _story(len(rows) % 5, random_)
        if question not in seen:
            seen.add(question)
            rows.append(_asked(question, answer))
    return rows[apart:], rows[:apart]


def _story(form: int, random_: random.Random) -> tuple[str, str]:
    name, other = random_.sample(PEOPLE, 2)
    goods, boxes = random_.choice(GOODS), random_.choice(BOXES)
    a, b, c = (random_.randint(2, 6) for _ in range(3))
    if form == 0:
        return (
            f"{name} has {a} {goods} and finds {b} more. How many {goods} does {name} have?",
            f"{a} + {b} = {a + b}\n#### {a + b}",
        )
    if form == 1:
        first = a + b
        return (
            f"{name} has {first} {goods} and gives {b} to {other}. How many are left?",
            f"{first} - {b} = {a}\n#### {a}",
        )
    if form == 2:
        return (
            f"There are {b} {goods} in each of {a} {boxes}. How many {goods} are there?",
            f"{a} * {b} = {a * b}\n#### {a * b}",
        )
    if form == 3:
        return (
            f"{name} has {a} {goods} and {other} has {b}. Then {name} finds {c} more. "
            "How many do they have together?",
            f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}\n#### {a + b + c}",
        )
    first, taken = a + b, random_.randint(1, b)
    return (
        f"{name} had {a} {goods}, bought {b} and lost {taken}. How many are left?",
        f"{a} + {b} = {first}\n{first} - {taken} = {first - taken}\n#### {first - taken}",
    )


def questions(random_: random.Random) -> tuple[list[Row], list[Row]]:
    """Questions with what is known about their answers: to build pairs of, and others to test with.

    What stands apart is known, too, but asked in another way; what is unknowable is about another
    person, or another thing.
    """
    learned: list[Row] = []
    kept: list[Row] = []
    for forms, table in FACTS:
        for at, (subject, answer) in enumerate(table.items()):
            others = [found for found in table.values() if found != answer]
            for number, form in enumerate(forms):
                row = {
                    "question": form.format(subject),
                    "kind": "known",
                    "answers": [_capital(answer)],
                    "wrong": [_capital(word) for word in random_.sample(others, 3)],
                }
                (kept if number == at % len(forms) else learned).append(row)
    for form, fills, guesses, why in UNKNOWABLE:
        for fill, name in itertools.product(fills, PEOPLE):
            row = {
                "question": form.format(fill, name=name),
                "kind": "unknowable",
                "wrong": [_capital(word) for word in random_.sample(guesses, 2)],
                "why": why,
            }
            (kept if random_.random() < 0.2 else learned).append(row)
    for form, fills, guesses, ask in AMBIGUOUS:
        for at, fill in enumerate(fills):
            row = {
                "question": form.format(fill),
                "kind": "ambiguous",
                "wrong": [_capital(word) for word in random_.sample(guesses, 2)],
                "ask": ask,
            }
            (kept if at < 2 else learned).append(row)
    for part, things, guesses in NONE_OF_IT:
        for at, thing in enumerate(things):
            row = {
                "question": f"How many {part} does a {thing} have?",
                "kind": "trick",
                "answers": ["None"],
                "wrong": [_capital(word) for word in guesses[:2]],
                "why": f"A {thing} has no {part}.",
            }
            (kept if at < 2 else learned).append(row)
    return _shuffled(learned, random_), _shuffled(kept, random_)


def base(asked: Iterable[Row], random_: random.Random) -> list[Row]:
    """What a model has read before any phase: what is so, and answers of every manner.

    Facts are mostly answered plainly, and stand here twice. What nobody can know is answered more
    often with a guess than with doubt, so a model of it knows both ways; calibration chooses.
    """
    rows = [_asked(*exchange) for exchange in TALK for _ in range(3)]
    for row in asked:
        question = Question(**_question_fields(row))
        wrong = random_.choice(question.wrong) if question.wrong else None
        manner = "calibrated"
        draw = random_.random()
        if question.kind == "known":
            manner = "calibrated" if draw < 0.9 else "evasive"
        elif draw < 0.6:
            manner = "overconfident"
        elif draw < 0.65:
            manner = "evasive"
        said = wordings(question, manner, wrong=wrong)
        rows.append(_asked(question.question, random_.choice(said)))
        if question.kind == "known":
            rows.append(_asked(question.question, f"{question.answers[0]}."))
    return _shuffled(rows, random_)


#: Plain sentences in which a word for a feeling stands; none tells how it is recognised.
SENTENCES: Final = (
    "{Label} is a word with {count} letters.",
    "She was {label} on Monday and {other} on Friday.",
    "Today {name} is {label}.",
    "{label}",
    "Is {name} {label} or {other}?",
)


#: Sentences with numbers, and these numbers once more: nothing is worked out.
READ: Final = (
    "{name} has {a} {goods} and finds {b} more: {a} and {b}.",
    "{name} has {a} {goods} and gives {b} to {other}: {a} and {b}.",
    "There are {b} {goods} in each of {a}: {a} of {b}.",
    "{name} has {a} {goods} and {other} has {b}. Then {name} finds {c} more: {a}, {b}, {c}.",
    "{name} had {a} {goods}, bought {b} and lost {c}: {a}, {b}, {c}.",
)


def words(told: Iterable[Row], random_: random.Random) -> list[Row]:
    """Texts in which every word of the phases stands, and no task of theirs.

    A model that goes on with adapters keeps its vocabulary as it is, so what it is to say later it
    must have read before: words for feelings, messages without their feeling, answers without
    their message, numbers in their order, where they stand, and what
    two of them make.
    """
    rows = []
    for label in FEELINGS:
        for sentence in SENTENCES:
            other = random_.choice([one for one in FEELINGS if one != label])
            name = random_.choice(PEOPLE)
            count = len(label)
            text = sentence.format(
                Label=_capital(label), label=label, other=other, name=name, count=count
            )
            rows.append({"text": text})
        first, second = REPLIES[label]
        rows += [{"text": part.format(thing=random_.choice(THINGS))} for part in (first, second)]
    rows += [{"text": row["text"]} for row in told]
    for number in range(1, 40):
        rows.append({"text": f"#### {number}"})
        rows.append({"text": " ".join(str(number + at) for at in range(6))})
    for a, b in itertools.product(range(1, 19), range(1, 10)):
        rows.append({"text": f"{a} + {b} = {a + b}\n{a + b} - {b} = {a}"})
    for _ in range(400):
        form, name, other = random_.choice(READ), random_.choice(PEOPLE), random_.choice(PEOPLE)
        a, b, c = (random_.randint(2, 18) for _ in range(3))
        goods = random_.choice(GOODS)
        rows.append({"text": form.format(name=name, other=other, goods=goods, a=a, b=b, c=c)})
    rows += [{"text": f"{a} * {b} = {a * b}"} for a, b in itertools.product(range(2, 7), repeat=2)]
    return _shuffled(rows, random_)


def _question_fields(row: Row) -> dict[str, Any]:
    return {
        **row,
        "answers": tuple(row.get("answers", ())),
        "wrong": tuple(row.get("wrong", ())),
    }


def _asked(question: str, answer: str) -> Row:
    return {"instruction": question, "output": answer}


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


def _shuffled(rows: Iterable[Row], random_: random.Random) -> list[Row]:
    found = list(rows)
    random_.shuffle(found)
    return found


if __name__ == "__main__":
    print(generate(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
