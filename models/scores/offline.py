"""Keeps libraries from downloading weights that the user did not name.

pyiqa, CLIP, timm, torchvision and ultralytics download what they lack as soon as a model is made. In the
block of `no_downloads` that is an error that says which file is lacking and where it belongs.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Generator
from typing import Any

_lock = threading.RLock()
"""Held by the one thread whose block is open: the libraries' functions are replaced for all threads."""


class NotDownloaded(Exception):
    """A library tried to download `what`, a URL or a host; `target` is the file that it would have written,
    if that is known.
    """

    def __init__(self, what: str, target: str | None = None) -> None:
        self.what, self.target = what, target
        super().__init__(f"{what} was not downloaded{f' to {target}' if target else ''}")


@contextlib.contextmanager
def no_downloads() -> Generator[None]:
    """Make each download of the block's own thread raise NotDownloaded; other threads are not affected.

    Downloads through `torch.hub` are recognised with URL and target, those through urllib with their URL; of
    any other the host is known, because its name is looked up. The hub's cache is used offline.
    """
    import huggingface_hub.constants
    import torch.hub

    own = threading.get_ident()
    look_up = socket.getaddrinfo
    open_url = urllib.request.urlopen
    download = torch.hub.download_url_to_file

    def refuse_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != own:
            return look_up(host, *args, **kwargs)
        raise NotDownloaded(str(host))

    def refuse_open(url: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != own:
            return open_url(url, *args, **kwargs)
        raise NotDownloaded(url if isinstance(url, str) else url.full_url)

    def refuse_download(url: str, dst: str, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() != own:
            return download(url, dst, *args, **kwargs)
        raise NotDownloaded(url, dst)

    with _lock, contextlib.ExitStack() as stack:
        patches: list[tuple[Any, str, Any]] = [
            (socket, "getaddrinfo", refuse_look_up),
            (urllib.request, "urlopen", refuse_open),
            (torch.hub, "download_url_to_file", refuse_download),
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        ]
        for owner, name, value in patches:
            replace(stack, owner, name, value)
        yield


def replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a module or class until the stack is closed."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
