"""Several prompts, decoded together: the weights that a token needs are read once for all of them."""

from dslite.runtime import Completion, EngineOptions, SamplingParams, generate_batch, open_engine

engine = open_engine("demo", EngineOptions(ctx_size=1024, dtype="float32"))
prompts = ["How do I", "A profile is", "Use `dslite"]
for prompt, answer in zip(prompts, generate_batch(engine, prompts, SamplingParams(max_tokens=16, seed=1)), strict=True):
    text = answer.text if isinstance(answer, Completion) else f"error: {answer.message}"
    print(f"{prompt!r} → {text!r}")
