"""Tasks of the package lm-eval (`pip install lm-eval`), asked of a model that either engine runs.

Prompts are plain text, as lm-eval gives them to base models; its data comes from the Hub. Scores
keep lm-eval's names, without their standard errors. Does not know: any task.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..errors import AbiTrainError, ConfigError, EngineError, FileAccessError
from .scorer import Scorer, finite

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.uint32]

MAX_NEW_TOKENS: Final = 256


def require() -> None:
    """Raise `EngineError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EngineError("tasks of lm-eval need the package: pip install 'abi-train[eval]'")


def evaluate(
    scorer: Scorer, task: str, *, limit: int | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores and details of one task of lm-eval.

    Raises `ConfigError` for a task it does not know, `FileAccessError` when its data cannot be had,
    `EngineError` without the package.
    """
    require()
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(verbosity="ERROR")
    if not task.endswith((".yaml", ".yml")) and task not in manager.all_tasks:
        raise ConfigError(f"lm-eval has no task {task!r}; `lm-eval ls tasks` lists them")
    try:
        found = lm_eval.simple_evaluate(
            model=_model(scorer),
            tasks=[task],
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
            task_manager=manager,
        )
    except AbiTrainError:
        raise
    except (OSError, ConnectionError) as error:
        said = " ".join(str(error).split())[:200]
        raise FileAccessError(f"lm-eval: the data of {task} cannot be had here ({said})") from None
    results = {} if found is None else found["results"]
    scores: dict[str, float] = {}
    for name, values in results.items():
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if metric.endswith("_stderr") or metric in ("alias", "sample_len"):
                continue
            parts = [] if len(results) == 1 else [name]
            parts += [metric] if kept in ("", "none") else [metric, kept]
            scores[" ".join(parts)] = float(value)
    if not scores:
        raise ConfigError(f"lm-eval: the task {task} gave no score; choose another task")
    return scores, {"task": task, "version": str(getattr(lm_eval, "__version__", ""))}


def _model(scorer: Scorer) -> Any:
    """The model as lm-eval knows one. Made here, as its base class is only there with lm-eval."""
    from lm_eval.api.model import LM

    class Model(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            wanted = [_joined(scorer, *request.args) for request in requests]
            return [
                (finite(values), bool(best.all()))
                for values, best in scorer.runner.log_probs(wanted)
            ]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            from .perplexity import windows

            totals = []
            for request in requests:
                ids = _with_beginning(scorer, scorer.tokenizer.encode(request.args[0]))
                pieces = list(windows(ids, scorer.runner.context))
                totals.append(sum(finite(v) for v, _ in scorer.runner.log_probs(pieces)))
            return totals

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [_until(scorer, *request.args) for request in requests]

    return Model()


def _joined(scorer: Scorer, context: str, continuation: str) -> tuple[Ids, int]:
    """Both encoded together, cut on the left to what the model can look back."""
    import numpy as np

    kept = len(context.rstrip())
    context, continuation = context[:kept], context[kept:] + continuation
    both = scorer.tokenizer.encode(context + continuation)
    before = scorer.tokenizer.encode(context)
    first = min(int(before.size), int(both.size) - 1)
    if first == 0:
        both = _with_beginning(scorer, both)
        first = 1
    over = max(0, int(both.size) - scorer.runner.context)
    over = min(over, first - 1)
    both = np.ascontiguousarray(both[over:])
    scorer.require_room("a question of lm-eval", int(both.size))
    return both, first - over


def _with_beginning(scorer: Scorer, ids: Ids) -> Ids:
    """With an id before the first one, that it can be predicted from."""
    import numpy as np

    tokenizer = scorer.tokenizer
    for known in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if known is not None:
            if ids.size and int(ids[0]) == known:
                return ids
            return np.concatenate([np.array([known], dtype=np.uint32), ids])
    return ids


def _until(scorer: Scorer, context: str, options: dict[str, Any]) -> str:
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    most = int(options.get("max_gen_toks") or options.get("max_tokens") or MAX_NEW_TOKENS)
    ids = scorer.tokenizer.encode(context)
    ids = ids if ids.size else _with_beginning(scorer, ids)
    room = scorer.runner.context
    most = min(most, max(room // 2, room - int(ids.size)))  # a long prompt keeps half the room
    ids = ids[-(room - most) :]
    found, _ = scorer.runner.answer(ids, scorer.tokenizer.stop_token_ids, most)
    text = scorer.tokenizer.decode(found, continues=True)
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
