"""Check a model whose weights are here and write one report to attach to a bug: `make weights-check M=chat`.

For whoever has the real weights, on a CPU or a GPU: are the files those of the Hub, are the published token ids and
greedy continuations ours, does the model find a sentence in a long text, how fast is it. Ends with 0 where everything
passed, 1 where something failed, 3 where the model is not here.
"""

import argparse
import itertools
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslite.model.errors import DsliteError
from dslite.runtime.diagnostics import selftest
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.downloads.packed import find_packed, locate_weights
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import WEIGHTS, EngineOptions, Weights
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.events import Done
from dslite.runtime.generation import generate, stream
from dslite.runtime.units import size_text

_CODE = "4817"
_NEEDLE = f"The code of the north gate is {_CODE}."
_QUESTION = "The code of the north gate is"
_PLACES = (0.1, 0.5, 0.9)  # of the text, where the sentence stands
_ANSWER_TOKENS = 8
_SUBJECTS = "The ferryman|A surveyor|The baker of the lower town|Her uncle|The second clerk|An old printer".split("|")
_VERBS = "counted|mended|carried home|sold|described|forgot|painted|weighed".split("|")
_OBJECTS = "nine lanterns|a box of nails|the letters of that week|two maps|a sack of barley|the blue door".split("|")
_TIMES = "before the rain came|on the way to the mill|in the spring of that year|after the bells|at noon".split("|")


@dataclass(frozen=True)
class Outcome:
    """A line of the report. `passed` None: a figure, which cannot fail, or a check that was left out."""

    passed: bool | None
    text: str

    @property
    def line(self) -> str:
        return f"- {'' if self.passed is None else 'pass: ' if self.passed else 'FAIL: '}{self.text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what -m takes")
    parser.add_argument("--weights", choices=WEIGHTS, default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--needle", type=_lengths, default=(4096, 16_384, 32_768), help="tokens of the long texts")
    parser.add_argument("--no-verify", action="store_true", help="do not hash the files")
    parser.add_argument("--output", type=Path, default=Path("weights-report.md"), help="where the report goes")
    options = parser.parse_args()
    lines = [f"# {options.model}, {options.weights}", "", *_machine(), ""]
    failed = False
    try:
        for outcome in check(
            options.model, options.weights, options.device, options.needle, verify=not options.no_verify
        ):
            print(outcome.line, flush=True)
            failed |= outcome.passed is False
            lines.append(outcome.line)
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")  # kept, should the rest fail
    except ModelUnavailableError as error:
        print(f"weights-check: {error.message}\n  {error.remedy}", file=sys.stderr)
        return error.exit_code
    print(f"\n{'FAILED' if failed else 'all passed'}; the report is in {options.output.resolve()}")
    return int(failed)


def check(model: str, weights: Weights, device: str, lengths: Sequence[int], *, verify: bool) -> Iterator[Outcome]:
    """All checks of a model, in turn. Raises ModelUnavailableError where it is not here."""
    from dslite.runtime.engine_loader import open_engine

    ref = parse_model(model)
    folder = locate_weights(ref, weights)
    if verify:
        yield from _files(ref, folder, weights)
    started = time.perf_counter()
    engine = open_engine(ref, EngineOptions(device=device, weights=weights, ctx_size=_context(folder, lengths)))
    yield Outcome(None, f"opened in {time.perf_counter() - started:.1f} s on {engine.model.device}")
    for name, part in (
        ("published", published(engine, ref)),
        ("one way", one_way(engine)),
        ("needle", needles(engine, lengths)),
    ):
        try:
            yield from part
        except DsliteError as error:
            yield Outcome(False, f"{name}: {error.message}")
    memory = engine.memory()
    host, gpu = size_text(memory["peak_rss_bytes"]), size_text(memory["peak_vram_bytes"])
    yield Outcome(None, f"memory: {host} of the host, {gpu} of a GPU at most")


def _context(folder: Path, lengths: Sequence[int]) -> int:
    from dslite.runtime.downloads.layout import read_config

    most = read_config(folder).max_position_embeddings
    return min(most, max([2048, *lengths]) + 256)


def _files(ref: ModelRef, folder: Path, weights: Weights) -> Iterator[Outcome]:
    """Hashes of the files against the Hub's, or checksums of packed weights."""
    if find_packed(ref, weights) is not None:
        from dslite.runtime.weights.quantized_checkpoint import PackedCheckpoint

        try:
            PackedCheckpoint.open(folder).verify()
            yield Outcome(True, "files: every block of the packed weights has its checksum")
        except DsliteError as error:
            yield Outcome(False, f"files: {error.message}")
        return
    if ref.repo_id is None:
        yield Outcome(None, "files: a folder has no hashes to compare with")
        return
    from dslite.runtime.downloads.verify import CheckedFile, complaint, verify

    checked: list[CheckedFile] = []
    try:
        for _ in verify(ref, folder, checked):
            pass
    except DsliteError as error:
        yield Outcome(None, f"files: not compared with the Hub: {error.message}")
        return
    wrong = complaint(ref, checked)
    yield Outcome(
        wrong is None, f"files: {len(checked)} compared with the Hub" + (f"; {wrong.message}" if wrong else "")
    )


def published(engine: Engine, ref: ModelRef) -> Iterator[Outcome]:
    """Token ids and greedy continuations that others published of this model."""
    name = ref.repo_id or ""
    sets = [made for made in selftest.read_published()["sets"] if made["model"].split(" ")[0] == name]
    if not sets:
        yield Outcome(None, f"published continuations: none is known of {ref.name}")
    for result in selftest.run(engine, sets):
        said = (
            f"{result.agreeing} of {result.tokens} published tokens are the likeliest, {len(result.near_ties)} nearly"
        )
        if result.wrong:
            first = result.wrong[0]
            gap = f"{first.ours!r} is likelier than {first.published!r} by {first.gap:.2f} nats"
            said += f"; at {first.place} {gap}"
        ids = "" if result.same_prompt_ids else "; its token ids differ"
        yield Outcome(result.passed, f"{result.prompt[:40]!r}: {said}{ids}")


def one_way(engine: Engine) -> Iterator[Outcome]:
    """The same greedy answer alone, behind a cached prefix and with its prompt in pieces; near ties may part them."""
    params = SamplingParams(temperature=0, max_tokens=32)
    engine.prefix_cache.clear()
    alone = generate(engine, haystack(40, seed=5), params)
    cached = generate(engine, haystack(40, seed=5), params)
    chunk, engine.runner.prefill_chunk = engine.runner.prefill_chunk, 64
    engine.prefix_cache.clear()
    pieces = generate(engine, haystack(40, seed=5), params)
    engine.runner.prefill_chunk = chunk
    for name, other in (("behind a cached prefix", cached), ("with the prompt in pieces of 64 tokens", pieces)):
        ours, theirs = ([token.id for token in one.tokens] for one in (alone, other))
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))))
        said = f"one way: the first {same} of {len(ours)} greedy tokens {name} are the same"
        yield Outcome(ours[:1] == theirs[:1], said)


def needles(engine: Engine, lengths: Sequence[int]) -> Iterator[Outcome]:
    """Whether a sentence in a long text is found, and how fast the text is read."""
    for length in lengths:
        if length + _ANSWER_TOKENS >= engine.context:
            yield Outcome(None, f"needle at {length:,} tokens: the context holds {engine.context:,}")
            continue
        for place in _PLACES:
            yield needle(
                lambda text: _continue(engine, text), lambda text: len(engine.tokenizer.encode(text)), length, place
            )


def needle(
    complete: Callable[[str], tuple[str, float]], count: Callable[[str], int], length: int, place: float
) -> Outcome:
    """Hide the sentence at a place of a text of about so many tokens, and ask for its end.

    `complete` gives the continuation of a text and the tokens a second at which it was read.
    """
    text = hidden(count, length, place)
    answer, speed = complete(text)
    found = answer.strip().startswith(_CODE)
    said = "found" if found else f"not found: {answer.strip()[:40]!r}"
    return Outcome(found, f"needle at {place:.0%} of {count(text):,} tokens: {said}, read at {speed:,.0f} tok/s")


def hidden(count: Callable[[str], int], length: int, place: float) -> str:
    """A text of at most `length` tokens that has the needle at a place and ends in the question."""
    sentences = length // 8
    while True:
        lines = haystack(sentences, seed=length).split("\n")
        lines.insert(round(place * len(lines)), _NEEDLE)
        text = "\n".join([*lines, "", _QUESTION])
        tokens = count(text)
        if tokens <= length:
            return text
        sentences = min(sentences - 1, sentences * length // tokens)


def haystack(sentences: int, seed: int) -> str:
    """Sentences that say nothing of gates, the same for a seed."""
    draw = random.Random(seed)
    return "\n".join(" ".join(map(draw.choice, (_SUBJECTS, _VERBS, _OBJECTS, _TIMES))) + "." for _ in range(sentences))


def _continue(engine: Engine, text: str) -> tuple[str, float]:
    params = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS)
    done: Any = None
    for event in stream(engine, text, params):
        done = event
    assert isinstance(done, Done)
    read = done.prompt_tokens - done.cached_tokens
    return done.text, read / max(done.timing.prefill_s, 1e-9)


def _machine() -> Iterator[str]:
    import torch

    from dslite.runtime.system.processors import cpu_name

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    yield f"- {cpu_name()}, {platform.platform()}, GPU: {gpu}"
    yield f"- Python {platform.python_version()}, torch {torch.__version__}"


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main())
