//! A tiny model as a Hugging Face checkpoint: the same weights as its GGUF file, in the order, layout and files of
//! transformers. Shares no code with the readers; every part may be changed before it is written.

use crate::{Biases, Gguf, Head, TinyFamily, TinyModel, TinyVocab};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointTensor {
    /// Name as transformers has it.
    pub name: String,
    /// `F32`, `F16`, `BF16`, or anything.
    pub dtype: String,
    /// The slowest dimension first.
    pub shape: Vec<usize>,
    /// Data.
    pub data: Vec<u8>,
}

/// A checkpoint in the making.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// config.json
    pub config: Value,
    /// tokenizer.json
    pub tokenizer: Value,
    /// tokenizer_config.json
    pub tokenizer_config: Value,
    /// Weights in order.
    pub tensors: Vec<CheckpointTensor>,
}

impl TinyModel {
    /// The model as a checkpoint.
    /// # Panics
    /// When its dtype is no float type or its layers differ.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let mut gguf = self.gguf();
        let layer = self.layers[0];
        assert!(self.layers.iter().all(|other| *other == layer), "checkpoints have equal layers");
        let class = match self.family {
            TinyFamily::Llama => "LlamaForCausalLM",
            TinyFamily::Qwen2 => "Qwen2ForCausalLM",
        };
        let config = json!({
            "architectures": [class],
            "hidden_size": self.hidden_size,
            "intermediate_size": layer.intermediate_size,
            "num_hidden_layers": self.layers.len(),
            "num_attention_heads": layer.heads,
            "num_key_value_heads": layer.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size(),
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "rope_scaling": null,
            "tie_word_embeddings": self.head == Head::Tied,
            "attention_bias": self.biases == Biases::All,
            "mlp_bias": self.biases == Biases::All,
            "hidden_act": "silu",
        });
        let tensors = self.tensors(&mut gguf);
        let tokenizer_config = json!({
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>"},
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "chat_template": crate::CHAT_TEMPLATE,
        });
        Checkpoint { config, tokenizer: tokenizer_json(&TinyVocab::default()), tokenizer_config, tensors }
    }

    fn tensors(&self, gguf: &mut Gguf) -> Vec<CheckpointTensor> {
        let mut tensors = Vec::new();
        for tensor in &gguf.tensors {
            let dtype = match tensor.type_id {
                0 => "F32",
                1 => "F16",
                30 => "BF16",
                other => panic!("checkpoints have no type {other}"),
            };
            let name = name_of(&tensor.name);
            let shape: Vec<usize> = tensor.dims.iter().rev().map(|&dim| dim as usize).collect();
            let mut data = tensor.data.clone();
            let turns = name.contains("q_proj") || name.contains("k_proj");
            if self.family == TinyFamily::Llama && turns {
                data = halves(&data, data.len() / shape[0], self.head_dim);
            }
            tensors.push(CheckpointTensor { name, dtype: dtype.to_owned(), shape, data });
        }
        tensors
    }
}

impl Checkpoint {
    /// The tensor `name`.
    /// # Panics
    /// When there is none.
    pub fn tensor(&mut self, name: &str) -> &mut CheckpointTensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Writes config and tokenizer into `dir`.
    /// # Panics
    /// When they cannot be written.
    pub fn write_config(&self, dir: &Path) {
        for (name, value) in [
            ("config.json", &self.config),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ] {
            fs::write(dir.join(name), value.to_string()).expect("the test's folder can be written");
        }
    }

    /// Writes a folder with one safetensors file.
    /// # Panics
    /// When it cannot be written.
    pub fn write_safetensors(&self, dir: &Path) {
        self.write_config(dir);
        let bytes = safetensors(&self.tensors);
        fs::write(dir.join("model.safetensors"), bytes).expect("the test's folder can be written");
    }

    /// Writes a folder with `n_shards` safetensors files and their index.
    /// # Panics
    /// When it cannot be written.
    pub fn write_shards(&self, dir: &Path, n_shards: usize) {
        self.write_config(dir);
        let mut homes = serde_json::Map::new();
        for shard in 0..n_shards {
            let name = format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1);
            let part: Vec<_> = self.tensors.iter().skip(shard).step_by(n_shards).cloned().collect();
            homes.extend(part.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
            fs::write(dir.join(name), safetensors(&part)).expect("the test's folder can be written");
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": homes});
        fs::write(dir.join("model.safetensors.index.json"), index.to_string())
            .expect("the test's folder can be written");
    }
}

/// The bytes of a safetensors file with these tensors one after the other.
fn safetensors(tensors: &[CheckpointTensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.data);
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes(), &data].concat()
}

fn tokenizer_json(vocab: &TinyVocab) -> Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let is_special = |id: &usize| vocab.token_types[*id] == 3;
    let added: Vec<Value> = (0..vocab.tokens.len())
        .filter(is_special)
        .map(|id| {
            json!({"id": id, "content": vocab.tokens[id], "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let tokens: serde_json::Map<String, Value> =
        vocab.tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": tokens, "merges": vocab.merges},
    })
}

/// The name of a tensor in a checkpoint.
fn name_of(gguf: &str) -> String {
    const PARTS: [(&str, &str); 9] = [
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let parts: Vec<&str> = gguf.split('.').collect();
    match parts[..] {
        ["token_embd", _] => "model.embed_tokens.weight".to_owned(),
        ["output_norm", _] => "model.norm.weight".to_owned(),
        ["output", _] => "lm_head.weight".to_owned(),
        ["blk", number, part, ending] => {
            let (_, part) = PARTS.iter().find(|(known, _)| *known == part).expect("a known part");
            format!("model.layers.{number}.{part}.{ending}")
        }
        _ => panic!("no name for {gguf}"),
    }
}

/// Rows of each head from pairs `(2i, 2i + 1)` to halves `(i, i + head_dim / 2)`.
fn halves(data: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = data.chunks_exact(row_bytes).collect();
    let heads = rows.chunks_exact(head_dim);
    heads
        .flat_map(|head| (0..2).flat_map(|half| head.iter().skip(half).step_by(2)))
        .copied()
        .flatten()
        .copied()
        .collect()
}
