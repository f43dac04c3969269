"""Answers that must be JSON as a schema asks: they are, whatever random weights say."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import SHAPES, write_tiny_gguf

from abi_train import Generator
from abi_train.errors import ArgumentError, FormatError, UnsupportedError

EOS = 258
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different weights."""
    made = tmp_path_factory.mktemp("models")
    write_tiny_gguf(made / "0.gguf", SHAPES["llama"], seed=1)
    write_tiny_gguf(made / "1.gguf", SHAPES["qwen3"], seed=2)
    return made


@pytest.fixture(scope="module", params=[0, 1])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Generator]:
    with Generator.open(folder / f"{request.param}.gguf", context=600, threads=2) as opened:
        yield opened


def allowed(value: Any, schema: Any, root: Any) -> bool:
    """Whether `value` is as `schema` asks: the definition, for the keywords that are understood."""
    if schema is True:
        return True
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return allowed(value, target, root)
    if "anyOf" in schema:
        return any(allowed(value, one, root) for one in schema["anyOf"])
    kind = {type(None): "null", bool: "boolean", int: "integer", float: "number"}.get(type(value))
    kind = kind or {str: "string", list: "array", dict: "object"}[type(value)]
    wanted = schema.get("type", list(TYPES))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if kind not in wanted and not (kind == "integer" and "number" in wanted):
        return False
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if kind == "string":
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
    if kind == "array":
        items = schema.get("items", True)
        right = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        return right and all(allowed(item, items, root) for item in value)
    if kind == "object":
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        return all(name in value for name in schema.get("required", [])) and all(
            allowed(item, known[name], root)
            if name in known
            else others is not False and allowed(item, others, root)
            for name, item in value.items()
        )
    return True


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema whose values mostly come to an end soon."""
    kind = rng.choice(TYPES[:5] if depth > 2 else (*TYPES, "object", "array", "enum", "anyOf"))
    if kind == "enum":
        values = [None, True, "a", 'say "é"', 3, -2.5, [1, {"x": []}], "", "ab", {}]
        some = rng.sample(values, rng.randint(1, 5))
        return {"const": some[0]} if rng.random() < 0.3 else {"enum": some}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    schema: dict[str, Any] = {"type": kind}
    if kind == "string":
        schema["maxLength"] = rng.randint(0, 12)
        if rng.random() < 0.4:
            schema["minLength"] = rng.randint(0, schema["maxLength"])
    elif kind == "array":
        schema["items"] = random_schema(rng, depth + 1)
        schema["maxItems"] = rng.randint(0, 4)
        if rng.random() < 0.5:
            schema["minItems"] = rng.randint(0, schema["maxItems"])
    elif kind == "object":
        names = rng.sample(["a", "b c", "ключ", 'q"', "x" * 20, ""], rng.randint(0, 4))
        schema["properties"] = {name: random_schema(rng, depth + 1) for name in names}
        schema["required"] = [name for name in names if rng.random() < 0.5]
        schema["additionalProperties"] = False
    if rng.random() < 0.1:
        schema["type"] = [kind, "boolean" if kind == "null" else "null"]
    return schema


def test_what_comes_out_is_what_random_schemas_ask(model: Generator) -> None:
    rng = random.Random(7)
    schemas = [random_schema(rng) for _ in range(60)]
    each = [
        {"json_schema": schema, "seed": seed, "temperature": rng.choice([0.0, 1.0, 3.0])}
        for seed, schema in enumerate(schemas)
    ]
    answers = model.generate_batch(
        [[seed % 200] for seed in range(len(schemas))],
        each=each,
        lanes=16,
        max_new_tokens=300,
        stop_ids=[EOS],
    )
    whole = 0
    for schema, answer in zip(schemas, answers, strict=True):
        text = model.tokenizer.decode(answer.ids, continues=True)
        if answer.end_reason == "length":
            continue
        assert answer.end_reason in ("complete", "stop_id")
        value = json.loads(text)
        assert allowed(value, schema, schema), f"{text} is not as {json.dumps(schema)} asks"
        whole += 1
    assert whole >= 50


def test_the_jsonschema_library_agrees(model: Generator) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(8)
    for seed in range(12):
        schema = random_schema(rng)
        jsonschema.Draft202012Validator.check_schema(schema)
        ids = list(
            model.generate([seed], json_schema=schema, temperature=2.0, seed=seed, stop_ids=[EOS])
        )
        if model.end_reason not in ("complete", "stop_id"):
            continue
        value = json.loads(model.tokenizer.decode(ids, continues=True))
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 4},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def test_a_schema_that_names_itself(model: Generator) -> None:
    for seed in range(4):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_new_tokens": 400}
        ids = list(model.generate([1], json_schema=TREE, **options))
        assert model.end_reason == "complete"
        assert allowed(json.loads(model.tokenizer.decode(ids)), TREE, TREE)
        # Guesses change nothing here either.
        assert list(model.generate([1], json_schema=json.dumps(TREE), drafts=6, **options)) == ids


def test_how_an_answer_ends(model: Generator) -> None:
    # Of a string only length is known: the limit cuts it off, and the end says so.
    text = {"type": "string", "minLength": 60}
    ids = list(model.generate([5], json_schema=text, max_new_tokens=10))
    assert (len(ids), model.end_reason) == (10, "length")
    # A stop id comes only where the value is whole.
    number = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    for seed in range(5):
        ids = list(
            model.generate(
                [5], json_schema=number, stop_ids=range(0, 400, 2), temperature=5.0, seed=seed
            )
        )
        assert model.end_reason == "complete"
        assert len(json.loads(model.tokenizer.decode(ids))) >= 1
    # A number that may end may also go on: a stop id, or its last digit, ends it.
    ends = set()
    for seed in range(30):
        list(
            model.generate(
                [5], json_schema={"type": "integer"}, stop_ids=[EOS, 53], seed=seed, temperature=4.0
            )
        )
        ends.add(model.end_reason)
    assert ends <= {"complete", "stop_id"}
    assert "stop_id" in ends
    # Nothing may follow this one: no pass is made for its end.
    ids = list(model.generate([5], json_schema={"const": None}, max_new_tokens=4))
    assert (model.tokenizer.decode(ids), model.end_reason) == ("null", "complete")


def test_schemas_that_are_not_understood_are_refused_by_name(model: Generator) -> None:
    for schema, error, text in (
        ({"type": "string", "pattern": "a+"}, UnsupportedError, 'at #: the keyword "pattern"'),
        (
            {"properties": {"a": {"multipleOf": 2}}},
            UnsupportedError,
            'at #/properties/a: the keyword "multipleOf"',
        ),
        ({"$ref": "https://elsewhere/x"}, UnsupportedError, "same schema"),
        ({"$ref": "#"}, UnsupportedError, "without end"),
        ({"type": "strnig"}, ArgumentError, "type must be"),
        ("{", ArgumentError, "no JSON"),
        ({"const": {1, 2}}, ArgumentError, "cannot be written as JSON"),
        (False, UnsupportedError, "no value at all"),
    ):
        with pytest.raises(error, match=text):
            model.generate([1], json_schema=schema)  # type: ignore[arg-type]
    deep = '{"items":' * 5000 + "{}" + "}" * 5000
    model.generate([1], json_schema=deep)
    with pytest.raises(ArgumentError, match="no JSON"):
        model.generate([1], json_schema="[" * 100_000)


def test_a_file_without_a_tokenizer_needs_none_until_there_is_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_gguf(path, SHAPES["llama"])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modex"))
    with Generator.open(path) as model:
        assert len(list(model.generate([1], max_new_tokens=3))) == 3
        with pytest.raises(FormatError, match=r"tokenizer\.ggml\.model"):
            model.generate([1], json_schema={})


def test_abi_generate_follows_a_schema(run: Any, folder: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(TREE))
    command = ("generate", "--model", folder / "0.gguf", "--prompt", "a", "--seed", "1")
    done = run(*command, "--json-schema", schema, "-n", "400", "--drafts", "3")
    assert done.returncode == 0, done.stderr
    assert allowed(json.loads(done.stdout), TREE, TREE)
    answer = json.loads(run(*command, "--json-schema", schema, "-n", "400", "--json").stdout)
    assert answer["end"] == "complete"
    assert answer["text"] + "\n" == done.stdout
    schema.write_text('{"oneOf": []}')
    done = run(*command, "--json-schema", schema)
    assert done.returncode == 1
    assert f'{schema}: the JSON schema at #: the keyword "oneOf" is not supported' in done.stderr
    done = run(*command, "--json-schema", tmp_path / "missing.json")
    assert done.returncode == 1
    assert "missing.json" in done.stderr
