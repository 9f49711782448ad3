"""`dslite serve`: the OpenAI-compatible API."""

import importlib.util
import os
import sys
from ipaddress import ip_address
from typing import Annotated

import typer

from dslite.app.commands import flags
from dslite.app.commands.flags import flag
from dslite.app.commands.model_prompt import ensure_model
from dslite.runtime.downloads.hub import SHORT_NAMES, ModelRef, parse_model
from dslite.runtime.errors import DsliteError, UsageError

ALIAS = "deepseek-chat"  # the name in the LangChain sample of the model's own README


def serve(
    *,
    host: Annotated[str, flag("--host", help="Address to listen on; not loopback: needs --api-key-env.")] = "127.0.0.1",
    port: Annotated[int, flag("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, flag("--api-key-env", metavar="NAME", help="Environment variable with the key that clients send.")
    ] = None,
    parallel: Annotated[int, flag("--parallel", min=1, max=256, help="Most answers computed together.")] = 8,
    queue: Annotated[int, flag("--queue", min=1, help="Most answers under way and waiting.")] = 256,
    timeout: Annotated[float, flag("--timeout", min=1, help="Most seconds for a request.")] = 3600,
    model: flags.Model = None,
    revision: flags.Revision = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "bfloat16",
    ctx_size: flags.CtxSize = None,
    threads: flags.Threads = None,
    offline: flags.Offline = False,
    vram: flags.Vram = None,
    ram: flags.Ram = None,
    expert_slots: flags.ExpertSlots = None,
    miss: flags.Miss = "auto",
) -> None:
    """Serve the OpenAI-compatible API on this machine."""
    ref = ensure_model(parse_model(model or "chat", revision), offline=offline)
    key = _key(api_key_env)
    if key is None and not _is_loopback(host):
        raise UsageError(
            f"--host {host} lets other machines ask", "name the variable that holds their key with --api-key-env"
        )
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise DsliteError("the server's packages are not installed", "pip install 'dslite[serve]'")

    from dslite.app.server.api import Api
    from dslite.app.server.limits import Limits
    from dslite.app.server.model_loading import open_served
    from dslite.app.server.server import bind
    from dslite.app.server.server import serve as run
    from dslite.runtime.open_engine import EngineOptions

    limits = Limits(parallel=parallel, queue=queue, seconds=timeout)
    listener = bind(host, port)
    engine_options = EngineOptions(
        device=device,
        dtype=dtype,
        ctx_size=ctx_size,
        threads=threads,
        offline=offline,
        **flags.placing(vram, ram, expert_slots, miss),
    )
    served = open_served(ref, engine_options, model_names(ref))
    api = Api(served, limits, key=key)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{listener.getsockname()[1]}/v1"
    caught = run(
        api, listener, limits, lambda: print(f"serving {served.names[0]} on {url}", file=sys.stderr, flush=True)
    )
    raise typer.Exit(128 + caught if caught else 0)


def model_names(ref: ModelRef) -> tuple[str, ...]:
    """What a served model answers to: its id, its short name and the alias. A folder's path is nobody's business."""
    own = ref.repo_id or (ref.folder.resolve().name if ref.folder else ref.name)
    short = [name for name, repo_id in SHORT_NAMES.items() if repo_id == ref.repo_id]
    return tuple(dict.fromkeys((own, *short, ALIAS)))


def _key(variable: str | None) -> str | None:
    """The key that clients must send. Raises UsageError."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"the environment has no {variable}, which should hold the key", f"export {variable}=…")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
