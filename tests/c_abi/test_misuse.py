"""Whatever a caller gets wrong is a status, never a signal. The cases are made from the header."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from child import run_child
from header import functions, structs_with_size

from abi_train import _native, errors
from abi_train._native import ffi, lib

MATRIX = r"""
import sys, random
sys.path.insert(0, sys.argv[1])
from header import functions, handle_types
from abi_train._native import ffi, lib

seed = int(sys.argv[2])
rng = random.Random(seed)
out = ffi.new("uint64_t *")
text = ffi.new("char[]", b"{\"instruction\": \"a\", \"output\": \"b\"}")
assert lib.abt_instructions_parse(text, 35, 0, out) == 0
alive = out[0]                              # a live object of one kind
assert lib.abt_instructions_parse(text, 35, 0, out) == 0
stale = out[0]
assert lib.abt_instructions_free(stale) == 0
assert lib.abt_instructions_free(stale) == lib.ABT_STATUS_STALE_HANDLE
import abi_train
from child import SETTINGS, TINY

data = abi_train.TokenizedDataset.load(sys.argv[3])
model = abi_train.Model.random(TINY, seed=1)
trainer = abi_train.Trainer(SETTINGS, model, data)
batches, loader = data.batches(2, 16), data.micro_batches(2, 16)
writer = abi_train.TokenizedWriter("written.bin")
live = {
    "abt_dataset": data.native,
    "abt_model": model.native,
    "abt_trainer": trainer.native,
    "abt_batches": batches._handle,
    "abt_loader": loader._handle,
    "abt_writer": writer._handle,
}
handles = {"zero": 0, "stale": stale, "alive": alive, "noise": 0xDEADBEEF12345678, "all": 2**64 - 1}
kept = []


def pointer(kind, declared):
    if kind == "null":
        return ffi.NULL
    if declared == "const char *":
        value = ffi.new("char[]", {"empty": b"", "word": b"/no/such/place", "json": b"{}"}[kind])
    else:
        memory = ffi.new("char[]", 1 << 16)  # zeros: every struct_size in it is wrong
        value = ffi.cast(declared.rsplit("*", 1)[0] + "*", memory)
        kept.append(memory)
    kept.append(value)
    return value


count = 0
for f in functions():
    for trial in range(40):
        arguments = []
        for p in f.parameters:
            declared, name = p.rsplit(" ", 1)
            if name.startswith("*"):
                stars = len(name) - len(name.lstrip("*"))
                declared += " " + "*" * stars
                base = "const char *" if declared == "const char *" else declared
                if base == "const char *":
                    arguments.append(pointer(rng.choice(["null", "empty", "word", "json"]), base))
                else:
                    arguments.append(pointer(rng.choice(["null", "room"]), base))
            elif declared in handle_types():
                mine = [live[declared].value] if declared in live else []
                arguments.append(rng.choice(mine * 4 + list(handles.values())))
            elif declared == "double":
                arguments.append(rng.choice([0.0, -1.0, float("nan"), float("inf")]))
            elif name in ("size", "capacity", "count", "stop_count") and declared == "size_t":
                arguments.append(rng.choice([0, 1, 7]))
            else:
                bits = 32 if "32" in declared or "dtype" in declared or "abt_" in declared else 64
                arguments.append(rng.choice([0, 1, 2**31 - 1] + ([2**63] if bits == 64 else [])))
        if f.name == "abt_epoch_order":
            arguments[0] = min(arguments[0], 100)
        if f.name.endswith("_free"):  # the live ones are needed by those that follow
            arguments[0] = rng.choice([0, stale, handles["noise"]])
        print(f.name, trial, file=sys.stderr, flush=True)
        result = getattr(lib, f.name)(*arguments)
        count += 1
        if f.returns == "abt_status":
            assert 0 <= result <= lib.ABT_STATUS_INTERNAL, (f.name, result)
            assert result != lib.ABT_STATUS_INTERNAL, (f.name, ffi.string(lib.abt_last_error()))
            if result != 0:
                assert len(ffi.string(lib.abt_last_error())) > 0, f.name
    kept.clear()
assert trainer.next_event() is not None    # still in working order
assert data.tokens.size == 1000
print(count)
"""


@pytest.mark.parametrize("seed", range(2))
def test_random_misuse_gives_a_status(seed: int, token_file: Path, tmp_path: Path) -> None:
    done = run_child(MATRIX, str(Path(__file__).parent), str(seed), str(token_file), cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-12:]
    assert done.returncode == 0, f"seed {seed}: {done.returncode} after {last}"
    assert int(done.stdout) == 40 * len(functions())


def test_every_pointer_may_be_null() -> None:
    for f in functions():
        arguments = [ffi.NULL if "*" in p else 0 for p in f.parameters]
        if f.returns != "abt_status":
            continue
        status = getattr(lib, f.name)(*arguments)
        harmless = f.name.endswith("_free") or f.name in ("abt_epoch_order",)
        assert (status == lib.ABT_STATUS_OK) == harmless, f.name


@pytest.mark.parametrize("wrong", [0, 1, 8, 2**63])
def test_a_wrong_struct_size_is_named(wrong: int) -> None:
    assert set(structs_with_size()) == {
        "abt_trainer_options",
        "abt_event",
        "abt_left_out",
        "abt_plan_options",
        "abt_batch_options",
        "abt_batch",
        "abt_encode_options",
        "abt_chat_options",
        "abt_writer_options",
        "abt_export_options",
        "abt_forward_options",
        "abt_adapter_export_options",
        "abt_quantize_options",
        "abt_quantize_report",
        "abt_generator_options",
        "abt_sampling",
        "abt_request",
        "abt_counts",
    }
    out = ffi.new("uint64_t *")
    handle = _native.instructions.parse(b"", False)
    options = ffi.new("abt_batch_options *")
    options.struct_size = wrong
    calls = [
        lambda: lib.abt_batches_open(handle.value, options, out),
        lambda: lib.abt_loader_open(handle.value, options, out),
    ]
    for call in calls:
        with pytest.raises(errors.ArgumentError, match=f"struct_size is {wrong};"):
            _native.check(call())


def test_a_handle_of_another_kind_is_refused() -> None:
    handle = _native.instructions.parse(b"", False)
    with pytest.raises(
        errors.ArgumentError, match=r"is not the handle of a dataset|not of a dataset"
    ):
        _native.check(lib.abt_dataset_verify(handle.value, ffi.new("uint64_t *")))


def test_freeing_twice_is_an_error_and_zero_is_nothing() -> None:
    out = ffi.new("uint64_t *")
    assert lib.abt_instructions_parse(ffi.NULL, 0, 0, out) == lib.ABT_STATUS_OK
    assert lib.abt_instructions_free(out[0]) == lib.ABT_STATUS_OK
    assert lib.abt_instructions_free(out[0]) == lib.ABT_STATUS_STALE_HANDLE
    assert b"freed before" in ffi.string(lib.abt_last_error())
    assert lib.abt_instructions_free(0) == lib.ABT_STATUS_OK


def test_outputs_are_zero_after_a_failure(tmp_path: Path) -> None:
    out = ffi.new("uint64_t *", 77)
    path = ffi.new("char[]", bytes(tmp_path / "missing.bin"))
    assert lib.abt_dataset_open(path, 1, out) == lib.ABT_STATUS_NOT_FOUND
    assert out[0] == 0


def test_text_is_not_written_into_a_buffer_that_is_too_small() -> None:
    needed = ffi.new("size_t *")
    assert lib.abt_config_schema_json(ffi.NULL, 0, needed) == lib.ABT_STATUS_BUFFER_TOO_SMALL
    size = needed[0]
    buffer = ffi.new("char[]", b"\xaa" * size)
    assert lib.abt_config_schema_json(buffer, size - 1, needed) == lib.ABT_STATUS_BUFFER_TOO_SMALL
    assert bytes(ffi.buffer(buffer, size)) == b"\xaa" * size
    assert lib.abt_config_schema_json(buffer, size, needed) == lib.ABT_STATUS_OK


def test_the_last_error_belongs_to_its_thread() -> None:
    import threading

    assert lib.abt_instructions_free(0xDEAD) != lib.ABT_STATUS_OK
    mine = ffi.string(lib.abt_last_error())
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.append(ffi.string(lib.abt_last_error())))
    thread.start()
    thread.join()
    assert seen == [b""]
    assert ffi.string(lib.abt_last_error()) == mine != b""


def test_strings_with_zero_bytes_are_refused_before_the_call() -> None:
    with pytest.raises(errors.ArgumentError, match="zero byte"):
        _native.dataset.open("a\0b", True)


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5, "3", True, None])
def test_numbers_are_checked_before_the_call(bad: object) -> None:
    with pytest.raises(errors.ArgumentError, match="seed"):
        _native.epoch_order(3, True, bad, 0)  # type: ignore[arg-type]


def test_the_symbols_answer_over_plain_dlopen() -> None:
    library = ctypes.CDLL(_native.library_path)
    library.abt_version.restype = ctypes.c_char_p
    assert library.abt_version().decode() == _native.version()
