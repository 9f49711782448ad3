"""Text, a stream, and a chat from the model that ships with dslite."""

from dslite.runtime import Chat, SamplingParams, generate, open_engine, stream

engine = open_engine("demo")
greedy = SamplingParams(temperature=0, max_tokens=60)
print(generate(engine, "How do I", greedy).text)
print("".join(event.delta for event in stream(engine, "dslite is", greedy)))

chat = Chat(engine, system="Answer briefly.", params=greedy)
print(chat.send("How do I save a profile?").text)
print(chat.send("And how do I list them?").text, f"({len(chat.messages)} messages)")
