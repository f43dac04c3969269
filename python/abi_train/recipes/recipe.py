"""`Recipe` and `Phase`: what a phased recipe says, resolved as far as it can be before it runs.

A phase is a `RunSpec` whose data lie below the recipe's run folder. What it goes on from does not
exist yet when the recipe is read, so that is named by the run folder of the phase before: `model`
after a phase that trained weights, `lora.adapter` after one that trained an adapter.

Does not know: how data are prepared or a phase is run. Nothing is written here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..config import in_file, read_document
from ..errors import AbiTrainError, ConfigError
from ..rules import broken, unknown_key
from ..runspec import RunSpec
from . import places
from .document import DATA_KEYS, OWN_KEYS, is_phased, split_phases

if TYPE_CHECKING:
    from ..data.sets import DataSet

CHAINS: Final = ("adapter", "merge", "none")
"""How a phase begins: with the adapter of the phase before; with a new one on what that one and its
model are together; or with the recipe's own model."""

DATA_FOLDER: Final = "data"
START: Final = "start"
"""In the folder of a phase with `chain: merge`: the merged model it begins with."""
MODEL_CONFIG: Final = "config.json"

_SET_KEYS: Final = ("config", "split", "limit", "id", "revision", "source", "options", "seed")
_SIZES: Final = (
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One source of rows: a `file`, a packaged `sample`, or a public `set`.

    path: of a file or a sample. choices: of a set, those of `abi_train.data.sets.fetch_set`.
    """

    kind: str
    name: str
    path: Path | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """As a recipe names it."""
        shown = ", ".join(f"{key} {value}" for key, value in self.choices.items())
        name = self.name if self.kind == "file" else f"{self.kind}:{self.name}"
        return f"{name} ({shown})" if shown else name

    def to_dict(self) -> dict[str, Any]:
        """As a recipe writes it."""
        return {self.kind: self.name, **self.choices}


@dataclass(frozen=True, kw_only=True)
class PhaseData:
    """How the rows of a phase become its token files. See `abi_train.data.prepare.prepare`.

    rows_per: `chat` keeps a conversation one row; `answer` makes a row of each answer with what was
    said before it, so that the end of every answer is learned, and its reasoning.
    """

    rows: tuple[Rows, ...]
    eval_rows: tuple[Rows, ...] = ()
    eval_split: float = 0.0
    rows_per: str = "chat"
    chat_format: str | None = None
    loss: str = "assistant"
    skip_invalid: bool = False
    license: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what nobody set is left out."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("rows", "eval_rows"):
                value = [one.to_dict() for one in value]
            if item.name == "rows" or (value and value != item.default):
                values[item.name] = value
        return values


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a recipe.

    spec: the run; see the module for `model` and `lora.adapter`. prepared: how `spec.data` is made,
    None where the recipe names token files. after: the phase whose result this one begins with,
    None for the recipe's model. evals: evaluations before the first phase and after this one.
    model_config: for a random start, the content of the `config.json` that `spec.model` names.
    """

    name: str
    spec: RunSpec
    prepared: PhaseData | None = None
    after: str | None = None
    chain: str = "adapter"
    evals: tuple[str, ...] = ()
    model_config: Mapping[str, Any] | None = None

    @property
    def rows(self) -> tuple[Rows, ...] | None:
        """What its data is prepared from; None for token files."""
        return None if self.prepared is None else self.prepared.rows

    def to_dict(self) -> dict[str, Any]:
        """The resolved phase as plain values."""
        values: dict[str, Any] = {"name": self.name, **self.spec.to_dict()}
        if self.prepared is not None:
            values.update(self.prepared.to_dict())
        values["chain"] = self.chain
        if self.after is not None:
            values["after"] = self.after
        if self.evals:
            values["evals"] = list(self.evals)
        if self.model_config is not None:
            values["model_config"] = dict(self.model_config)
        return values


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A phased recipe. source: the file it was read from."""

    name: str
    run_dir: Path
    phases: tuple[Phase, ...]
    source: Path | None = None

    def phase(self, name: str) -> Phase:
        """The phase of this name. Raises `ConfigError` with the names there are."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        names = [phase.name for phase in self.phases]
        raise unknown_key(name, names, f"phases ({', '.join(names)})")

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        phases = [phase.to_dict() for phase in self.phases]
        return {"name": self.name, "run_dir": str(self.run_dir), "phases": phases}


def read(
    path: str | Path,
    *,
    settings: Sequence[str] = (),
    **options: Any,
) -> Recipe | RunSpec:
    """A phased recipe, or the single run of a recipe without phases (which takes no settings)."""
    path = places.find(path)
    with in_file(path):
        document = read_document(path)
    if is_phased(document):
        return load(path, settings=settings, **options)
    if settings or options:
        raise ConfigError(f"{path}: has no phases; change the RunSpec that RunSpec.load returns")
    return RunSpec.load(path)


def load(
    path: str | Path,
    *,
    settings: Sequence[str] = (),
    run_dir: str | Path | None = None,
    **options: Any,
) -> Recipe:
    """The phased recipe in a file, or of a name that comes with the package.

    settings: `NAME=VALUE` for all phases, `phases.PHASE.NAME=VALUE` for one. options: keys of a
    phase that override those of the file, as `engine` or `model`. Relative paths of the file are
    taken from its folder, those of `settings` and `options` from the current one; without `run_dir`
    the run folder is `runs/NAME` below the current one.

    Raises `ConfigError` for a file without phases, an unknown key, and what contradicts itself.
    """
    path = places.find(path)
    with in_file(path):
        document = read_document(path)
        if not is_phased(document):
            raise ConfigError("has no phases; it is a recipe of one run (RunSpec.load)")
        recipe = from_dict(
            document,
            base=places.base_of(path),
            default_name=path.stem,
            settings=settings,
            options=options,
            run_dir=run_dir,
        )
    return dataclasses.replace(recipe, source=path)


def from_dict(
    document: Mapping[str, Any],
    *,
    base: Path | None = None,
    default_name: str = "recipe",
    settings: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
) -> Recipe:
    """The recipe these keys describe; see `load`."""
    common, entries = split_phases(document, base=base, options=options, settings=settings)
    name = common.get("name", default_name)
    if not isinstance(name, str) or not name.isprintable() or not _is_folder(name):
        raise broken("name", name, "it must be a word that can be a folder")
    folder = run_dir or common.get("run_dir") or Path("runs") / name
    if not isinstance(folder, (str, Path)):
        raise broken("run_dir", folder, "it must be a path")
    folder = Path(folder).expanduser()
    phases: list[Phase] = []
    for entry in entries:
        try:
            phase = _phase(entry, folder, phases[-1] if phases else None)
            phases.append(dataclasses.replace(phase, spec=_watched(phase.spec, name)))
        except ConfigError as error:
            text = str(error)
            said = text if f"phase {entry['name']}" in text else f"phase {entry['name']}: {text}"
            raise ConfigError(said) from None
    _check_exports(phases)
    return Recipe(name=name, run_dir=folder, phases=tuple(phases))


def _is_folder(name: str) -> bool:
    return (
        name == name.strip() not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and len(name.encode()) < 256
    )


def _phase(entry: Mapping[str, Any], folder: Path, before: Phase | None) -> Phase:
    name, own = str(entry["name"]), entry["own"]
    values = {
        key: value
        for key, value in entry.items()
        if key not in ("name", "own", "named", *DATA_KEYS, *OWN_KEYS)
    }
    values["run_dir"] = folder / name
    prepared = _data(entry, values, folder, name)
    model_config = _model(entry, values, folder)
    chain = entry.get("chain", "adapter")
    if chain not in CHAINS:
        raise broken("chain", chain, "it must be one of " + ", ".join(CHAINS))
    after = None
    if before is not None and chain != "none":
        if "model" in entry["named"]:
            rule = f"it begins with what {before.name} left; leave it out, or write chain: none"
            raise broken("model", "given", rule)
        after, model_config = before.name, None
        chain = _go_on(values, own, before, chain, folder / name)
    elif before is None:
        if chain == "merge":
            rule = "nothing stands before the first phase; leave it out"
            raise broken("chain", chain, rule)
        chain = "none"
    spec = RunSpec.from_dict(values)
    if spec.config.checkpoint_path is not None:
        rule = "each phase has a folder of its own below run_dir; leave it out"
        raise broken("checkpoint_path", spec.config.checkpoint_path, rule)
    return Phase(
        name=name,
        spec=spec,
        prepared=prepared,
        after=after,
        chain=chain,
        evals=_evals(entry.get("evals"), folder),
        model_config=model_config,
    )


def _watched(spec: RunSpec, name: str) -> RunSpec:
    """A Trackio run of each phase has a name of its own: those of a recipe are one project."""
    if spec.monitor.trackio is None:
        return spec
    run = f"{spec.monitor.trackio_run or name}-{spec.run_dir.name}"
    return spec.replace(monitor=spec.monitor.replace(trackio_run=run))


def _model(
    entry: Mapping[str, Any], values: dict[str, Any], folder: Path
) -> Mapping[str, Any] | None:
    """Fill in tokenizer and model; the configuration of a random start where it is given here."""
    tokenizer = values.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer.startswith(places.SAMPLE_SCHEME):
        values["tokenizer"] = places.sample_folder(tokenizer.removeprefix(places.SAMPLE_SCHEME))
    elif tokenizer is not None and not isinstance(tokenizer, (str, Path)):
        raise broken("tokenizer", tokenizer, "it must be a folder with tokenizer.json")
    model = values.get("model")
    if model is None:
        raise ConfigError("model is missing; a recipe needs one")
    if not isinstance(model, Mapping):
        if not isinstance(model, (str, Path)) or not str(model):
            rule = "it must be a path, hub:OWNER/NAME, or a table that is a model's config.json"
            raise broken("model", model, rule)
        if str(model).startswith(places.HUB):
            places.hub_name(str(model))
        return None
    values["model"] = folder / MODEL_CONFIG
    if values.get("tokenizer") is None:
        raise ConfigError("a model given as a table needs tokenizer, a folder with tokenizer.json")
    config = dict(model)
    if "vocab_size" not in config:
        from ..tokenizer import Tokenizer

        try:
            with Tokenizer.load(values["tokenizer"]) as opened:
                config["vocab_size"] = opened.vocab_size
        except AbiTrainError as error:
            raise ConfigError(f"tokenizer: {error}") from None
    try:
        json.dumps(config)
    except (TypeError, ValueError):
        raise ConfigError("model: the table holds what config.json cannot, as a date") from None
    return config


def _go_on(
    values: dict[str, Any], own: Mapping[str, Any], before: Phase, chain: str, run_dir: Path
) -> str:
    """Fill in what a phase begins with, after another one; returns how it is chained."""
    if before.spec.method == "full":
        if chain == "merge":
            rule = f"{before.name} trains whole weights, so there is nothing to merge; leave it out"
            raise broken("chain", chain, rule)
        values["model"] = before.spec.run_dir
        values.setdefault("tokenizer", before.spec.tokenizer)
        return "adapter"
    lora = values.get("lora")
    method = values.get("method", "full" if lora is None else "lora")
    if chain == "merge":
        values["model"] = run_dir / START
        return chain
    if method != "lora":
        rule = f"{before.name} trains an adapter, so whole weights need chain: merge"
        raise broken("method", method, rule)
    assert before.spec.lora is not None
    table = dict(lora or {})
    there = before.spec.lora.to_dict()
    asked = own.get("lora")
    for key in _SIZES:
        mine = asked.get(key) if isinstance(asked, Mapping) else None
        if (
            mine is not None
            and dataclasses.replace(before.spec.lora, **{key: mine}) != before.spec.lora
        ):
            rule = (
                f"it goes on with the adapter of {before.name}, which has {there.get(key)}; leave "
                "it out, or write chain: merge for a new adapter"
            )
            raise broken(f"lora.{key}", mine, rule)
        if key in there:
            table[key] = there[key]
        else:
            table.pop(key, None)
    if table.get("adapter") is not None:
        rule = f"it goes on with the adapter of {before.name}; leave it out, or write chain: none"
        raise broken("lora.adapter", str(table["adapter"]), rule)
    table["adapter"] = before.spec.run_dir
    values["lora"], values["model"] = table, before.spec.model
    return chain


def _data(
    entry: Mapping[str, Any], values: dict[str, Any], folder: Path, name: str
) -> PhaseData | None:
    """How the data of a phase is made; fills in the token files it becomes."""
    if entry.get("rows") is None:
        if values.get("data") is None:
            raise ConfigError("it has neither rows (to prepare) nor data (a token file)")
        for key in DATA_KEYS:
            if entry.get(key) is not None:
                raise broken(key, entry[key], "it belongs to rows, and the phase has data instead")
        return None
    for key in ("data", "eval_data"):
        if values.get(key) is not None:
            raise broken(key, str(values[key]), "the phase has rows already; keep one of the two")
    given = {key: entry[key] for key in DATA_KEYS if entry.get(key) is not None}
    given["rows"] = _sources(given["rows"], "rows")
    given["eval_rows"] = _sources(given.get("eval_rows", ()), "eval_rows")
    prepared = PhaseData(**given)
    split = prepared.eval_split
    if isinstance(split, bool) or not isinstance(split, (int, float)) or not 0 <= split < 1:
        raise broken("eval_split", split, "it must be a share of the rows, from 0 to below 1")
    if split and prepared.eval_rows:
        raise broken("eval_split", split, "the phase has eval_rows already; keep one of the two")
    if prepared.rows_per not in ("chat", "answer"):
        raise broken("rows_per", prepared.rows_per, "it must be chat or answer")
    from ..chat import CHOICES

    if prepared.chat_format is not None and prepared.chat_format not in CHOICES:
        rule = "it must be one of " + ", ".join(CHOICES)
        raise broken("chat_format", prepared.chat_format, rule)
    if prepared.loss not in ("assistant", "completion", "all"):
        raise broken("loss", prepared.loss, "it must be one of assistant, completion, all")
    if not isinstance(prepared.skip_invalid, bool):
        raise broken("skip_invalid", prepared.skip_invalid, "it must be true or false")
    if prepared.license is not None and not isinstance(prepared.license, str):
        raise broken("license", prepared.license, "it must be the name of a licence")
    values["data"] = folder / DATA_FOLDER / f"{name}.bin"
    if split or prepared.eval_rows:
        values["eval_data"] = folder / DATA_FOLDER / f"{name}_eval.bin"
    return prepared


def _sources(value: Any, key: str) -> tuple[Rows, ...]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries and key == "rows":
        raise broken(key, "[]", "a phase needs at least one source of rows")
    return tuple(_source(entry, key) for entry in entries)


def _source(value: Any, key: str) -> Rows:
    if isinstance(value, (str, Path)) and str(value):
        text = str(value)
        _no_nul(key, text)
        for kind in ("sample", "set"):
            if text.startswith(f"{kind}:"):
                return _source({kind: text.partition(":")[2]}, key)
        return Rows(kind="file", name=text, path=Path(text).expanduser())
    kinds = [k for k in ("file", "sample", "set") if isinstance(value, Mapping) and k in value]
    if len(kinds) != 1:
        rule = "it must be FILE.jsonl, sample:NAME, set:NAME, or a table with one of these keys"
        raise broken(key, json.dumps(value, default=str), rule)
    (kind,) = kinds
    name, choices = value[kind], {k: v for k, v in value.items() if k != kind}
    if not isinstance(name, str) or not name:
        raise broken(f"{key}.{kind}", name, "it must be a name")
    _no_nul(f"{key}.{kind}", name)
    for choice in choices:
        if kind != "set":
            raise ConfigError(f"{key}: {choice!r} is a choice of public sets, and {name} is none")
        if choice not in _SET_KEYS:
            raise unknown_key(choice, _SET_KEYS, f"a public set ({key})")
    if kind == "file":
        return Rows(kind=kind, name=name, path=Path(name).expanduser())
    if kind == "sample":
        return Rows(kind=kind, name=name, path=places.sample_rows(name))
    from ..data import sets

    data_set = sets.find(name)
    _check_choices(data_set, choices, key)
    return Rows(kind=kind, name=data_set.name, choices=choices)


def _check_choices(data_set: DataSet, choices: Mapping[str, Any], key: str) -> None:
    """Raise for what the set would refuse once the phase is prepared."""
    for choice, value in choices.items():
        where = f"{key}.{choice} of {data_set.name}"
        if choice in ("limit", "seed"):
            least = 1 if choice == "limit" else 0
            if value is None and choice == "limit":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise broken(where, value, f"it must be a whole number from {least}")
        elif choice == "options":
            if not isinstance(value, Mapping):
                raise broken(where, value, "it must be a table, as {final: hashes}")
            data_set.choose(value)
        elif value is not None and not (isinstance(value, (str, Path)) and str(value)):
            raise broken(where, value, "it must be a name")
        elif value is not None:
            _no_nul(where, str(value))
    config = choices.get("config") or data_set.default_config
    if config not in data_set.columns:
        rule = "it must be one of " + ", ".join(data_set.columns)
        raise broken(f"{key}.config of {data_set.name}", config, rule)
    split = choices.get("split")
    if split and data_set.splits and split not in data_set.splits:
        rule = "it must be one of " + ", ".join(data_set.splits)
        raise broken(f"{key}.split of {data_set.name}", split, rule)
    source = choices.get("source")
    if source is not None:
        if choices.get("id") is not None or choices.get("revision") is not None:
            raise ConfigError(f"{key}: source is read in place of the Hub; leave out id, revision")
        if not Path(source).expanduser().exists():
            rule = "there is no such file or folder; check the path"
            raise broken(f"{key}.source of {data_set.name}", str(source), rule)


def _no_nul(key: str, text: str) -> None:
    if "\0" in text:
        raise broken(key, text, "no name has a NUL character")


def _evals(value: Any, folder: Path) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else () if value is None else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n for n in names):
        raise broken("evals", value, "it must be a list of evaluations, as emotion or answers")
    if not names:
        return ()
    from ..evaluate import check_tasks

    for name in names:
        _no_nul("evals", name)
    try:
        tasks = check_tasks(names)
    except ConfigError as error:
        raise ConfigError(f"evals: {error}") from None
    for task, (name, rest) in tasks.items():
        if name == "lm-eval" or not rest or rest.startswith("set:"):
            if rest.startswith("set:"):
                from ..data import sets

                sets.find(rest.removeprefix("set:"))
            continue
        file = Path(rest)
        made_by_a_phase = file.resolve().is_relative_to(folder.resolve())
        if not file.exists() and not made_by_a_phase:
            raise broken("evals", task, f"there is no file {rest}; check the path")
    return tuple(tasks)


def _check_exports(phases: Sequence[Phase]) -> None:
    """No two phases may write the same file at their end."""
    seen: dict[str, str] = {}
    for phase in phases:
        lora = phase.spec.lora
        for given in (phase.spec.config.export_gguf_path, lora and lora.export_gguf_path):
            if given is None:
                continue
            if str(given) in seen:
                other = seen[str(given)]
                rule = f"phases {other} and {phase.name} would both write it; give each its own"
                raise broken("export_gguf_path", str(given), rule)
            seen[str(given)] = phase.name
