"""`abi-train merge`: a model with an adapter added into its weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, out, print_json, say

EXAMPLES = """[bold]Examples[/]

abi-train merge runs/lora --output merged

abi-train merge runs/lora/checkpoint-200 --model ./SmolLM2-135M --output merged
"""


def merge(
    adapter: Annotated[
        Path,
        typer.Argument(help="Adapter folder, checkpoint, or run folder (what its run ended with)."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    model: Annotated[
        Path | None,
        typer.Option(help="The model it was trained on. (default: the one its settings name)"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Add an adapter into the weights of its model and write the sum as a model folder.

    W + s B A is summed in double and rounded once, to float32. A new adapter can be trained on the
    result, or it can be exported; to go on with the same adapter, no merging is needed.
    """
    from ..adapters import adapter_folder, base_of, merge_adapter

    folder = adapter_folder(adapter)
    base = model or base_of(folder)
    merged = merge_adapter(base, folder, output)
    if as_json:
        print_json({"path": str(merged), "adapter": str(folder), "model": str(base)})
        return
    out().print(str(merged), markup=False, highlight=False)
    say(f"{base} and {folder} in one; next: abi-train export {shlex.quote(str(merged))}")
