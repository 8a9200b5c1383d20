"""Writes a GGUF model of the architecture `llama` as a checkpoint of another form, with the packages whose files
people have: `gguf` reads it, `safetensors` and `onnx` write it. Shares no code with the program under test.

    checkpoint.py MODEL.gguf OUT hf|hf-sharded|onnx|onnx-genai [f32|f16]

`onnx` is laid out as optimum exports (folded constants `onnx::MatMul_N`, named by their nodes), `onnx-genai` as
onnxruntime-genai exports (packed q, k and v; names that end in `.MatMul.weight`). The graphs hold the nodes that read
weights, which is what tells them apart; they are not meant to be run. Byte-level vocabularies of the kinds `smollm` and
`gpt-2` are written as tokenizer.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def value(reader, key, default=None):
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def halves(matrix, n_heads):
    """Rows of each head from rotary pairs to rotary halves: what llama.cpp's converter undoes."""
    rows = matrix.shape[0] // n_heads
    return matrix.reshape(n_heads, rows // 2, 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def tensors(reader, dtype):
    heads = value(reader, "llama.attention.head_count")
    kv_heads = value(reader, "llama.attention.head_count_kv")
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}"
        else:
            name = f"{GLOBAL[parts[0]]}.{parts[1]}"
        if "q_proj" in name:
            data = halves(data, heads)
        if "k_proj" in name:
            data = halves(data, kv_heads)
        # Norms of one-dimensional shape stay exact.
        yield name, np.ascontiguousarray(data, dtype if data.ndim == 2 else np.float32)


def write_config(reader, out):
    heads = value(reader, "llama.attention.head_count")
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": value(reader, "llama.embedding_length"),
        "intermediate_size": value(reader, "llama.feed_forward_length"),
        "num_hidden_layers": value(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value(reader, "llama.attention.head_count_kv"),
        "vocab_size": len(value(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": value(reader, "llama.context_length"),
        "rms_norm_eps": value(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value(reader, "llama.rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))


def write_tokenizer(reader, out):
    tokens = value(reader, "tokenizer.ggml.tokens")
    types = value(reader, "tokenizer.ggml.token_type")
    special = [(idx, text) for idx, text in enumerate(tokens) if types[idx] == 3]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    pre = {
        "smollm": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "gpt-2": byte_level,
    }[value(reader, "tokenizer.ggml.pre")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": idx, "content": text, **flags} for idx, text in special],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: idx for idx, text in enumerate(tokens)},
            "merges": [rule.split(" ") for rule in value(reader, "tokenizer.ggml.merges")],
        },
    }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    named = {}
    for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
        idx = value(reader, f"tokenizer.ggml.{key}_token_id")
        if idx is not None:
            named[f"{name}_token"] = tokens[idx]
    named["chat_template"] = value(reader, "tokenizer.chat_template")
    (out / "tokenizer_config.json").write_text(json.dumps(named))


def write_hf(reader, out, dtype, n_shards):
    from safetensors.numpy import save_file

    named = list(tensors(reader, dtype))
    if n_shards == 1:
        save_file(dict(named), out / "model.safetensors", metadata={"format": "pt"})
        return
    homes, total = {}, 0
    for shard in range(n_shards):
        name = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(named[shard::n_shards])
        save_file(part, out / name, metadata={"format": "pt"})
        homes |= dict.fromkeys(part, name)
        total += sum(data.nbytes for data in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


class Graph:
    """Collects constants and the nodes that read them."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def node(self, op, path, constant, data, first=False):
        from onnx import helper, numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(data), constant))
        inputs = [constant, f"{path}_in"] if first else [f"{path}_in", constant]
        self.nodes.append(helper.make_node(op, inputs, [f"{path}_out"], name=path))

    def save(self, path, opset, external):
        import onnx
        from onnx import TensorProto, helper

        shape = ["batch", "sequence"]
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, "vocabulary"])
        graph = helper.make_graph(self.nodes, "main_graph", [ids], [logits], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}_data")


def write_onnx(reader, out, dtype, genai):
    graph, packed = Graph(), {}
    n_layers = value(reader, "llama.block_count")
    for number, (name, data) in enumerate(tensors(reader, dtype)):
        module = name.rsplit(".", 1)[0]
        node = "/" + module.replace(".", "/").replace("/layers/", "/layers.")
        if name == "model.embed_tokens.weight":
            graph.node("Gather", f"{node}/Gather", name, data, first=True)
        elif data.ndim == 1 and not genai:
            graph.node("Mul", f"{node}/Mul_1", name, data, first=True)
        elif data.ndim == 1:
            last = f"model.layers.{n_layers}.final_norm_layernorm"
            module = last if module == "model.norm" else module
            path = "/" + module.replace(".", "/").replace("/layers/", "/layers.")
            graph.node("SimplifiedLayerNormalization", f"{path}/LayerNorm", f"{module}.weight", data)
        elif not genai:
            graph.node("MatMul", f"{node}/MatMul", f"onnx::MatMul_{1000 + number}", data.T)
        else:
            module, node = module.replace("self_attn", "attn"), node.replace("self_attn", "attn")
            if module[-6:] in ("q_proj", "k_proj", "v_proj"):
                layer = packed.setdefault(module[:-6], {})
                layer[module[-6:]] = data
                if len(layer) < 3:
                    continue
                data = np.concatenate([layer[part] for part in ("q_proj", "k_proj", "v_proj")])
                module, node = module[:-6] + "qkv_proj", node[:-6] + "qkv_proj"
            graph.node("MatMul", f"{node}/MatMul", f"{module}.MatMul.weight", data.T)
    graph.save(out / "model.onnx", 21 if genai else 17, external=genai)


def main():
    source, out, form = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    dtype = {"f32": np.float32, "f16": np.float16}[sys.argv[4] if 4 < len(sys.argv) else "f16"]
    reader = GGUFReader(source)
    if value(reader, "general.architecture") != "llama":
        sys.exit("only the architecture llama is written")
    out.mkdir(parents=True, exist_ok=True)
    write_config(reader, out)
    write_tokenizer(reader, out)
    if form.startswith("hf"):
        write_hf(reader, out, dtype, 1 if form == "hf" else 3)
    else:
        write_onnx(reader, out, dtype, genai=form == "onnx-genai")


if __name__ == "__main__":
    main()
