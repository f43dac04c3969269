"""What an exported file and the model it was made of are both asked: always the same."""

from __future__ import annotations

from typing import Final

PROMPTS: Final = (
    "Hello, who are you?",
    "I feel stuck and a little sad today. What now?",
    "A box holds 12 apples. Three are eaten and 5 are added. How many are there? Step by step:",
    "Will it rain here in exactly one year? Say how sure you are.",
    "Wie weit ist der Mond von der Erde entfernt? Antworte in einem Satz.",
    "¿Cuál es la diferencia entre el clima y el tiempo?",
    "請用一句話說明什麼是海洋。",
    "Что такое честность? 🙂",
)
"""Chats where the model has a chat format, else texts to go on with."""
TEXTS: Final = (
    "The quick brown fox",
    "def add(left, right):\n    ",
    '{"name": "Abbey", "age": 3, "likes": [',
)
"""Always texts to go on with, without any turn around them."""
