"""A tiny Llama as a GGUF file, as llama.cpp's converter writes it, and the same as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from support.tokenizer import small_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + '\\n' + m.content + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """`small_tokenizer` with a chat template whose turns end with `</s>`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_tiny_gguf(file: Path, architecture: str = "llama") -> LlamaForCausalLM:
    """Write a random Llama with 8-bit blocks to `file`; returns it, dequantised, in float32."""
    tokenizer = chat_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=128, initializer_range=0.3, rms_norm_eps=1e-5,
                bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
            )
        )  # fmt: skip
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        _add_tensor(writer, name, weight, next((heads[key] for key in heads if key in name), None))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[one in special] for one in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, weight: torch.nn.Parameter, num_heads: int | None
) -> None:
    """Round `weight` in place to what its blocks hold, and write it."""
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        stem = f"blk.{number}.{_NAMES[part]}"
    else:
        stem = {"embed_tokens": "token_embd", "norm": "output_norm"}[stem]
    values = weight.detach().numpy()
    if weight.dim() == 1:
        writer.add_tensor(f"{stem}.{kind}", values)
        return
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    rounded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    weight.data = torch.from_numpy(rounded.copy())
    if num_heads:  # llama.cpp rotates neighbouring pairs of a head, transformers its halves
        blocks = blocks.reshape(num_heads, 2, -1, blocks.shape[1]).swapaxes(1, 2)
        blocks = blocks.reshape(values.shape[0], -1)
    writer.add_tensor(f"{stem}.{kind}", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
