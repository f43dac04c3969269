"""Preparing data: ids as the Hugging Face tokenizer gives them, the right ones in the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import llama3_tokenizer, qwen2_tokenizer, smollm_tokenizer

from abi_train import TokenizedDataset
from abi_train.data.native import NativeEncoder
from abi_train.data.prepare import PrepareReport, prepare
from abi_train.errors import AbiTrainError, DataError, FileAccessError, MissingFileError

CHAT = [
    {"role": "system", "content": "You are Abbey."},
    {"role": "user", "content": "The fox isn't <|im_end|> here, is it?"},
    {"role": "assistant", "content": "No. It jumps over 42 dogs."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Naïve café 🙂"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, make in (
        ("smollm", smollm_tokenizer),
        ("llama3", llama3_tokenizer),
        ("qwen", qwen2_tokenizer),
    ):
        folder = tmp_path_factory.mktemp(name)
        make().save_pretrained(folder)
        made[name] = folder
    return made


def run(
    tmp_path: Path, folder: Path, *rows: Any, **options: Any
) -> tuple[PrepareReport, list[list[int]], list[list[bool]]]:
    source = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = prepare([source], folder, tmp_path / "out.bin", **options)
    return report, *read(tmp_path / "out.bin")


def read(path: Path) -> tuple[list[list[int]], list[list[bool]]]:
    with TokenizedDataset.load(path) as data:
        assert data.verify()
        starts, mask = data.row_starts, data.loss_mask
        if starts is None or mask is None:
            return [data.tokens.tolist()], []
        ends = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
        return (
            [data.tokens[a:b].tolist() for a, b in ends],
            [mask[a:b].tolist() for a, b in ends],
        )


def test_text_is_all_in_the_loss_and_ends_with_the_end_token(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    hf = llama3_tokenizer()
    _, ids, mask = run(tmp_path, folders["llama3"], {"text": "The quick brown fox."})
    assert ids == [[*hf("The quick brown fox.")["input_ids"], hf.eos_token_id]]
    assert mask == [[True] * len(ids[0])]


def test_prompt_and_completion_are_one_text_split_at_the_common_prefix(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    hf = smollm_tokenizer()
    text = "The quick brown fox jumps over the lazy dog."
    whole = [*hf(text)["input_ids"], hf.eos_token_id]
    rows, wanted, straddling = [], [], 0
    for cut in range(1, len(text)):
        if not text[:cut].strip() or not text[cut:].strip():
            continue
        rows.append({"prompt": text[:cut], "completion": text[cut:]})
        alone = hf(text[:cut])["input_ids"]
        same = 0
        while same < len(alone) and alone[same] == whole[same]:
            same += 1
        straddling += same < len(alone)
        wanted.append([at >= same for at in range(len(whole))])
    assert straddling > 10
    _, ids, mask = run(tmp_path, folders["smollm"], *rows)
    assert ids == [whole] * len(rows)
    assert mask == wanted


def test_a_chat_is_what_the_template_renders(tmp_path: Path, folders: dict[str, Path]) -> None:
    turns = [dict(turn, content=turn["content"].replace("<|im_end|> ", "")) for turn in CHAT]
    hf = smollm_tokenizer()
    report, ids, mask = run(tmp_path, folders["smollm"], {"messages": turns})
    wanted = hf.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    assert ids == [wanted]
    learned = [i for i, kept in zip(ids[0], mask[0], strict=True) if kept]
    assert hf.decode(learned) == "No. It jumps over 42 dogs.<|im_end|>Naïve café 🙂<|im_end|>"
    assert "".join(text for text, kept in report.first_example if kept) == hf.decode(learned)


def test_text_cannot_become_a_control_token(tmp_path: Path, folders: dict[str, Path]) -> None:
    hf = smollm_tokenizer()
    end = hf.convert_tokens_to_ids("<|im_end|>")
    _, ids, _ = run(tmp_path, folders["smollm"], {"messages": CHAT})
    assert ids[0].count(end) == len(CHAT)


def test_only_the_completion_of_two_lists_is_learned(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    hf = smollm_tokenizer()
    row = {"prompt": CHAT[:4], "completion": CHAT[4:]}
    _, ids, mask = run(tmp_path, folders["smollm"], row)
    learned = [i for i, kept in zip(ids[0], mask[0], strict=True) if kept]
    assert hf.decode(learned) == "Naïve café 🙂<|im_end|>"


def test_cut_rows_are_counted_and_rows_without_targets_dropped(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    long = {"prompt": "a b c d e f g h " * 4, "completion": "end"}
    report, ids, _ = run(
        tmp_path, folders["smollm"], long, {"text": "one two three four " * 8}, max_seq_len=12
    )
    assert report.dropped == 1
    assert (report.train.rows, report.train.truncated, report.train.longest) == (1, 1, 12)
    assert len(ids[0]) == 12


def test_the_split_is_seeded_and_loses_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    rows = [{"text": f"row number {at}"} for at in range(40)]
    report, train, _ = run(tmp_path, folders["smollm"], *rows, eval_fraction=0.25, seed=3)
    held, _ = read(tmp_path / "out_eval.bin")
    assert report.evaluation is not None
    assert (len(train), len(held)) == (30, 10)
    again = tmp_path / "again"
    again.mkdir()
    _, train_again, _ = run(again, folders["smollm"], *rows, eval_fraction=0.25, seed=3)
    assert train == train_again
    other = tmp_path / "other"
    other.mkdir()
    _, train_other, _ = run(other, folders["smollm"], *rows, eval_fraction=0.25, seed=4)
    assert train != train_other
    everything = sorted(train + held)
    _, whole, _ = run(again, folders["smollm"], *rows)
    assert everything == sorted(whole)


def test_a_stream_has_no_rows_but_keeps_its_mask(tmp_path: Path, folders: dict[str, Path]) -> None:
    rows = ({"prompt": "a b c ", "completion": "d e"}, {"prompt": "f g ", "completion": "h"})
    _, ids, mask = run(tmp_path, folders["smollm"], *rows)
    (tmp_path / "stream").mkdir()
    report, _, _ = run(tmp_path / "stream", folders["smollm"], *rows, stream=True)
    with TokenizedDataset.load(tmp_path / "stream" / "out.bin") as data:
        assert data.row_starts is None
        assert data.tokens.tolist() == [i for row in ids for i in row]
        assert data.loss_mask is not None
        assert data.loss_mask.tolist() == [kept for row in mask for kept in row]
        assert 0 < data.loss_mask.sum() < len(data.tokens)
        assert report.train.tokens_in_loss == data.loss_mask[1:].sum()


def test_a_stream_is_what_the_tokenizer_says_and_nothing_else(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    run(tmp_path, folders["smollm"], {"text": "a b"}, {"text": "c d"}, stream=True)
    with TokenizedDataset.load(tmp_path / "out.bin") as data:
        assert data.row_starts is None
        assert data.loss_mask is not None and data.loss_mask.all()
    raw = np.fromfile(tmp_path / "out.bin", dtype="<u4")
    hf = smollm_tokenizer()
    end = hf.eos_token_id
    assert raw.tolist() == [*hf("a b")["input_ids"], end, *hf("c d")["input_ids"], end]


def test_a_bad_line_leaves_the_old_file_as_it_was(tmp_path: Path, folders: dict[str, Path]) -> None:
    _, before, _ = run(tmp_path, folders["smollm"], {"text": "old"})
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        run(tmp_path, folders["smollm"], {"text": "new"}, "{")
    assert read(tmp_path / "out.bin")[0] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_tolerance_counts_what_it_passes_over(tmp_path: Path, folders: dict[str, Path]) -> None:
    report, ids, _ = run(tmp_path, folders["smollm"], {"text": "x y"}, "{", skip_invalid=True)
    assert len(ids) == 1
    assert report.skipped.total == 1


def test_nothing_left_is_an_error_and_no_file(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="no row is left"):
        run(tmp_path, folders["smollm"], "{", skip_invalid=True)
    assert not (tmp_path / "out.bin").exists()


def test_one_file_cannot_be_for_training_and_evaluation(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"row {number}"} for number in range(6)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for same in ("out.bin", tmp_path / "out.bin", "link/out.bin"):
        with pytest.raises(DataError, match="at once"):
            run(tmp_path, folders["smollm"], *rows, eval_output=same, eval_fraction=0.5)
    with pytest.raises(DataError, match=r"end in \.bin"):
        run(tmp_path, folders["smollm"], *rows, eval_output="out.json", eval_fraction=0.5)
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize("name", ["out.bin", "out_eval.bin"])
def test_a_file_that_is_no_data_set_is_not_replaced(
    tmp_path: Path, folders: dict[str, Path], name: str
) -> None:
    (tmp_path / name).write_bytes(b"a photo")
    rows = [{"text": f"row {number}"} for number in range(6)]
    with pytest.raises(FileAccessError, match="name another file, or delete it"):
        run(tmp_path, folders["smollm"], *rows, eval_fraction=0.5)
    assert (tmp_path / name).read_bytes() == b"a photo"
    (tmp_path / name).with_suffix(".json").write_text('{"camera": "mine"}')
    with pytest.raises(AbiTrainError):
        run(tmp_path, folders["smollm"], *rows, eval_fraction=0.5)
    assert (tmp_path / name).read_bytes() == b"a photo"
    for ending in (".bin", ".json"):
        (tmp_path / name).with_suffix(ending).unlink()
    for _ in range(2):  # our own are
        run(tmp_path, folders["smollm"], *rows, eval_fraction=0.5)


def test_advice_on_length_is_given_to_those_who_cut(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    row = {"prompt": "one two three four five", "completion": "six"}
    with pytest.raises(DataError, match="--max-seq-len"):
        run(tmp_path, folders["smollm"], row, max_seq_len=2)
    with pytest.raises(DataError) as caught:
        run(tmp_path, folders["smollm"], "{", skip_invalid=True)
    assert "max-seq-len" not in str(caught.value)


def test_missing_things_are_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(MissingFileError, match="gone"):
        prepare([tmp_path / "gone.jsonl"], folders["smollm"], tmp_path / "o.bin")
    with pytest.raises(MissingFileError):
        run(tmp_path, tmp_path / "no-tokenizer", {"text": "a"})


def test_only_the_last_answer_is_learned_when_asked(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    hf = smollm_tokenizer()
    for loss, learned in (
        ("assistant", ["No. It jumps over 42 dogs.<|im_end|>", "Naïve café 🙂<|im_end|>"]),
        ("completion", ["Naïve café 🙂<|im_end|>"]),
    ):
        _, ids, mask = run(tmp_path, folders["smollm"], {"messages": CHAT}, loss=loss)
        kept = [token for token, keep in zip(ids[0], mask[0], strict=True) if keep]
        assert hf.decode(kept) == "".join(learned)


@pytest.mark.parametrize(
    "row", [{"messages": CHAT}, {"prompt": "The fox", "completion": " jumps."}, {"text": "fox"}]
)
def test_everything_is_learned_when_asked(
    tmp_path: Path, folders: dict[str, Path], row: dict[str, Any]
) -> None:
    _, some, _ = run(tmp_path, folders["smollm"], row)
    report, ids, mask = run(tmp_path, folders["smollm"], row, loss="all")
    assert ids == some
    assert mask == [[True] * len(ids[0])]
    assert report.train.tokens_in_loss == len(ids[0]) - 1


def test_a_loss_that_does_not_fit_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    with pytest.raises(DataError, match="only the answers are learned"):
        run(tmp_path, folders["smollm"], pair, loss="all")
    with pytest.raises(DataError, match="loss is 'user'; it must be one of assistant, completion"):
        run(tmp_path, folders["smollm"], {"text": "a"}, loss="user")


class Endless(NativeEncoder):
    """A format whose turns are in the loss without their end token."""

    def encode_chat(self, *args: Any, **kwargs: Any) -> tuple[list[int], list[bool]]:
        ids, mask = super().encode_chat(*args, **kwargs)
        return ids, [keep and token not in self.end_ids for token, keep in zip(ids, mask)]  # noqa: B905


def test_a_row_that_would_be_learned_without_its_end_token_is_an_error(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    encoder = Endless(folders["smollm"])
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*ends with '.*42 dogs.' and not with an"):
        run(tmp_path, folders["smollm"], {"messages": CHAT}, encoder=encoder)
    assert not (tmp_path / "out.bin").exists()


def test_a_tokenizer_without_end_token_is_an_error(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    encoder = NativeEncoder(folders["smollm"])
    encoder.end_id, encoder.end_ids = None, frozenset()
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*The tokenizer has none: set eos_token"):
        run(tmp_path, folders["smollm"], {"text": "The fox"}, encoder=encoder)
    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*set eos_token"):
        run(tmp_path, folders["smollm"], pair, encoder=encoder)
