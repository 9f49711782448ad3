"""What quantized weights are expected to lose, by what others measured of DeepSeek-V2-Lite."""

from dslite.model.quantized_layout import Weights

# Rise of the perplexity of wikitext-2 in contexts of 512 tokens. Of Q8_0 in ikawrakow/ik_llama.cpp#208, and of IQ4_NL
# with attention and shared experts in 5 to 8 bits in #239.
LOSS: dict[Weights, str] = {"bfloat16": "none", "int8": "about 0 %", "int4": "about 0.8 %"}
LOSS_SOURCE = "rise of perplexity on wikitext-2 that ik_llama.cpp #208 and #239 measured with like formats"
