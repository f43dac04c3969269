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

abi-train merge runs/lora --undo --model merged --output base-again
"""


def merge(
    adapter: Annotated[
        Path,
        typer.Argument(help="Adapter folder, checkpoint, or run folder (what its run ended with)."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="The model it was trained on, with --undo the merged one. "
            "(default: the one its settings name)"
        ),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the adapter out of the model it was merged into.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add an adapter into the weights of its model and write the sum as a model folder.

    W + s B A is summed in double and rounded once, to float32. A new adapter can be trained on the
    result, or it can be exported; to go on with the same adapter, no merging is needed.
    """
    from .. import _native
    from ..adapters import adapter_folder, base_of, merge_adapter, other_base
    from ..model import Model

    folder = adapter_folder(adapter)
    if undo:
        _undo(folder, model, output, as_json=as_json)
        return
    base = model or base_of(folder)
    merged = merge_adapter(base, folder, output)
    if as_json:
        print_json({"path": str(merged), "adapter": str(folder), "model": str(base)})
        return
    out().print(str(merged), markup=False, highlight=False)
    with Model.load(base, dtype="stored") as opened:
        said = other_base(folder, _native.model.fingerprint(opened.native))
    if said is not None:
        say(f"note: {said}")
    say(f"{base} and {folder} in one; next: abi-train export {shlex.quote(str(merged))}")


def _undo(folder: Path, merged: Path | None, output: Path, *, as_json: bool) -> None:
    from ..adapters import base_of, unmerge_adapter
    from ..errors import AbiTrainError

    if merged is None:
        raise typer.BadParameter("with --undo name the merged model", param_hint="--model")
    distance = unmerge_adapter(merged, folder, output)
    try:
        base: Path | None = base_of(folder)
    except AbiTrainError:
        base = None
    measured = None if base is None else largest_difference(base, output)
    if as_json:
        values = {"path": str(output), "adapter": str(folder), "model": str(merged)}
        print_json({**values, "bound": distance, "difference": measured})
        return
    out().print(str(output), markup=False, highlight=False)
    said = f"{merged} without {folder}; no weight is further than {distance:.1e} from its base's"
    if measured is not None:
        said += f", the furthest {measured:.1e} from {base}"
    say(said)


def largest_difference(base: Path, other: Path) -> float | None:
    """The largest difference of any weight of two models; None when they have other shapes."""
    import numpy as np

    from ..errors import AbiTrainError
    from ..model import Model

    try:
        first = Model.load(base)
    except AbiTrainError:
        return None
    with first, Model.load(other) as second:
        largest = 0.0
        for name in first:
            if name not in second or first[name].shape != second[name].shape:
                return None
            gap = np.abs(first[name].astype(np.float64) - second[name])
            largest = max(largest, float(gap.max(initial=0.0)))
        return largest
