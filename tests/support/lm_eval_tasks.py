"""lm-eval twice over one task of ten lines: against a server, and against the engine in this process.

    PYTHONPATH=tests python -m support.lm_eval_tasks URL FOLDER

Prints one JSON object: task → its scores and answers, by the server and by the engine. It runs in a process of its own:
lm-eval emits warnings that the suite would count as errors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.events import Done, Token
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message

# How the demo model begins many of its answers; never the last two.
QUESTIONS = {
    "How do I save a profile?": "Run",
    "How do I list the models?": "Run",
    "How do I stop an answer?": "Press",
    "Where are conversations saved?": "Run",
    "What is the default temperature?": "Give",
    "How do I quit?": "Type",
    "What does --raw do?": "Use",
    "Which key copies an answer?": "Press",
    "How do I see the plan?": "In vain",
    "Is there a line mode?": "Yes",
}
CHOICES = ["Run", "Press", "Give", "Type"]
_COMMON = {"dataset_path": "json", "test_split": "test"}
_AS_TEXT = "User: {{question}}\n\nAssistant:"


class InProcess(TemplateLM):
    """The engine as a model of the harness."""

    def __init__(self, engine: Engine, *, chat: bool) -> None:
        super().__init__()
        self._engine, self._chat = engine, chat

    @property
    def tokenizer_name(self) -> str:
        return "engine"

    @property
    def eot_token_id(self) -> int:
        return min(self._engine.eos_token_ids)

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return [self._engine.model.config.bos_token_id, *self._engine.tokenizer.encode(string)]

    def apply_chat_template(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(history)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        request = Request(context + continuation, SamplingParams(max_tokens=0), logprobs=1, echo=True)
        tokens = [event for event in self._engine.generate(request) if isinstance(event, Token)][len(context) :]
        greedy = all(token.top and token.top[0].logprob == token.logprob for token in tokens)
        return sum(token.logprob or 0.0 for token in tokens), greedy

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, text: str, settings: dict[str, Any]) -> str:
        params = SamplingParams(temperature=0, max_tokens=settings["max_gen_toks"], stop=tuple(settings["until"]))
        if self._chat:
            messages = [Message.from_dict(message) for message in json.loads(text)]
            ids = ChatTemplate(self._engine.tokenizer).encode(messages)
        else:
            ids = self.tok_encode(text)
        (done,) = [event for event in self._engine.generate(Request(ids, params)) if isinstance(event, Done)]
        return done.text.removeprefix(" ") if self._chat else done.text


def write_tasks(folder: Path) -> None:
    """A choice to score, a text and a chat to go on with, over the same ten lines."""
    lines = [
        {
            "question": question,
            "choices": CHOICES,
            "label": CHOICES.index(answer) if answer in CHOICES else 0,
            "answer": answer,
        }
        for number, (question, answer) in enumerate(QUESTIONS.items())
    ]
    data = folder / "ten.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    choice = {
        "task": "ten_choices",
        "doc_to_text": _AS_TEXT,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    answer = {
        "task": "ten_answers",
        "doc_to_text": "{{question}}",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", " `", " **"], "max_gen_toks": 12, "do_sample": False, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    }
    text = answer | {"task": "ten_texts", "doc_to_text": _AS_TEXT, "doc_to_target": " {{answer}}"}
    for task in (choice, answer, text):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(_COMMON | files | task), encoding="utf-8")


def write_tokenizer(model: Path, folder: Path) -> Path:
    """The model's tokenizer for the harness, beginning every text with the begin-of-sentence token as DeepSeek's does.

    transformers 5 no longer does that by the tokenizer_config.json alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    bos = tokenizer.bos_token
    assert tokenizer._tokenizer is not None
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def evaluate(model: Any, folder: Path, tasks: list[str], *, chat: bool = False, **settings: Any) -> dict[str, Any]:
    """Scores and answers of some tasks."""
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
        **settings,
    )
    return {
        task: {
            "scores": {name: value for name, value in found["results"][task].items() if "stderr" not in name},
            "answers": [sample["filtered_resps"] for sample in found["samples"][task]],
        }
        for task in tasks
    }


def main(url: str, folder: Path) -> None:
    model = locate(parse_model("demo"))
    write_tasks(folder)
    tokenizer = write_tokenizer(model, folder)
    engine = open_engine(model, EngineOptions(device="cpu", dtype="float32"))
    text = {"base_url": f"{url}/completions", "tokenizer": str(tokenizer), "add_bos_token": True, "batch_size": 4}
    chat = {"base_url": f"{url}/chat/completions", "num_concurrent": 4}
    common = {"model": "demo", "tokenizer_backend": "huggingface", "max_retries": 1}
    both, one = ["ten_choices", "ten_texts"], ["ten_answers"]
    shown = {
        "completions": evaluate("local-completions", folder, both, model_args=common | text),
        "chat": evaluate(
            "local-chat-completions", folder, one, chat=True, model_args=common | chat | {"tokenizer_backend": None}
        ),
        "completions in process": evaluate(InProcess(engine, chat=False), folder, both),
        "chat in process": evaluate(InProcess(engine, chat=True), folder, one, chat=True),
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
