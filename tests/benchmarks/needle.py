"""A needle in a haystack: does a model find one sentence in a long text, wherever it stands?

    python tests/benchmarks/needle.py --endpoint http://127.0.0.1:8000/v1 --lengths 1024,2048,4096,8192,16384,32768

asks any OpenAI-compatible server, `dslite serve` above all, at every length (tokens of prompt, by the server's count)
and depth (share of the text before the needle), greedily. The paper shows the same test for DeepSeek-V2 up to 128k
(section 3.1.4, figure 4). Prints a table, or with --json one object a case.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass

import openai

NEEDLE = "The code word of the lighthouse keeper is {word}."
QUESTION = "What is the code word of the lighthouse keeper? Answer with the word alone."
WORDS = ("heron", "saffron", "granite", "walnut", "meteor")
# Plain sentences of this project; none speaks of code words.
HAY = (
    "The ferry left the harbour at seven, with a cargo of timber and wool.",
    "In spring the river rises, and the lower road is closed for two weeks.",
    "Her brother repaired clocks, and kept a list of every spring he replaced.",
    "The museum lends its smaller maps to schools, but never the large atlas.",
    "After the storm they counted the roofs that had lost their tiles.",
    "A good baker knows the weather by the feel of the dough.",
)


@dataclass(frozen=True)
class Case:
    """One question, and how it went. `tokens` is what the server counted."""

    length: int
    depth: float
    tokens: int
    found: bool
    answer: str


def haystack(sentences: int, depth: float, word: str) -> str:
    """That many sentences, with the needle behind the share `depth` of them."""
    hay = [HAY[number % len(HAY)] for number in range(sentences)]
    hay.insert(round(depth * sentences), NEEDLE.format(word=word))
    return " ".join(hay)


class Haystacks:
    """Asks one model of a server."""

    def __init__(self, client: openai.OpenAI, model: str) -> None:
        self._client = client
        self._model = model
        few, many = (self._count(sentences) for sentences in (20, 80))
        self._per_sentence = (many - few) / 60
        self._base = few - 20 * self._per_sentence

    def _count(self, sentences: int) -> int:
        answer = self._client.chat.completions.create(
            model=self._model, messages=_messages(sentences, 0.5, WORDS[0]), max_tokens=1, temperature=0
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    def ask(self, length: int, depth: float, word: str, answer_tokens: int = 16) -> Case:
        """One case; the prompt is as long as whole sentences allow within `length`, the answer included."""
        sentences = int((length - answer_tokens - self._base) / self._per_sentence)
        answer = self._client.chat.completions.create(
            model=self._model,
            messages=_messages(sentences, depth, word),
            max_tokens=answer_tokens,
            temperature=0,
        )
        text = answer.choices[0].message.content or ""
        assert answer.usage is not None
        return Case(length, depth, answer.usage.prompt_tokens, word in text.lower(), text)


def _messages(sentences: int, depth: float, word: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": f"{haystack(sentences, depth, word)}\n\n{QUESTION}"}]


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--endpoint-key-env", metavar="NAME", help="environment variable with the server's key")
    parser.add_argument("--model", default="deepseek-chat")
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768", help="tokens")
    parser.add_argument("--depths", default="0,0.25,0.5,0.75,1")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    key = os.environ[args.endpoint_key_env] if args.endpoint_key_env else "none"
    depths = [float(depth) for depth in args.depths.split(",")]
    with openai.OpenAI(base_url=args.endpoint, api_key=key, timeout=3600) as client:
        haystacks = Haystacks(client, args.model)
        if not args.json:
            print("tokens  " + "  ".join(f"{depth:>5.0%}" for depth in depths))
        for length in map(int, args.lengths.split(",")):
            cases = [haystacks.ask(length, depth, WORDS[n % len(WORDS)]) for n, depth in enumerate(depths)]
            if args.json:
                print("\n".join(json.dumps(asdict(case)) for case in cases), flush=True)
            else:
                print(f"{length:>6}  " + "  ".join("found" if case.found else "  -  " for case in cases), flush=True)


if __name__ == "__main__":
    sys.exit(main())
