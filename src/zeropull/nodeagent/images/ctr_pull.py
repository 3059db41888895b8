"""The last rung of the ladder: containerd's ordinary pull, by its own `ctr` program.

It fetches every blob into containerd's content store and unpacks it with the overlayfs
snapshotter, which is what a node without our plugin does. A password goes to ctr's own prompt
over a pseudo-terminal, a token into a file that only root reads: neither is in the process list.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import pty
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zeropull.errors import (
    AccessDenied,
    DiskFull,
    ImageError,
    NotFound,
    PlatformError,
    Unavailable,
    ZeropullError,
)
from zeropull.linux.removal import try_remove_tree
from zeropull.resources.sources import RegistryAccess

SNAPSHOTTER = "overlayfs"
PULL_TIMEOUT_S = 3600.0
_KEPT_OUTPUT = 4000
MAX_TERMINAL_LINE = 4000  # the line discipline takes 4096 bytes

_MEANINGS: tuple[tuple[str, type[ZeropullError]], ...] = (
    (r"no space left on device", DiskFull),
    (r"401 Unauthorized|403 Forbidden|authorization failed|access denied", AccessDenied),
    (r"not found|404", NotFound),
    (r"no match for platform", PlatformError),
    (r"unsupported media type", ImageError),
)


async def pull_with_ctr(
    reference: str,
    *,
    socket: Path,
    namespace: str,
    platform: str,
    access: RegistryAccess | None,
    plain_http: bool,
    scratch: Path,
    longest_prompt_bytes: int = MAX_TERMINAL_LINE,
) -> None:
    """Pull `reference` (repository@digest) and unpack it with overlayfs. Idempotent.

    A password of more than `longest_prompt_bytes` goes by a file in `scratch`, which is gone
    afterwards.

    Raises:
        NotFound, AccessDenied, ImageError, PlatformError, DiskFull: as ctr's words say.
        Unavailable: anything else that went wrong, ctr's last words in the message.
    """
    command = ["ctr", "-a", str(socket), "-n", namespace, "images", "pull"]
    command += ["--snapshotter", SNAPSHOTTER, "--platform", platform]
    if plain_http:
        command.append("--plain-http")
    password = access.password if access and access.username else None
    with contextlib.ExitStack() as stack:
        if access and access.username and password and len(password) <= longest_prompt_bytes:
            command += ["--user", access.username]
            authorization = None
        else:
            authorization = _authorization(access)
            password = None
        if access and (authorization or access.ca or access.client_cert or access.skip_verify):
            folder = _hosts_folder(access, plain_http, authorization, scratch)
            command += ["--hosts-dir", stack.enter_context(folder)]
        code, output = await _run([*command, reference], password)
    if code != 0:
        raise _error_of(reference, output)


def _authorization(access: RegistryAccess | None) -> str | None:
    """The header for what ctr's prompt does not take: tokens, and passwords that are too long."""
    if access is None or not (access.token or (access.username and access.password)):
        return None
    if access.token:
        return f"Bearer {access.token}"
    pair = f"{access.username}:{access.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


@contextlib.contextmanager
def _hosts_folder(
    access: RegistryAccess, plain_http: bool, authorization: str | None, scratch: Path
) -> Iterator[str]:
    """containerd's hosts.toml with credentials as a header, and TLS as it is configured, for as
    long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix=".tmp-hosts-", dir=scratch))
    try:
        host = folder / access.host
        host.mkdir(mode=0o700)
        url = f"{'http' if plain_http else 'https'}://{access.host}"
        lines = [f'server = "{url}"', f'[host."{url}"]', 'capabilities = ["pull", "resolve"]']
        if access.ca:
            lines.append(f'ca = "{_private_file(host / "ca.pem", access.ca)}"')
        if access.client_cert:
            pem = f"{access.client_cert}\n{access.client_key or ''}\n"
            path = _private_file(host / "client.pem", pem)
            lines.append(f'client = [["{path}", "{path}"]]')
        if access.skip_verify:
            lines.append("skip_verify = true")
        if authorization is not None:
            lines += [f'[host."{url}".header]', f'Authorization = "{authorization}"']
        _private_file(host / "hosts.toml", "\n".join(lines) + "\n")
        yield str(folder)
    finally:
        try_remove_tree(folder)


def _private_file(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


async def _run(command: list[str], password: str | None) -> tuple[int, str]:
    controller, terminal = pty.openpty() if password is not None else (-1, -1)
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=terminal if password is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if password is not None:
            os.write(controller, f"{password}\n".encode())
        async with asyncio.timeout(PULL_TIMEOUT_S):
            return await _drain(process)
    except FileNotFoundError as error:
        raise Unavailable(
            "the program ctr of containerd is not on PATH: install containerd"
        ) from error
    except TimeoutError as error:
        raise Unavailable(f"ctr images pull took longer than {PULL_TIMEOUT_S:g} s") from error
    finally:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
        for descriptor in (controller, terminal):
            if descriptor >= 0:
                os.close(descriptor)


async def _drain(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Read to the end and keep the last words: the progress display is long."""
    assert process.stdout is not None
    kept = b""
    while chunk := await process.stdout.read(65536):
        kept = (kept + chunk)[-_KEPT_OUTPUT:]
    return await process.wait(), kept.decode(errors="replace")


def _error_of(reference: str, output: str) -> ZeropullError:
    lines = [line.strip() for line in re.split(r"[\r\n]", output) if line.strip()]
    failures = [line for line in lines if line.startswith(("ctr:", "error"))] or lines[-3:]
    text = f"containerd's own pull of {reference} failed: {' '.join(failures)[-1000:]}"
    for pattern, kind in _MEANINGS:
        if re.search(pattern, " ".join(failures)):
            return kind(text)
    return Unavailable(text)
