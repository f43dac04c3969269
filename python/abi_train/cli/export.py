"""`abi-train export`: a GGUF of what was trained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import JsonFlag, out, print_json, say, size_text

EXAMPLES = """[bold]Examples[/]

abi-train export runs/first

abi-train export runs/first/checkpoint-200 --output abbey.gguf --dtype f16 --name abbey

abi-train export runs/lora --adapter --output abbey-lora.gguf

abi-train export runs/abbey --gguf q4_k_m --name abbey
"""


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="Model folder, checkpoint, or run folder (its newest, after early stopping its "
            "best checkpoint; of a phased one the last finished phase)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write. (default: SOURCE/model-DTYPE.gguf; adapter-DTYPE.gguf with "
            "--adapter, NAME-TYPE.gguf with --gguf)"
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf",
            metavar="TYPE",
            help="Hand over: merge an adapter, quantise in llama.cpp's mix of this name (f32, f16, "
            "bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q5_1, q5_0, q4_1, q4_0, mxfp4_moe), "
            "compare with the trained model, write Modelfile, card and report.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the matrices: f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0 "
            "or mxfp4; with --adapter a float. (default: q8_0; f32 with --adapter)"
        ),
    ] = None,
    experts: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Of a model that has them as MXFP4. keep: they stay so, to the bit but for those "
            "an adapter changes; changed_as_bf16: tensors with such are bf16; expand: they become "
            "what other matrices do.",
        ),
    ] = "keep",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter", help="Write the LoRA adapter alone, to be put on the base model's GGUF."
        ),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="With --adapter or --gguf: the base model's folder or .gguf, where the adapter "
            "does not say it."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="general.name of the file.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder. (default: the model's)")
    ] = None,
    modelfile: Annotated[
        bool, typer.Option(help="Write a Modelfile for Ollama beside the file.")
    ] = True,
    system: Annotated[
        str | None, typer.Option(help="System text of the Modelfile.", show_default=False)
    ] = None,
    card: Annotated[bool, typer.Option(help="With --gguf: write the model card.")] = True,
    verify: Annotated[
        bool,
        typer.Option(
            help="Run both models on fixed prompts and compare, before the file is named."
        ),
    ] = True,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Also compare the perplexity of a text, or of rows (.jsonl, .bin), with both.",
            show_default=False,
        ),
    ] = None,
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="Also compare with the trained model in transformers."),
    ] = False,
    keep_merged: Annotated[
        Path | None,
        typer.Option(help="With --gguf: new folder that keeps the model with its adapter merged."),
    ] = None,
    sizes: Annotated[
        bool,
        typer.Option("--sizes", help="Tell how many bytes each type would take; write nothing."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a GGUF file with tokenizer and chat template, read back before it gets its name."""
    if sizes:
        _tell_sizes(source, gguf, name=name, base=base, tokenizer=tokenizer, as_json=as_json)
        return
    if not verify and (text is not None or transformers):
        raise typer.BadParameter("--no-verify leaves out --text and --transformers; name one")
    from ..export import (
        ADAPTER_DTYPES,
        DTYPES,
        EXPERTS,
        export_adapter_gguf,
        export_gguf,
        require_exportable,
    )
    from ..export.handover import ollama_name

    if experts not in EXPERTS:
        raise typer.BadParameter(
            f"--experts is {experts!r}; it must be one of {', '.join(EXPERTS)}"
        )
    if adapter and experts != "keep":
        raise typer.BadParameter("--experts: an adapter has none of its own in MXFP4")
    if gguf is not None:
        _hand_over(
            source,
            output,
            gguf,
            experts=experts,
            refused={"--dtype": dtype, "--adapter": adapter or None},
            base=base,
            name=name,
            tokenizer=tokenizer,
            modelfile=modelfile,
            system=system,
            card=card,
            verify=verify,
            check=_check(text, transformers),
            keep_merged=keep_merged,
            as_json=as_json,
        )
        return
    if keep_merged is not None or not card:
        raise typer.BadParameter("--keep-merged and --no-card belong to --gguf")
    if adapter and (text is not None or transformers or not verify):
        raise typer.BadParameter(
            "--no-verify, --text and --transformers: an adapter alone is not compared"
        )
    kind, dtypes = ("adapter", ADAPTER_DTYPES) if adapter else ("model", DTYPES)
    dtype = dtype or ("f32" if adapter else "q8_0")
    if dtype not in dtypes:
        raise typer.BadParameter(f"--dtype is {dtype!r}; it must be one of {', '.join(dtypes)}")
    if output is not None and output.suffix != ".gguf":
        raise typer.BadParameter(f"--output is {str(output)!r}; the name must end in .gguf")
    if base is not None and not adapter:
        raise typer.BadParameter("--base belongs to --adapter")
    if system is not None and (adapter or not modelfile):
        raise typer.BadParameter("--system belongs to a Modelfile")
    if tokenizer is not None and adapter:
        raise typer.BadParameter("--tokenizer: an adapter has none; the base model's is used")
    require_exportable(source, dtype)
    target = output or source / f"{kind}-{dtype}.gguf"
    if adapter:
        report = export_adapter_gguf(source, target, model=base, dtype=dtype, name=name)
    else:
        report = export_gguf(
            source,
            target,
            dtype=dtype,
            experts=experts,
            name=name,
            tokenizer=tokenizer,
            modelfile=modelfile,
            system=system,
            verify=verify,
            check=_check(text, transformers),
        )
    if as_json:
        print_json(report.to_dict())
        return
    out().print(str(report.path), markup=False, highlight=False)
    file = shlex.quote(str(target))
    then = f"llama-server -m BASE.gguf --lora {file}" if adapter else f"abi-train chat {file}"
    say(
        f"{size_text(report.size_bytes)}, {report.tensors} tensors, {report.dtype}, from "
        f"{report.source}; next: {then}"
    )
    if not adapter:
        _tell_verified(report.verification)
    if report.modelfile is not None:
        ollama = ollama_name(name or target.stem, dtype)
        say(f"or: ollama create {ollama} -f {shlex.quote(str(report.modelfile))}")
        say(f"    ollama run {ollama}")


def _tell_sizes(source: Path, gguf: str | None, *, as_json: bool, **choices: Any) -> None:
    from ..export import MIXES
    from ..export.handover import ALIASES, export_sizes

    mixes = MIXES if gguf is None else (ALIASES.get(gguf.lower(), gguf.lower()),)
    if mixes[0] not in MIXES:
        raise typer.BadParameter(f"--gguf is {gguf!r}; it must be one of {', '.join(MIXES)}")
    found = export_sizes(source, mixes=mixes, **choices)
    if as_json:
        print_json(found)
        return
    for mix, size in found.items():
        out().print(f"{mix:10}{size:>16}  {size_text(size)}", highlight=False)


def _check(text: Path | None, transformers: bool) -> Any:
    from ..export.verify import Check

    return Check(text=text, transformers=transformers)


def _tell_verified(found: Any) -> None:
    for line in ["not verified, as asked"] if found is None else found.sentences():
        say(line)


def _hand_over(
    source: Path,
    output: Path | None,
    gguf: str,
    *,
    refused: dict[str, Any],
    as_json: bool,
    **choices: Any,
) -> None:
    from ..export import MIXES
    from ..export.handover import ALIASES, hand_over

    for option, value in refused.items():
        if value is not None:
            raise typer.BadParameter(f"{option} and --gguf are two ways; name one")
    if ALIASES.get(gguf.lower(), gguf.lower()) not in MIXES:
        raise typer.BadParameter(f"--gguf is {gguf!r}; it must be one of {', '.join(MIXES)}")
    if output is not None and output.suffix != ".gguf":
        raise typer.BadParameter(f"--output is {str(output)!r}; the name must end in .gguf")
    if choices["system"] is not None and not choices["modelfile"]:
        raise typer.BadParameter("--system belongs to a Modelfile")
    made = hand_over(source, output, mix=gguf, tell=say, **choices)
    if as_json:
        print_json(made.to_dict())
        return
    out().print(str(made.path), markup=False, highlight=False)
    say(f"{size_text(made.size_bytes)}, {made.tensors} tensors, {made.mix}, from {made.source}")
    _tell_verified(made.verification)
    for path in (made.modelfile, made.card, made.report, made.merged):
        if path is not None:
            say(f"wrote {path}")
    say("next:")
    for command in made.commands():
        say(f"    {command}")
