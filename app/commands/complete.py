"""`dslite complete`: one answer on stdout, then exit."""

from pathlib import Path
from typing import Annotated

import typer

from dslite.app import options
from dslite.app.options import flag, read_text
from dslite.app.prompt import read_batch, read_prompt
from dslite.app.sampling import chosen
from dslite.runtime.errors import UsageError
from dslite.runtime.hub import parse_model


def complete(
    words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads stdin.")] = None,
    *,
    prompt: Annotated[str | None, flag("--prompt", "-p", help="The prompt.")] = None,
    file: Annotated[list[Path] | None, flag("--file", "-f", help="Put a file before the prompt (repeatable).")] = None,
    raw: Annotated[bool, flag("--raw", help="Complete the text itself, without the chat template.")] = False,
    no_bos: Annotated[bool, flag("--no-bos", help="With --raw: no begin-of-sentence token.")] = False,
    output: Annotated[str, flag("--output", "-o", help="text, json or jsonl.")] = "text",
    as_json: Annotated[bool, flag("--json", help="The same as -o json.")] = False,
    output_file: Annotated[Path | None, flag("--output-file", help="Write the answer into a file.")] = None,
    no_stream: Annotated[bool, flag("--no-stream", help="Print the answer at its end.")] = False,
    extract: Annotated[bool, flag("--extract", "-x", help="Print only the first fenced code block.")] = False,
    stats: Annotated[bool, flag("--stats", help="Speeds, to stderr.")] = False,
    logprobs: Annotated[int | None, flag("--logprobs", help="Log-probabilities and the K best; 0: own only.")] = None,
    echo: Annotated[bool, flag("--echo", help="The prompt's tokens first.")] = False,
    batch: Annotated[str | None, flag("--batch", help="JSON lines in, JSON lines out; - is stdin.")] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "bfloat16",
    ctx_size: options.CtxSize = None,
    threads: options.Threads = None,
    offline: options.Offline = False,
    system: options.System = None,
    system_file: options.SystemFile = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
) -> None:
    """Answer one prompt on stdout."""
    sampling = chosen(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    if logprobs is not None and not 0 <= logprobs <= 20:
        raise UsageError(f"--logprobs is {logprobs}; it must be from 0 to 20")
    if output not in ("text", "json", "jsonl"):
        raise UsageError(f"--output is {output!r}; it must be text, json or jsonl")
    if system is not None and system_file is not None:
        raise UsageError("the system message is given twice, with --system and --system-file", "give it once")
    if system_file is not None:
        system = read_text(system_file, "the system message's file")
    ref = parse_model(model or ("base" if raw else "chat"), revision)
    # Whatever can be wrong with the request is found before torch is imported: an error should not take seconds.
    lines = None if batch is None else read_batch(batch)
    text = "" if batch is not None else read_prompt(words or [], prompt, file or [], may_be_empty=raw and not no_bos)

    from dslite.app.completer import Completer, Style
    from dslite.app.completing import Output, complete_batch, complete_one
    from dslite.runtime.options import EngineOptions

    style = Style(sampling, raw=raw, bos=not no_bos, system=system, logprobs=logprobs, echo=echo)
    completer = Completer.open(
        ref, style, EngineOptions(device=device, dtype=dtype, ctx_size=ctx_size, threads=threads, offline=offline)
    )
    where = Output("json" if as_json else output, file=output_file, stream=not no_stream, extract=extract, stats=stats)
    code = complete_one(completer, text, where) if lines is None else complete_batch(completer, lines, where)
    raise typer.Exit(code)
