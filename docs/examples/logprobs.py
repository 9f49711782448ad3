"""How likely is a text? The log-probability of each of its tokens, and what the model would rather have said."""

from dslite.runtime import SamplingParams, generate, open_engine

engine = open_engine("demo")
scored = generate(engine, "dslite is a program", SamplingParams(max_tokens=0), logprobs=2, echo=True)
for token in scored.tokens:
    best = ", ".join(f"{candidate.text!r} {candidate.logprob:.2f}" for candidate in token.top or ())
    print(f"{token.text!r:12}", "first" if token.logprob is None else f"{token.logprob:7.2f}   best: {best}")
print(f"total {sum(token.logprob or 0.0 for token in scored.tokens):.2f}")
