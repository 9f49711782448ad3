"""`dslite serve`: the OpenAI-compatible API."""

import importlib.util
import sys
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import ip_address
from typing import Annotated

import typer

from dslite.app.commands.command import flag
from dslite.app.commands.flags import EngineFlags
from dslite.app.commands.model_prompt import ensure_model
from dslite.app.commands.packing import ensure_packed
from dslite.app.server.auth import parse_host, parse_origin
from dslite.app.settings.endpoint import key_from_environment
from dslite.runtime.downloads.hub import SHORT_NAMES, ModelRef
from dslite.runtime.engine_options import check_whole
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.units import parse_size

ALIAS = "deepseek-chat"  # the name in the LangChain sample of the model's own README
_MOST_SECONDS = 604_800  # a week


def serve(
    *,
    host: Annotated[str, flag("--host", help="Address to listen on; not loopback: needs --api-key-env.")] = "127.0.0.1",
    port: Annotated[int, flag("--port", help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, flag("--api-key-env", metavar="NAME", help="Environment variable with the key that clients send.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        flag("--allow-origin", metavar="URL", help="Let pages of this origin use the API."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        flag("--allow-host", metavar="NAME", help="Answer to this Host name (as host.docker.internal)."),
    ] = None,
    parallel: Annotated[int, flag("--parallel", help="Most answers computed together.")] = 8,
    queue: Annotated[int, flag("--queue", help="Most answers under way and waiting.")] = 256,
    timeout: Annotated[float, flag("--timeout", help="Most seconds for a request.")] = 3600,
    disk_cache: Annotated[
        str, flag("--disk-cache", metavar="SIZE", help="Most room on disk for what was computed of clients' prompts.")
    ] = "0",
    warm: Annotated[bool, flag("--warm", help="Let complete and chat of this user use the model too.")] = False,
    engine: EngineFlags,
) -> None:
    """Serve the OpenAI-compatible API on this machine."""
    check_whole("--port", port, 0, 65535)
    check_whole("--parallel", parallel, 1, 256)
    check_whole("--queue", queue, 1, 65536)
    if not 1 <= timeout <= _MOST_SECONDS:
        raise UsageError(f"--timeout is {timeout}; it must be from 1 to {_MOST_SECONDS} seconds")
    options = replace(engine.settled_options(), disk_cache=0 if disk_cache.strip() == "0" else parse_size(disk_cache))
    hosts = tuple(map(parse_host, allow_host or ()))
    origins = tuple(map(parse_origin, allow_origin or ()))
    ref = ensure_model(engine.ref("chat"), offline=engine.offline, weights=options.weights)
    ensure_packed(ref, options, yes=engine.yes)
    key = key_from_environment(api_key_env)
    if key is None and not _is_loopback(host):
        raise UsageError(
            f"--host {host} lets other machines use the server",
            "name the variable that holds their key with --api-key-env",
        )
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise DsliteError("the server's packages are not installed", "pip install 'dslite[serve]'")

    from dslite.app.server.api import Api
    from dslite.app.server.limits import Limits
    from dslite.app.server.model_loading import open_served
    from dslite.app.server.server import bind
    from dslite.app.server.server import serve as run
    from dslite.app.server.warm import WarmPlace

    limits = Limits(parallel=parallel, queue=queue, seconds=timeout)
    listener = bind(host, port)
    with WarmPlace(ref, options) if warm else nullcontext() as place:
        served = open_served(ref, options, model_names(ref))
        api = Api(served, limits, key=key, hosts=hosts, origins=origins)
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}/v1"

        def ready() -> None:
            if place is not None:
                place.open(served.engine, api.worker)
            print(f"serving {served.names[0]} on {url}", file=sys.stderr, flush=True)

        caught = run(api, listener, limits, ready)
    raise typer.Exit(128 + caught if caught else 0)


def model_names(ref: ModelRef) -> tuple[str, ...]:
    """The names of a served model: its id, its short name and the alias; of a folder the last part of its path."""
    own = ref.repo_id or (ref.folder.resolve().name if ref.folder else ref.name)
    short = [name for name, repo_id in SHORT_NAMES.items() if repo_id == ref.repo_id]
    return tuple(dict.fromkeys((own, *short, ALIAS)))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
