//! Tiny random models of the Llama family.

use crate::gguf::{Gguf, GgufTensor, Meta};
use crate::rng::Rng;
use crate::vocab::{CHAT_TEMPLATE, TinyVocab};
use secateur_tensor::DType;
use secateur_tensor::blocks;
use std::path::{Path, PathBuf};

/// Shape of one layer. Zero heads: no attention. Zero width: no MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyLayer {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// MLP width.
    pub intermediate_size: usize,
}

/// Which kind of file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyFamily {
    /// `llama`, or `deci` when the layers differ.
    Llama,
    /// `qwen2`.
    Qwen2,
}

/// Whether the output head has its own weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The head is the token table.
    Tied,
    /// The head is `output.weight`.
    Separate,
}

/// Which linears have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// q, k and v, as Qwen2 has them.
    Qkv,
    /// Every linear of a layer.
    All,
}

/// A tiny model; change the fields of [`TinyModel::default`] at will.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Kind of file.
    pub family: TinyFamily,
    /// Residual width.
    pub hidden_size: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Layers.
    pub layers: Vec<TinyLayer>,
    /// Storage of the matrices. The token table is kept in Q8_0 when this is a 4-bit type and its rows allow it.
    pub dtype: DType,
    /// Output head.
    pub head: Head,
    /// Biases.
    pub biases: Biases,
    /// Trained context.
    pub context_length: u32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Divisors of the rotary frequencies, `[head_dim / 2]`.
    pub rope_factors: Option<Vec<f32>>,
    /// Factor of all logits: random models are sure of nothing unless it is large.
    pub logit_scale: f32,
    /// Seed of all weights.
    pub seed: u64,
}

impl Default for TinyModel {
    /// Four layers, 64 wide, four heads over two KV heads, MLP of 128, F32, tied.
    fn default() -> Self {
        Self {
            family: TinyFamily::Llama,
            hidden_size: 64,
            head_dim: 16,
            layers: vec![TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 128 }; 4],
            dtype: DType::F32,
            head: Head::Tied,
            biases: Biases::None,
            context_length: 256,
            rope_theta: 10_000.0,
            rope_factors: None,
            logit_scale: 1.0,
            seed: 1,
        }
    }
}

impl TinyModel {
    /// The default model with `n_layers` equal layers.
    #[must_use]
    pub fn with_layers(n_layers: usize) -> Self {
        let model = Self::default();
        Self { layers: vec![model.layers[0]; n_layers], ..model }
    }

    /// The default model in `dtype`; wide enough (256) for the K formats.
    #[must_use]
    pub fn with_dtype(dtype: DType) -> Self {
        let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 256 };
        Self { hidden_size: 256, head_dim: 64, layers: vec![layer; 2], dtype, ..Self::default() }
    }

    /// Number of tokens in the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        TinyVocab::default().tokens.len()
    }

    /// The name of the architecture that is written.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        let uniform = self.layers.windows(2).all(|pair| pair[0] == pair[1]);
        match self.family {
            TinyFamily::Qwen2 => "qwen2",
            TinyFamily::Llama if uniform => "llama",
            TinyFamily::Llama => "deci",
        }
    }

    /// The file, still open to changes.
    #[must_use]
    pub fn gguf(&self) -> Gguf {
        let mut gguf = Gguf::default();
        self.put_metadata(&mut gguf);
        let mut rng = Rng::new(self.seed);
        let hidden = self.hidden_size;
        let vocab = self.vocab_size();
        let table_dtype = match self.dtype {
            DType::Q4_0 | DType::Q4_1 => DType::Q8_0,
            other => other,
        };
        gguf.tensors.push(matrix(&mut rng, table_dtype, "token_embd.weight", vocab, hidden));
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            self.put_layer(&mut gguf, &mut rng, layer_idx, layer);
        }
        gguf.tensors.push(norm(&mut rng, "output_norm.weight", hidden, self.logit_scale));
        if self.head == Head::Separate {
            gguf.tensors.push(matrix(&mut rng, table_dtype, "output.weight", vocab, hidden));
        }
        if let Some(factors) = &self.rope_factors {
            gguf.tensors.push(vector("rope_freqs.weight", factors));
        }
        gguf
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.gguf().to_bytes()
    }

    /// Writes the file as `tiny.gguf` into `dir` and returns its path.
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn write_to(&self, dir: &Path) -> PathBuf {
        let path = dir.join("tiny.gguf");
        std::fs::write(&path, self.to_bytes()).expect("the test's folder can be written");
        path
    }

    fn put_metadata(&self, gguf: &mut Gguf) {
        let arch = self.architecture();
        gguf.push("general.architecture", arch);
        gguf.push("general.type", "model");
        gguf.push("general.name", "Tiny");
        let key = |name: &str| format!("{arch}.{name}");
        let size = |value: usize| Meta::U32(value as u32);
        let per_layer = |field: fn(&TinyLayer) -> usize| match arch {
            "deci" => Meta::U32s(self.layers.iter().map(|layer| field(layer) as u32).collect()),
            _ => size(self.layers.first().map_or(0, field)),
        };
        gguf.push(key("block_count"), size(self.layers.len()));
        gguf.push(key("context_length"), Meta::U32(self.context_length));
        gguf.push(key("embedding_length"), size(self.hidden_size));
        gguf.push(key("feed_forward_length"), per_layer(|layer| layer.intermediate_size));
        gguf.push(key("attention.head_count"), per_layer(|layer| layer.heads));
        gguf.push(key("attention.head_count_kv"), per_layer(|layer| layer.kv_heads));
        gguf.push(key("attention.layer_norm_rms_epsilon"), Meta::F32(1e-5));
        gguf.push(key("attention.key_length"), size(self.head_dim));
        gguf.push(key("attention.value_length"), size(self.head_dim));
        gguf.push(key("rope.freq_base"), Meta::F32(self.rope_theta));
        gguf.push(key("rope.dimension_count"), size(self.head_dim));
        gguf.push(key("vocab_size"), size(self.vocab_size()));
        TinyVocab::default().put(gguf);
        gguf.push("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
        gguf.push("tokenizer.chat_template", CHAT_TEMPLATE);
        gguf.push("general.quantization_version", Meta::U32(2));
    }

    fn put_layer(&self, gguf: &mut Gguf, rng: &mut Rng, layer_idx: usize, layer: &TinyLayer) {
        let hidden = self.hidden_size;
        let q_width = layer.heads * self.head_dim;
        let kv_width = layer.kv_heads * self.head_dim;
        let width = layer.intermediate_size;
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        let mut linear = |rng: &mut Rng, part: &str, rows: usize, cols: usize, has_bias: bool| {
            gguf.tensors.push(matrix(rng, self.dtype, &name(&format!("{part}.weight")), rows, cols));
            if has_bias {
                let bias: Vec<f32> = (0..rows).map(|_| 0.1 * rng.normal()).collect();
                gguf.tensors.push(vector(&name(&format!("{part}.bias")), &bias));
            }
        };
        let (qkv, all) = (self.biases != Biases::None, self.biases == Biases::All);
        if 0 < layer.heads {
            linear(rng, "attn_q", q_width, hidden, qkv);
            linear(rng, "attn_k", kv_width, hidden, qkv);
            linear(rng, "attn_v", kv_width, hidden, qkv);
            linear(rng, "attn_output", hidden, q_width, all);
        }
        if 0 < width {
            linear(rng, "ffn_gate", width, hidden, all);
            linear(rng, "ffn_up", width, hidden, all);
            linear(rng, "ffn_down", hidden, width, all);
        }
        if 0 < layer.heads {
            gguf.tensors.push(norm(rng, &name("attn_norm.weight"), hidden, 1.0));
        }
        if 0 < width {
            gguf.tensors.push(norm(rng, &name("ffn_norm.weight"), hidden, 1.0));
        }
    }
}

fn vector(name: &str, values: &[f32]) -> GgufTensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    GgufTensor { name: name.to_owned(), dims: vec![values.len() as u64], type_id: 0, offset: None, data }
}

fn norm(rng: &mut Rng, name: &str, len: usize, scale: f32) -> GgufTensor {
    let values: Vec<f32> = (0..len).map(|_| scale * (1.0 + 0.1 * rng.normal())).collect();
    vector(name, &values)
}

/// A random matrix whose values have the variance `1 / n_cols`.
fn matrix(rng: &mut Rng, dtype: DType, name: &str, n_rows: usize, n_cols: usize) -> GgufTensor {
    let row_bytes = dtype.row_bytes(n_cols).unwrap_or_else(|| panic!("{name}: {n_cols} columns in {dtype}"));
    let mut data = vec![0; n_rows * row_bytes];
    let scale = 1.0 / (n_cols as f32).sqrt();
    let values: Vec<f32> = (0..n_rows * n_cols).map(|_| scale * rng.normal()).collect();
    if blocks::quantize(dtype, &values, &mut data).is_err() {
        fill_with_random_blocks(rng, dtype, scale, &mut data);
    }
    let dims = vec![n_cols as u64, n_rows as u64];
    GgufTensor { name: name.to_owned(), dims, type_id: dtype.ggml_id(), offset: None, data }
}

/// For formats without a quantiser: random bytes under scales that give values of the size of `scale`.
fn fill_with_random_blocks(rng: &mut Rng, dtype: DType, scale: f32, data: &mut [u8]) {
    // Places of the halves in a block, and the largest value a block holds under a scale of one.
    let (halves, largest): (&[usize], f32) = match dtype {
        DType::Q5_0 => (&[0], 16.0),
        DType::Q5_1 => (&[0, 2], 31.0),
        DType::Q2_K => (&[80, 82], 45.0),
        DType::Q3_K => (&[108], 128.0),
        DType::Q4_K => (&[0, 2], 945.0),
        DType::Q5_K => (&[0, 2], 1953.0),
        DType::Q6_K => (&[208], 4096.0),
        other => panic!("{other} has a quantiser"),
    };
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        block.iter_mut().for_each(|byte| *byte = rng.bits() as u8);
        for (place, offset) in halves.iter().enumerate() {
            let sign = if place == 1 && dtype == DType::Q5_1 { -16.0 } else { 1.0 };
            let mut half = [0; 2];
            blocks::quantize(DType::F16, &[sign * 2.0 * scale / largest], &mut half).expect("a small half");
            block[*offset..offset + 2].copy_from_slice(&half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let model = TinyModel::default();
        assert_eq!(model.to_bytes(), model.to_bytes());
        assert_ne!(model.to_bytes(), TinyModel { seed: 2, ..model.clone() }.to_bytes());
    }

    #[test]
    fn every_dtype_gives_values_of_a_sane_size() {
        for dtype in DType::ALL {
            let mut gguf = TinyModel::with_dtype(dtype).gguf();
            let tensor = gguf.tensor("blk.1.ffn_up.weight");
            let mut values = vec![0.0; 256 * 256];
            blocks::dequantize(dtype, &tensor.data, &mut values);
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            let relative = square.sqrt() * 16.0;
            assert!((0.05..5.0).contains(&relative), "{dtype}: {relative}");
        }
    }
}
