"""Whether a Ray cluster answers at an address and takes the token that is here, found out in a second.

Ray itself tries for half a minute to several minutes, and then says "timed out" of all of them alike: a port
where nothing listens, one that is not Ray's, and a cluster that asks for a token. Where a token is looked for
is Ray's rule (docs.ray.io, "Token authentication"): it is sent to an address that is named only with
RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import NamedTuple

from uhr.base.errors import UserError

CLIENT = "ray://"
SECONDS = 10.0
"""How long a port may take to answer."""

_HEAD_CALL, _CLIENT_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.RayletDriver/ClusterInfo"
"""A gRPC call that a cluster's head answers, and one that its server for Ray's client (ray://) does."""

_REFUSED = ("InvalidAuthToken", "Unauthenticated", "UNAUTHENTICATED", "authentication token")
"""In the words of Ray: it was the token."""


class _Token(NamedTuple):
    """A token, None where there is none, and where it is or would be looked for."""

    text: str | None
    place: str


def check(address: str) -> None:
    """UserError unless a Ray cluster answers at HOST:PORT or ray://HOST:PORT and takes the token here.

    Any other address ("auto"), and a cluster behind TLS, is left to Ray.
    """
    place = address.removeprefix(CLIENT)
    host, colon, port = place.rpartition(":")
    if not (host and colon and port.isdecimal()):
        return
    token = _token()
    if token is not None and token.text is None:
        raise token_error(address)
    if token is not None and token.text is not None and not _fits_header(token.text):
        raise UserError(f"the token of {token.place} has characters that none has", "copy it again")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise no_cluster(address, f"nothing answers there: {_reason(error)}") from None
    # grpcio comes with Ray's client and dashboard, not with Ray alone
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or importlib.util.find_spec("grpc") is None:
        return
    text = None if token is None else token.text
    mine, other = (_CLIENT_CALL, _HEAD_CALL) if address.startswith(CLIENT) else (_HEAD_CALL, _CLIENT_CALL)
    status = _status(place, mine, text)
    if status == "UNAUTHENTICATED":
        raise token_error(address)
    if status == "UNIMPLEMENTED" and _status(place, other, text) != "UNIMPLEMENTED":
        is_client = other == _CLIENT_CALL
        what = "for Ray's client" if is_client else "of a cluster's head, not for Ray's client"
        raise UserError(f"{place} is a port {what}", f"--address {CLIENT if is_client else ''}{place}")
    if status in ("UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"):
        raise no_cluster(address, "what listens there does not speak as Ray does")


def asks_for_token(words: str) -> bool:
    """Whether Ray failed for want of the right token, by what it said."""
    return any(each in words for each in _REFUSED)


def token_error(address: str) -> UserError:
    """The error for a cluster that does not take the token that it is sent, or that is sent none."""
    where = "the cluster's token is in ~/.ray/auth_token on its head, or `ray get-auth-token` prints it there"
    token = _token()
    if token is None:
        return UserError(
            f"the Ray cluster at '{address}' asks for a token, and none is sent without RAY_AUTH_MODE=token",
            f"set that, and RAY_AUTH_TOKEN; {where}",
        )
    if token.text is None:
        what = f"RAY_AUTH_MODE=token, and {token.place} holds no token for the Ray cluster at '{address}'"
        return UserError(what, f"set RAY_AUTH_TOKEN; {where}")
    return UserError(f"the Ray cluster at '{address}' refuses the token of {token.place}", where)


def no_cluster(address: str, why: str) -> UserError:
    """The error for an address at which there is no cluster."""
    return UserError(f"no Ray cluster at '{address}' ({why})", "start one, or leave --address out")


def _token() -> _Token | None:
    """What Ray sends; None where it sends nothing."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _Token(text, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        text = ""
    return _Token(text or None, str(file))


def _status(place: str, call: str, token: str | None) -> str:
    """The name of the gRPC status that a call ends with, made without arguments."""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            # what is raised is the call as well, which knows its status
            return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
    return "OK"


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
