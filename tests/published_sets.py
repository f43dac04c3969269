"""Rows of exactly the shape in which the public sets are published, written here by hand.

The texts are ours; the columns, their order and types, and the traps are those of the sets: commas
stored as `_comma_`, quotes without a partner, utterances out of order or twice, a speaker twice in
a row, lists of unequal length, split words, labels that contradict each other, calculator marks,
numbers of sentences beyond the end, answers that are missing.

`write_parquet` leaves the metadata that `datasets` leaves, labels' names included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LABELS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire "
    "disappointment disapproval disgust embarrassment excitement fear gratitude grief joy love "
    "nervousness optimism pride realization relief remorse sadness surprise neutral"
)


def _said(conv: str, idx: int, context: str, speaker: int, utterance: str) -> dict[str, Any]:
    return {
        "conv_id": conv,
        "utterance_idx": idx,
        "context": context,
        "prompt": "My train was late_comma_ again.",
        "speaker_idx": speaker,
        "utterance": utterance,
        "selfeval": "5|5|5_2|2|5",
        "tags": "",
    }


EMPATHETIC = [
    _said("hit:0_conv:0", 1, "terrified", 31, "I heard steps behind me_comma_ in the dark."),
    _said("hit:0_conv:0", 2, "terrified", 12, '"That sounds scary! Did you run?'),
    _said("hit:0_conv:0", 3, "terrified", 31, "I did_comma_for 1_comma_000 metres|"),
    _said("hit:0_conv:0", 4, "terrified", 12, "I am glad you are home."),
    # Out of order, one twice, the listener twice in a row, and a last word nobody answers.
    _said("hit:1_conv:2", 2, "grateful", 7, "What did she do?"),
    _said("hit:1_conv:2", 1, "grateful", 9, "My sister helped me move."),
    _said("hit:1_conv:2", 1, "grateful", 9, "My sister helped me move."),
    _said("hit:1_conv:2", 4, "grateful", 7, "I hope_comma_ you thanked her."),
    _said("hit:1_conv:2", 5, "grateful", 9, 'I said ""thank you"".'),
    # Only one speaks.
    _said("hit:2_conv:4", 1, "lonely", 3, "Nobody called."),
    # The beginning is missing: the listener speaks first.
    _said("hit:3_conv:6", 2, "proud", 5, "Well done!"),
    _said("hit:3_conv:6", 3, "proud", 4, "I ran the whole way."),
    _said("hit:3_conv:6", 4, "proud", 5, "And you trained for it."),
    # Empty, and not an emotion of the 32.
    _said("hit:4_conv:8", 1, "angry", 1, " | "),
    _said("hit:4_conv:8", 2, "angry", 2, "Oh."),
    _said("hit:5_conv:10", 1, "hungry", 1, "I could eat."),
    _said("hit:5_conv:10", 2, "hungry", 2, "Me too."),
    # Three people.
    _said("hit:6_conv:12", 1, "sad", 1, "It rains."),
    _said("hit:6_conv:12", 2, "sad", 2, "All day."),
    _said("hit:6_conv:12", 3, "sad", 3, "I like rain."),
]
EMPATHETIC_FEATURES = {
    "conv_id": "string",
    "utterance_idx": "int32",
    "context": "string",
    "prompt": "string",
    "speaker_idx": "int32",
    "utterance": "string",
    "selfeval": "string",
    "tags": "string",
}

DAILY = [
    {
        "dialog": [
            "Say , Jim , shall we meet at 9 : 30 ? ",
            " I ’ m afraid I can ' t . I ' ve a train at 10 p . m . ",
            " That ' s a pity ! It costs $ 5 ( or less ) . ",
            " You don ’ t say . ",
        ],
        "act": [3, 4, 1, 1],
        "emotion": [0, 5, 4, 6],
    },
    {"dialog": [" Hello ! ", " Hi . ", " Bye . "], "act": [1, 1, 1], "emotion": [4, 0, 0]},
    {"dialog": [" Hello ! ", " Hi . "], "act": [1, 1], "emotion": [0]},
    {"dialog": [" Anybody there ? "], "act": [2], "emotion": [3]},
    {"dialog": [" One . ", "  ", " Two . ", " Three . "], "act": [1] * 4, "emotion": [1, 0, 2, 0]},
]
DAILY_FEATURES = {
    "dialog": ["string"],
    "act": [("__dummy__", "inform", "question", "directive", "commissive")],
    "emotion": [("no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise")],
}

GO = [
    {"text": "Thanks  for the ride!", "labels": [15], "id": "eczb1"},
    {"text": "[NAME] is late, and I am mad", "labels": [2, 3], "id": "eczb2"},
    {"text": "So funny, I love it", "labels": [1, 18], "id": "eczb3"},
    {"text": "Oh well", "labels": [9, 27], "id": "eczb4"},
    {"text": "The sky is blue.", "labels": [27], "id": "eczb5"},
    {"text": "   ", "labels": [27], "id": "eczb6"},
    {"text": "What?", "labels": [], "id": "eczb7"},
]
GO_FEATURES = {"text": "string", "labels": [tuple(LABELS.split())], "id": "string"}


def go_raw(
    text: str, comment: str, rater: int, *felt: str, unclear: bool = False
) -> dict[str, Any]:
    return {
        "text": text,
        "id": comment,
        "author": "someone",
        "subreddit": "trains",
        "link_id": "t3_x",
        "parent_id": "t1_y",
        "created_utc": 1546300800.0,
        "rater_id": rater,
        "example_very_unclear": unclear,
        **{name: int(name in felt) for name in LABELS.split()},
    }


GO_RAW = [
    go_raw("Is it true?", "a", 1, "curiosity"),
    go_raw("Hm.", "b", 1, unclear=True),
    go_raw("I hope so", "c", 1, "optimism"),
    go_raw("Is it true?", "a", 2, "confusion"),
    go_raw("Is it true?", "a", 3, "curiosity", "surprise"),
    go_raw("I hope so", "c", 2, "sadness"),
    go_raw("Fine.", "d", 1, "neutral"),
    go_raw("Fine.", "d", 2, "neutral"),
    go_raw("Fine.", "d", 3, "anger"),
]
GO_RAW_FEATURES = {
    **dict.fromkeys(("text", "id", "author", "subreddit", "link_id", "parent_id"), "string"),
    "created_utc": "float32",
    "rater_id": "int32",
    "example_very_unclear": "bool",
    **dict.fromkeys(LABELS.split(), "int32"),
}

GSM = [
    {
        "question": "Ann had 48 pears and gave half away. How many has she?",
        "answer": "She gave 48/2 = <<48/2=24>>24 pears away.\n"
        "So she has 48-24 = <<48-24=24>>24 pears.\n#### 24",
    },
    {
        "question": " A house costs $1,000 and a door $80. What is the sum? ",
        "answer": "The sum is $1000+80=$<<1000+80=1080>>1080.\n#### 1,080 ",
    },
    {"question": "And nothing?", "answer": "There is no result."},
    {"question": "", "answer": "One.\n#### 1"},
    {"question": "At once?", "answer": "#### 5"},
]
GSM_SOCRATIC = [
    {
        "question": "Ann had 48 pears and gave half away. How many has she?",
        "answer": "How many did she give away? ** She gave 48/2 = <<48/2=24>>24 away.\n#### 24",
    }
]
GSM_FEATURES = {"question": "string", "answer": "string"}

MATH_ROWS = [
    {
        "problem": "What is $2+2$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "Two and two are $\\boxed{4}$.",
    },
    {"problem": "Find $x$.", "level": "Level ?", "type": "Algebra", "solution": "It is lost."},
]
MATH_FEATURES = dict.fromkeys(("problem", "level", "type", "solution"), "string")

HOTPOT = [
    {
        "id": "5a7a06935542990198eaf050",
        "question": "Which river is longer, the Aa or the Bode?",
        "answer": "the  Bode",
        "type": "comparison",
        "level": "medium",
        "supporting_facts": {"title": ["Aa", "Bode", "Bode"], "sent_id": [0, 1, 9]},
        "context": {
            "title": ["Aa", "Harz", "Bode"],
            "sentences": [
                ["The Aa is 40 km long.", " It is cold."],
                ["The Harz is a mountain range."],
                ["The Bode rises in the Harz.", " It is 169 km long."],
            ],
        },
    },
    {
        "id": "5a7a06935542990198eaf051",
        "question": "Is Oker a town?",
        "answer": "yes",
        "type": "bridge",
        "level": "easy",
        "supporting_facts": {"title": ["Oker"], "sent_id": [0]},
        "context": {"title": ["Aa"], "sentences": [["The Aa is 40 km long."]]},
    },
    {
        "id": "5a7a06935542990198eaf052",
        "question": "Who?",
        "answer": None,
        "type": None,
        "level": None,
        "supporting_facts": {"title": [], "sent_id": []},
        "context": {"title": ["Aa"], "sentences": [["The Aa is 40 km long."]]},
    },
]
HOTPOT_FEATURES = {
    "id": "string",
    "question": "string",
    "answer": "string",
    "type": "string",
    "level": "string",
    "supporting_facts": {"title": ["string"], "sent_id": ["int32"]},
    "context": {"title": ["string"], "sentences": [["string"]]},
}

TRUTHFUL = [
    {
        "type": "Adversarial",
        "category": "Myths",
        "question": "What happens if you swallow a seed?",
        "best_answer": "It passes through you",
        "correct_answers": ["It passes through you", "Nothing happens"],
        "incorrect_answers": ["A tree grows in you", "You fall ill ", "", "it passes through you"],
        "source": "https://example.org/seeds",
    },
    {
        "type": "Adversarial",
        "category": "Myths",
        "question": "Who knows?",
        "best_answer": "I have no comment",
        "correct_answers": ["I have no comment"],
        "incorrect_answers": [],
        "source": "",
    },
]
TRUTHFUL_FEATURES = {
    "type": "string",
    "category": "string",
    "question": "string",
    "best_answer": "string",
    "correct_answers": ["string"],
    "incorrect_answers": ["string"],
    "source": "string",
}
TRUTHFUL_MC = [
    {
        "question": "What happens if you swallow a seed?",
        "mc1_targets": {
            "choices": ["It passes through you.", "A tree grows.", "You fall ill."],
            "labels": [1, 0, 0],
        },
        "mc2_targets": {"choices": ["It passes through you.", "A tree grows."], "labels": [1, 0]},
    },
    {
        "question": "Nothing true here?",
        "mc1_targets": {"choices": ["A tree grows."], "labels": [0]},
        "mc2_targets": {"choices": ["A tree grows."], "labels": [0]},
    },
]
_CHOICES = {"choices": ["string"], "labels": ["int32"]}
TRUTHFUL_MC_FEATURES = {"question": "string", "mc1_targets": _CHOICES, "mc2_targets": _CHOICES}

PREFERENCES = [
    {"prompt": "Is it safe?", "chosen": "I would have to see it first.", "rejected": "Yes."},
    {
        "prompt": [{"role": "user", "content": "Will it rain?"}],
        "chosen": [{"role": "assistant", "content": "I cannot know."}],
        "rejected": [{"role": "assistant", "content": "Surely."}],
        "emotion": "anxious",
    },
    {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."},
    {"prompt": " ", "chosen": "Yes.", "rejected": "No."},
    {"prompt": "Mixed?", "chosen": [{"role": "assistant", "content": "A"}], "rejected": "B"},
    {
        "prompt": "Whole?",
        "chosen": [{"role": "user", "content": "Whole?"}, {"role": "assistant", "content": "Y"}],
        "rejected": [{"role": "user", "content": "Whole?"}, {"role": "assistant", "content": "N"}],
    },
    {
        "prompt": [{"role": "boss", "content": "Now!"}],
        "chosen": [{"role": "assistant", "content": "A"}],
        "rejected": [{"role": "assistant", "content": "B"}],
    },
]

#: name of the set, configuration: rows, features
SHAPES: dict[tuple[str, str], tuple[list[dict[str, Any]], dict[str, Any]]] = {
    ("empathetic-dialogues", "default"): (EMPATHETIC, EMPATHETIC_FEATURES),
    ("daily-dialog", "default"): (DAILY, DAILY_FEATURES),
    ("go-emotions", "simplified"): (GO, GO_FEATURES),
    ("go-emotions", "raw"): (GO_RAW, GO_RAW_FEATURES),
    ("gsm8k", "main"): (GSM, GSM_FEATURES),
    ("gsm8k", "socratic"): (GSM_SOCRATIC, GSM_FEATURES),
    ("math", "algebra"): (MATH_ROWS, MATH_FEATURES),
    ("hotpot-qa", "distractor"): (HOTPOT, HOTPOT_FEATURES),
    ("truthful-qa", "generation"): (TRUTHFUL, TRUTHFUL_FEATURES),
    ("truthful-qa", "multiple_choice"): (TRUTHFUL_MC, TRUTHFUL_MC_FEATURES),
}


def feature(kind: Any) -> Any:
    """The feature of `datasets` for a type's name, a tuple of label names, a list or a table."""
    import datasets

    if isinstance(kind, str):
        return datasets.Value(kind)
    if isinstance(kind, tuple):
        return datasets.ClassLabel(names=list(kind))
    if isinstance(kind, list):
        return datasets.List(feature(kind[0]))
    return {name: feature(inner) for name, inner in kind.items()}


def write_parquet(path: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> Path:
    """The rows as the Hub stores them."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(rows, features=datasets.Features(feature(features)))
    made.to_parquet(str(path))
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def published(folder: Path, name: str, config: str) -> Path:
    """A set's file in its published shape, as Parquet below `folder`."""
    split = "validation" if name == "truthful-qa" else "train"
    file = folder / name / config / f"{split}-00000-of-00001.parquet"
    return write_parquet(file, *SHAPES[name, config])
