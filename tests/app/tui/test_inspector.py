"""F2 over the demo model, all of whose experts are in memory."""

from pathlib import Path
from typing import Any

from support.chat import Chat, drive, open_chat

from dslite.app.chat.model_loading import LocalModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.runtime.engine_options import EngineOptions


def demo() -> dict[str, Any]:
    options = EngineOptions(device="cpu")
    return {
        "loader": LocalModelLoader(options),
        "settings": ChatSettings("demo", chosen={"temperature": 0.0, "max_tokens": 20}),
    }


async def ask(chat: Chat, text: str) -> int:
    """Ask; return how many expert layers the tokens ran through.

    Of a prompt the last layer sees the last token alone.
    """
    count = len(chat.contents)
    await chat.say(text)
    await chat.until(lambda: len(chat.contents) == count + 2 and chat.controller.reply is None)
    info = chat.controller.tree.leaf.info
    config = chat.app.worker.loaded.backend.engine.model.config
    layers = config.num_hidden_layers - config.first_k_dense_replace
    read, made = info["prompt_tokens"] - info["cached_tokens"], info["completion_tokens"]
    return int(read * (layers - 1) + 1 + (made - 1) * layers)


def times(chat: Chat) -> int:
    return sum(map(sum, chat.controller.status.stats.uses))


@drive
async def test_experts_are_counted_for_each_conversation_though_all_are_in_memory(home: Path) -> None:
    async with open_chat(home, size=(130, 50), **demo()) as chat:
        await chat.ready()
        await chat.press("f2")
        await chat.until("0 of")
        config = chat.app.worker.loaded.backend.engine.model.config
        a_token = config.num_experts_per_tok
        first = await ask(chat, "How do I save a profile?")
        await chat.until(lambda: times(chat) == first * a_token)
        await chat.until(f"experts used, {first * a_token:,} times")
        assert any(shade in chat.text for shade in "░▒▓█")
        second = await ask(chat, "And how do I stop?")
        await chat.until(lambda: times(chat) == (first + second) * a_token)
        await chat.press("ctrl+n")
        await chat.until(lambda: times(chat) == 0)
        await chat.until(" experts used, 0 times")
        third = await ask(chat, "How do I save a profile?")
        await chat.until(lambda: times(chat) == third * a_token)
