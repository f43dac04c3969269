"""The emotion labels of the public sets in Abbey's fourteen words, each with its reason.

Abbey answers an emotion with a tone, so a label goes to the word whose answer would fit: what the
person needs decides, not the dictionary. No public label means `impatient`, and only a few are
`stressed` or `skeptical`; a model needs rows of its own for those.

Does not know: rows, files.
"""

from __future__ import annotations

from typing import Final

ABBEY: Final = (
    "neutral",
    "frustrated",
    "excited",
    "confused",
    "stressed",
    "playful",
    "grateful",
    "curious",
    "impatient",
    "skeptical",
    "enthusiastic",
    "disappointed",
    "hopeful",
    "anxious",
)
"""Abbey's words, in the order of ABI's numbers."""

Reasons = dict[str, tuple[str, str]]
"""label: (Abbey's word, reason)"""

EMPATHETIC_DIALOGUES: Final[Reasons] = {
    "afraid": ("anxious", "fear of what may come"),
    "angry": ("frustrated", "something stands in the way and should not"),
    "annoyed": ("frustrated", "anger, a little of it"),
    "anticipating": ("hopeful", "looks forward to what is not there yet"),
    "anxious": ("anxious", "the same word"),
    "apprehensive": ("anxious", "fear of what may come, a little of it"),
    "ashamed": ("disappointed", "in oneself; it is done, and wants comfort"),
    "caring": ("grateful", "warmth towards others; the warm, calm tone fits"),
    "confident": ("hopeful", "expects it to go well"),
    "content": ("grateful", "at ease with what there is"),
    "devastated": ("disappointed", "a loss, a great one"),
    "disappointed": ("disappointed", "the same word"),
    "disgusted": ("frustrated", "turned against something, as anger is"),
    "embarrassed": ("stressed", "exposed right now; wants calm"),
    "excited": ("excited", "the same word"),
    "faithful": ("grateful", "warmth towards others"),
    "furious": ("frustrated", "anger, much of it"),
    "grateful": ("grateful", "the same word"),
    "guilty": ("disappointed", "in oneself; it is done, and wants comfort"),
    "hopeful": ("hopeful", "the same word"),
    "impressed": ("enthusiastic", "delight in what somebody did"),
    "jealous": ("frustrated", "another has what one wants"),
    "joyful": ("excited", "joy that shows"),
    "lonely": ("disappointed", "misses somebody; wants comfort"),
    "nostalgic": ("grateful", "warm towards what was"),
    "prepared": ("hopeful", "expects it to go well"),
    "proud": ("enthusiastic", "delight in what was done"),
    "sad": ("disappointed", "a loss; wants comfort"),
    "sentimental": ("grateful", "warm towards what was"),
    "surprised": ("excited", "in this set mostly a pleasant event, told with energy"),
    "terrified": ("anxious", "fear, much of it"),
    "trusting": ("grateful", "warmth towards others"),
}

#: In the order of the numbers that stand for them.
GO_EMOTIONS: Final[Reasons] = {
    "admiration": ("enthusiastic", "delight in what somebody did"),
    "amusement": ("playful", "laughs, and wants to be laughed with"),
    "anger": ("frustrated", "something stands in the way and should not"),
    "annoyance": ("frustrated", "anger, a little of it"),
    "approval": ("enthusiastic", "says yes to something"),
    "caring": EMPATHETIC_DIALOGUES["caring"],
    "confusion": ("confused", "the same word"),
    "curiosity": ("curious", "the same word"),
    "desire": ("hopeful", "wants what is not there yet"),
    "disappointment": ("disappointed", "the same word"),
    "disapproval": ("skeptical", "says no to something, and has reasons"),
    "disgust": ("frustrated", "turned against something, as anger is"),
    "embarrassment": ("stressed", "exposed right now; wants calm"),
    "excitement": ("excited", "the same word"),
    "fear": ("anxious", "fear of what may come"),
    "gratitude": ("grateful", "the same word"),
    "grief": ("disappointed", "a loss, a great one"),
    "joy": ("excited", "joy that shows"),
    "love": ("grateful", "warmth towards others"),
    "nervousness": ("anxious", "fear of what may come, a little of it"),
    "optimism": ("hopeful", "expects it to go well"),
    "pride": ("enthusiastic", "delight in what was done"),
    "realization": ("curious", "has just seen something and thinks on"),
    "relief": ("grateful", "the worry is gone"),
    "remorse": ("disappointed", "in oneself; it is done, and wants comfort"),
    "sadness": ("disappointed", "a loss; wants comfort"),
    "surprise": ("curious", "something does not fit; asks what happened"),
    "neutral": ("neutral", "the same word"),
}

#: In the order of the numbers that stand for them.
DAILY_DIALOG: Final[Reasons] = {
    "no emotion": ("neutral", "nothing was marked"),
    "anger": GO_EMOTIONS["anger"],
    "disgust": GO_EMOTIONS["disgust"],
    "fear": GO_EMOTIONS["fear"],
    "happiness": ("excited", "joy that shows"),
    "sadness": GO_EMOTIONS["sadness"],
    "surprise": GO_EMOTIONS["surprise"],
}


def abbey(label: str) -> str:
    """Abbey's word for a label of one of these sets. Raises `KeyError` for another."""
    for table in (EMPATHETIC_DIALOGUES, GO_EMOTIONS, DAILY_DIALOG):
        if label in table:
            return table[label][0]
    raise KeyError(label)
