"""The fields of each route's body: OpenAI's, and those that vLLM, SGLang and llama.cpp add to them.

What clients send as "default" passes everywhere: null, and the values in which another server's own defaults are
written out. A field that would change the answer is honoured or refused, never ignored.
"""

from dslite.app.server.json_fields import (
    ANY_INTEGER,
    BOOLEAN,
    TEXT,
    Anything,
    Integer,
    IntegerList,
    NoOp,
    Number,
    Object,
    ObjectList,
    OneOf,
    RequestField,
    Table,
    TextList,
    harmless,
    honoured,
    refused,
)
from dslite.app.server.limits import Limits
from dslite.app.server.messages import MESSAGE, TEXT_ONLY
from dslite.app.server.structured_output import CONSTRAINT_FIELDS
from dslite.app.server.tools import tool_fields

MOST_LOGPROBS = 20
COMPLETION_TOKENS = 16  # the default of OpenAI's completions
_MOST_STOP_TOKENS = 64
_MODEL = "the model of the request; any name in /v1/models"

_STREAM_OPTIONS = Table.of(
    [honoured("include_usage", BOOLEAN, "a last chunk with the usage", default="false")],
    harmless("chunks are never padded", "include_obfuscation"),
    refused("the usage comes in the last chunk: use include_usage", "continuous_usage_stats", False),
)

_ALL_FALSE = NoOp(
    "an object whose values are false or null",
    lambda value: isinstance(value, dict) and all(item is None or item is False for item in value.values()),
)
_ALL_ZERO = NoOp(
    "an object whose values are 0",
    lambda value: isinstance(value, dict) and all(type(item) in (int, float) and item == 0 for item in value.values()),
)


def answer_fields(limits: Limits) -> list[RequestField]:
    """Fields that all routes with answers honour."""
    return [
        honoured("model", TEXT, _MODEL, no_op=("",), default="the model that is served"),
        honoured("max_tokens", Integer(-1), "most tokens of an answer; -1: what the context leaves"),
        honoured("n_predict", Integer(-1), "llama.cpp's name of max_tokens", stands_for="max_tokens"),
        honoured("temperature", Number(0, 2), "0 is greedy", default="the model's own, else 0.3"),
        honoured("top_p", Number(0, 1), "0 leaves the likeliest token alone", default="the model's own, else 0.95"),
        honoured("top_k", Integer(-1), "0 and -1 are off", default="0"),
        honoured("min_p", Number(0, 1), "0 is off", default="0"),
        honoured("repetition_penalty", Number(0.01, 10), "1 is off; over prompt and answer", default="1"),
        honoured(
            "repeat_penalty",
            Number(0.01, 10),
            "llama.cpp's name of repetition_penalty",
            stands_for="repetition_penalty",
        ),
        honoured("seed", ANY_INTEGER, "taken modulo 2^63; -1 draws a new one", no_op=(-1,), default="a new one"),
        honoured("n", Integer(1, limits.choices), "answers to each prompt, drawn apart", default="1"),
        honoured(
            "stop", TextList(limits.stops, limits.stop_length), "texts that end the answer, and are no part of it"
        ),
        honoured(
            "stop_token_ids",
            IntegerList(_MOST_STOP_TOKENS),
            "tokens that end the answer, as the model's own end tokens do",
        ),
        honoured("min_tokens", Integer(), "tokens before which no end token is drawn", default="0"),
        honoured("ignore_eos", BOOLEAN, "the model's own end tokens end nothing", default="false"),
        honoured("stream", BOOLEAN, "server-sent events, ended by `data: [DONE]`", default="false"),
        honoured("stream_options", Object(_STREAM_OPTIONS), "of a stream"),
        *CONSTRAINT_FIELDS,
    ]


CHANGES_NOTHING = [
    *harmless("nothing is stored, and there is one service", "store", "metadata", "service_tier", "user"),
    *harmless(
        "one prefix cache serves all requests, found by the prompt itself", "prompt_cache_key", "prompt_cache_retention"
    ),
    *harmless("the prefix cache is always on", "prompt_cache_options", "cache_prompt", "id_slot", "n_keep"),
    *harmless("nothing is moderated", "safety_identifier", "moderation"),
    *harmless("a hint for speed", "prediction", "priority"),
    *harmless("the request is not named in the answer", "request_id", "rid"),
    *harmless("without the sampler that it tunes it has no effect", "mirostat_tau", "mirostat_eta", "xtc_threshold"),
    *harmless("without dry_multiplier it has no effect", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *harmless("without dry_multiplier it has no effect", "dry_sequence_breakers"),
    *harmless("without dynatemp_range it has no effect", "dynatemp_exponent"),
    *harmless("special tokens are never part of the text", "spaces_between_special_tokens"),
    *harmless("the answer has no reasoning to separate", "include_reasoning", "separate_reasoning", "stream_reasoning"),
    *harmless("the answer has no reasoning to separate", "reasoning_format", "parse_tool_calls"),
    *harmless("one library enforces shapes, with bounded white space", "guided_decoding_backend"),
    *harmless("one library enforces shapes, with bounded white space", "guided_whitespace_pattern"),
]

REFUSED = [
    *refused("use repetition_penalty", "frequency_penalty presence_penalty", 0),
    *refused("tokens cannot be weighted one by one", "logit_bias", _ALL_ZERO),
    *refused("use response_format, or structured_outputs with a Lark grammar", "ebnf structural_tag format", ""),
    *refused("every sampler that is on has its own field", "samplers sampler_seq logits_processors", [], ""),
    *refused("the sampler has no such filter", "typical_p typical tfs_z", 1),
    *refused("the sampler has no such filter", "xtc_probability dry_multiplier dynatemp_range mirostat min_keep", 0),
    *refused("the sampler has no such filter", "top_n_sigma", -1, 0),
    *refused("the sampler has no such filter", "top_a eta_cutoff epsilon_cutoff penalty_alpha no_repeat_ngram_size", 0),
    *refused("the penalty counts the whole prompt and answer", "repeat_last_n", -1),
    *refused("answers are sampled, there is no beam search", "use_beam_search early_stopping", False),
    *refused("answers are sampled, there is no beam search", "length_penalty num_beams", 1),
    *refused("give stop", "bad_words", []),
    *refused("the vocabulary is not restricted", "allowed_token_ids"),
    *refused("a stop text is no part of the answer", "include_stop_str_in_output no_stop_trim", False),
    *refused("special tokens are never part of the text", "skip_special_tokens", True),
    *refused("a prompt is never cut in silence", "truncate_prompt_tokens truncation", "disabled"),
    *refused("use echo with logprobs on /v1/completions", "prompt_logprobs"),
    *refused("use logprobs", "n_probs", 0),
    *refused("use logprobs", "return_tokens_as_token_ids return_token_ids return_tokens", False),
    *refused("log-probabilities are those of the raw logits", "post_sampling_probs", False),
    *refused("the answer has no such part", "timings_per_token return_progress return_hidden_states", False),
    *refused("the answer has OpenAI's fields", "response_fields", []),
    *refused("one prefix cache serves all requests", "cache_salt"),
    *refused("adapters are not supported", "lora lora_path lora_request", []),
    *refused("the context is set with --ctx-size when the server starts", "num_ctx n_ctx max_model_len"),
    *refused("its keys are fields of the request itself", "options extra_body sampling_params", {}),
    *refused("start the server with --timeout", "t_max_predict_ms", 0, -1),
    *refused("the model stays loaded", "keep_alive"),
    *refused("the engine has no such interface", "kv_transfer_params vllm_xargs session_params", {}),
]


def chat_fields(limits: Limits) -> Table:
    """The body of /v1/chat/completions."""
    choice = OneOf(("none", "auto"), '"none" or "auto": use tools and tool_choice')
    return Table.of(
        [
            honoured(
                "messages",
                ObjectList(MESSAGE, "a list of at least one message"),
                "the conversation, with at least one message",
            )
        ],
        answer_fields(limits),
        [
            honoured("max_completion_tokens", Integer(-1), "OpenAI's newer name of max_tokens, which it overrules"),
            honoured("logprobs", BOOLEAN, "the log-probability of each token", default="false"),
            honoured(
                "top_logprobs", Integer(0, MOST_LOGPROBS), "the best tokens at each place; needs logprobs", default="0"
            ),
            honoured(
                "continue_final_message",
                BOOLEAN,
                "go on with the last message, which is the assistant's",
                default="false",
            ),
            honoured(
                "add_generation_prompt",
                BOOLEAN,
                "the template's opening of an answer behind the last message",
                default="true",
            ),
            honoured("functions", Anything(), 'the older name of tools; only with function_call "none"', no_op=([],)),
            honoured("function_call", choice, "the older name of tool_choice", default='"auto"'),
        ],
        tool_fields(chat=True),
        CHANGES_NOTHING,
        REFUSED,
        refused(TEXT_ONLY, "modalities", ["text"]),
        refused(TEXT_ONLY, "audio mm_processor_kwargs media_io_kwargs", {}),
        refused("the model does not reason before it answers", "reasoning_effort", "none", "minimal"),
        refused("the model does not reason before it answers", "think enable_thinking thinking_forced_open", False),
        refused("the model does not reason before it answers", "thinking", False, {"type": "disabled"}),
        refused("the model does not reason before it answers", "thinking_token_budget reasoning_budget", 0, -1),
        refused("ask for it in the prompt", "verbosity", "medium"),
        refused("the server searches nothing", "web_search_options documents", []),
        refused("the model's own template is used", "chat_template"),
        refused("the model's own template takes no arguments", "chat_template_kwargs", _ALL_FALSE),
        refused("the template writes the begin-of-sentence token", "add_special_tokens", False),
        refused("use /v1/completions", "echo", False),
        refused("what a message spells is text; use /v1/completions", "parse_special", False),
        refused("every answer that is computed is returned: use n", "best_of", 1),
    )


def completion_fields(limits: Limits) -> Table:
    """The body of /v1/completions."""
    return Table.of(
        [
            honoured("prompt", Anything(), "a text, token ids, or a list of either"),
        ],
        [
            item if item.name != "max_tokens" else honoured(item.name, item.kind, item.about, default="16")
            for item in answer_fields(limits)
        ],
        [
            honoured("logprobs", Integer(0, MOST_LOGPROBS), "the best tokens at each place", no_op=(False,)),
            honoured("echo", BOOLEAN, "the prompt in front of the answer, with its log-probabilities"),
            honoured("best_of", Integer(1, limits.choices), "must equal n: every answer that is computed is returned"),
            honoured(
                "add_special_tokens",
                BOOLEAN,
                "the begin-of-sentence token in front of a text; token ids are taken as they are",
                default="true",
            ),
            honoured(
                "parse_special",
                BOOLEAN,
                "spellings of added tokens in a prompt are those tokens, as fill-in-the-middle needs",
                default="false",
            ),
        ],
        CHANGES_NOTHING,
        REFUSED,
        refused("the model writes forward only", "suffix", ""),
        refused("use /v1/chat/completions", "messages tools functions", []),
        refused("use /v1/chat/completions", "tool_choice function_call", "none", "auto"),
        refused("use logprobs", "top_logprobs", 0),
        refused("use max_tokens", "max_completion_tokens"),
    )
