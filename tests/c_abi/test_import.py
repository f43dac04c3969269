"""`import abi_train` is quick, quiet and keeps its promises about names."""

from __future__ import annotations

import importlib
import time

from child import run_child

import abi_train

HEAVY = ("torch", "numpy", "transformers", "trl", "yaml", "pydantic", "typer", "rich", "socket")


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter()\n"
        "import abi_train\n"
        "print(time.perf_counter() - start)\n"
        f"print([m for m in {HEAVY!r} if m in set(sys.modules) - before])"
    )
    times = []
    for _ in range(3):
        done = run_child(code)
        assert done.returncode == 0, done.stderr
        seconds, heavy = done.stdout.strip().splitlines()
        assert heavy == "[]"
        times.append(float(seconds))
    assert min(times) < 0.1


def test_using_the_native_side_never_imports_torch() -> None:
    done = run_child(
        "import sys, abi_train\n"
        "from abi_train import _native, Tokenizer, TokenizedDataset, Model, Trainer, Generator\n"
        "_native.cpu_info()\n"
        "print('torch' in sys.modules)"
    )
    assert done.stdout.strip() == "False", done.stderr


def test_import_opens_no_socket_and_starts_no_process() -> None:
    done = run_child(
        "import sys\n"
        "seen = []\n"
        "def watch(event, arguments):\n"
        "    if event.startswith(('socket.', 'subprocess.', 'os.system', 'os.fork', 'urllib.')):\n"
        "        seen.append(event)\n"
        "sys.addaudithook(watch)\n"
        "import abi_train\n"
        "from abi_train import Tokenizer, TokenizedDataset, Model, Trainer, Generator\n"
        "print(seen)"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_all_names_what_can_be_imported_in_order() -> None:
    assert abi_train.__all__ == sorted(abi_train.__all__)
    assert set(abi_train._HOME) | {"__version__"} == set(abi_train.__all__)
    for name in abi_train.__all__:
        assert getattr(abi_train, name) is not None
    assert set(abi_train.__all__) <= set(dir(abi_train))


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        abi_train.nothing_of_this_name  # noqa: B018
    except AttributeError as error:
        assert "nothing_of_this_name" in str(error)
    else:
        raise AssertionError("the name was found")


def test_every_error_is_ours_and_the_builtin_people_expect() -> None:
    errors = importlib.import_module("abi_train.errors")
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.AbiTrainError)
        assert kind.__doc__
        if kind is not errors.AbiTrainError:
            assert name in (errors.__doc__ or ""), f"{name} is missing in the tree"
            assert len(kind.__mro__) > 4, f"{name} is no builtin's child"


def test_a_call_costs_little() -> None:
    from abi_train._native import lib

    start = time.perf_counter()
    for _ in range(10_000):
        lib.abt_abi_version()
    assert (time.perf_counter() - start) / 10_000 < 5e-6
