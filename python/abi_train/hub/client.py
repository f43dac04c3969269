"""The one way to the Hub: `api()` to talk to it, `token()` for who we are, `asking()` around each
talk so that what goes wrong is said in one sentence.

::

    from ..hub import client

    hub = client.api()                           # HfApi; EngineError without the package
    who = client.namespace(hub)                  # HubError without a token
    with client.asking("create the repository me/abbey"):
        hub.create_repo("me/abbey", private=True)

`huggingface_hub` is imported here and nowhere else, and only when it is asked for. The token is the
one of `hf auth login` or `HF_TOKEN`; it is never printed and never written.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EngineError, HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def library() -> Any:
    """The module `huggingface_hub`. Raises `EngineError` where it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise EngineError(
            'huggingface_hub is not installed; pip install "abi-train[hub]"'
        ) from None
    return huggingface_hub


def endpoint() -> str:
    """The address of the Hub, `HF_ENDPOINT` respected."""
    library()
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def api() -> HfApi:
    """A way to call the Hub. Raises `EngineError` where `huggingface_hub` is not installed,
    `HubError` for a token that cannot be one."""
    made: HfApi = library().HfApi(library_name="abi-train", token=None)
    _checked_token()  # the library sends it by itself
    return made


def check_name(name: str) -> None:
    """Raise `ConfigError` for a name of a repository that the Hub's own rules refuse."""
    library()
    import huggingface_hub.errors
    import huggingface_hub.utils

    errors: Any = huggingface_hub.errors
    utils: Any = huggingface_hub.utils
    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ConfigError(f"{name!r} is no name for a repository: {error}") from None


def _checked_token() -> str | None:
    """The token, if there is one. Raises `HubError` for what cannot be one; it is not shown."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if not _can_be_sent(os.environ.get(variable, "").strip()):
            raise HubError(
                f"{variable} is no token: one is letters and digits in one line. Set it again, or "
                "unset it and log in with `hf auth login`"
            )
    found: str | None = library().get_token()
    if found and not _can_be_sent(found):
        raise HubError("what `hf auth login` keeps is no token; log in with it again")
    return found


def _can_be_sent(text: str) -> bool:
    """Whether it is one word of printable ASCII, as a header takes it; so is no word at all."""
    return all("!" <= letter <= "~" for letter in text)


def token(*, what: str | None = None) -> str:
    """The user's token. Raises `HubError`, saying what it is needed for, when there is none."""
    found = _checked_token()
    if not found:
        wanted = f"{what} needs a Hugging Face token and there is none" if what else "no token"
        raise HubError(f"{wanted}: {LOGIN}")
    return found


def namespace(hub: HfApi, *, what: str | None = None) -> str:
    """The user's name on the Hub. Raises `HubError`."""
    token(what=what)
    with asking("ask who you are"):
        return str(hub.whoami()["name"])


@contextlib.contextmanager
def asking(what: str, *, hint: str | None = None) -> Iterator[None]:
    """Around calls of the Hub: any failure of theirs becomes a `HubError` that says what could not
    be done (`what`: "submit the job", ...), why, and what to do next.

    hint: the next move where the Hub does not know what was asked for.
    """
    library()
    import huggingface_hub.errors

    named: Any = huggingface_hub.errors
    try:
        yield
    except HubError:
        raise
    except named.LocalTokenNotFoundError:
        raise HubError(f"cannot {what}: there is no Hugging Face token; {LOGIN}") from None
    except named.OfflineModeIsEnabled:
        raise HubError(
            f"cannot {what}: the environment asks to stay offline; unset HF_HUB_OFFLINE"
        ) from None
    except named.GatedRepoError as error:
        raise HubError(
            f"cannot {what}: {_said(error)} Its owner lets in only those who asked: open its page, "
            "accept the terms, and try again"
        ) from None
    except named.HfHubHTTPError as error:
        raise HubError(f"cannot {what}: {_of_status(error, hint)}") from None
    except named.HTTPError as error:
        raise HubError(
            f"cannot {what}: {endpoint()} cannot be reached ({_plain(error)}). Look at the "
            "connection and try again"
        ) from None


def _of_status(error: Any, hint: str | None) -> str:
    response = getattr(error, "response", None)
    status = int(getattr(response, "status_code", 0) or 0)
    said = _said(error)
    if status == 401:
        return f"the Hub does not accept the token (401). {LOGIN[0].upper()}{LOGIN[1:]}"
    if status == 402:
        return (
            f"the account cannot pay for it (402). {said} Add credits or a payment method in the "
            "Hub's billing settings"
        )
    if status == 403:
        return f"the token may not do it (403). {said} Use one with write access"
    if status == 404:
        return f"the Hub does not know it (404). {hint or said}"
    if status == 429:
        return "the Hub asks to slow down (429). Wait a minute and try again"
    if status >= 500:
        return f"the Hub has a fault of its own ({status}). {said} Nothing is lost: try again later"
    return f"the Hub refused ({status or 'no status'}). {said}"


def _said(error: Any) -> str:
    """What the server itself gave as a reason, as one sentence; empty where it gave none."""
    text = getattr(error, "server_message", None)
    if not text:
        return ""
    text = " ".join(str(text).split())[:300]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _plain(error: BaseException) -> str:
    """An error of the network as words, without addresses of objects."""
    text = " ".join(str(error).split())
    return re.sub(r"<[^>]*>", "", text)[:200] or type(error).__name__
