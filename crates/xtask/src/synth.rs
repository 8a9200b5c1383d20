//! `cargo xtask synth`: models of real shapes with random weights, written tensor by tensor, a block of rows at a time.
//!
//! They say nothing sensible, but they cost what real ones cost: time and memory of pruning, planning and serving can
//! be measured on shapes whose weights nobody has to download. The vocabulary is byte-level BPE with as many merged
//! pairs as the shape has tokens, so any text can be encoded. Memory: one block of rows.

use anyhow::{Context, Result, bail, ensure};
use secateur_tensor::DType;
use secateur_tensor::blocks::quantize;
use secateur_test_support::{CHAT_TEMPLATE, Gguf, GgufTensor, Meta, Rng, TinyVocab};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Values that are made at once.
const BLOCK_VALUES: usize = 1 << 18;

/// What a model looks like.
#[derive(Clone, Copy, Debug)]
struct Shape {
    family: &'static str,
    hidden_size: usize,
    n_layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
    context_len: u32,
    rope_theta: f32,
    is_tied: bool,
}

const LLAMA_3_2_1B: Shape = Shape {
    family: "llama",
    hidden_size: 2048,
    n_layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    intermediate_size: 8192,
    vocab_size: 128_256,
    context_len: 131_072,
    rope_theta: 500_000.0,
    is_tied: true,
};

const QWEN_2_5_0_5B: Shape = Shape {
    family: "qwen2",
    hidden_size: 896,
    n_layers: 24,
    heads: 14,
    kv_heads: 2,
    head_dim: 64,
    intermediate_size: 4864,
    vocab_size: 151_936,
    context_len: 32_768,
    rope_theta: 1_000_000.0,
    is_tied: true,
};

const LLAMA_2_7B: Shape = Shape {
    family: "llama",
    hidden_size: 4096,
    n_layers: 32,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    intermediate_size: 11_008,
    vocab_size: 32_000,
    context_len: 4096,
    rope_theta: 10_000.0,
    is_tied: false,
};

const CUSTOM: Shape = Shape {
    family: "llama",
    hidden_size: 256,
    n_layers: 4,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    intermediate_size: 768,
    vocab_size: 2048,
    context_len: 2048,
    rope_theta: 10_000.0,
    is_tied: true,
};

pub(crate) const USAGE: &str = "cargo xtask synth --shape llama-3.2-1b|qwen2.5-0.5b|llama-2-7b|custom -o FILE \
    [--dtype f32|f16|bf16|q8_0|q4_0|q4_1] [--layers N] [--seed N]; for custom also [--hidden N] [--heads N] \
    [--kv-heads N] [--head-dim N] [--intermediate N] [--vocab N]";

/// Runs the command with the arguments behind its name.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut arguments: Vec<String> = arguments.collect();
    ensure!(arguments.len().is_multiple_of(2), "usage: {USAGE}");
    let mut options: HashMap<String, String> = HashMap::new();
    for pair in arguments.chunks_exact_mut(2) {
        options.insert(std::mem::take(&mut pair[0]), std::mem::take(&mut pair[1]));
    }
    let out = PathBuf::from(options.remove("-o").context("-o FILE is missing")?);
    let dtype = options.remove("--dtype").unwrap_or_else(|| "q8_0".to_owned());
    let dtype = DType::from_name(&dtype).with_context(|| format!("dtype `{dtype}` is not known"))?;
    let seed = options.remove("--seed").map_or(Ok(1), |seed| seed.parse()).context("--seed")?;
    let shape = shape(&mut options)?;
    ensure!(options.is_empty(), "not known: {:?}; usage: {USAGE}", options.keys());
    let bytes = write(&shape, dtype, seed, &out)?;
    eprintln!("{}: {bytes} bytes, {shape:?}", out.display());
    Ok(())
}

fn shape(options: &mut HashMap<String, String>) -> Result<Shape> {
    let name = options.remove("--shape").context("--shape is missing")?;
    let mut shape = match name.as_str() {
        "llama-3.2-1b" => LLAMA_3_2_1B,
        "qwen2.5-0.5b" => QWEN_2_5_0_5B,
        "llama-2-7b" => LLAMA_2_7B,
        "custom" => CUSTOM,
        _ => bail!("shape `{name}` is not known; usage: {USAGE}"),
    };
    let mut set = |option: &str, field: &mut usize| -> Result<()> {
        if let Some(value) = options.remove(option) {
            *field = value.parse().with_context(|| option.to_owned())?;
        }
        Ok(())
    };
    set("--layers", &mut shape.n_layers)?;
    if name == "custom" {
        set("--hidden", &mut shape.hidden_size)?;
        set("--heads", &mut shape.heads)?;
        set("--kv-heads", &mut shape.kv_heads)?;
        set("--head-dim", &mut shape.head_dim)?;
        set("--intermediate", &mut shape.intermediate_size)?;
        set("--vocab", &mut shape.vocab_size)?;
    }
    Ok(shape)
}

/// How the values of a tensor are drawn.
#[derive(Clone, Copy)]
enum Values {
    /// Evenly around zero, with variance `1 / n_cols`.
    Matrix,
    /// Around one.
    Norm,
    /// Small.
    Bias,
}

struct Planned {
    name: String,
    n_rows: usize,
    n_cols: usize,
    dtype: DType,
    values: Values,
}

fn tensors(shape: &Shape, dtype: DType) -> Vec<Planned> {
    let (hidden, width) = (shape.hidden_size, shape.intermediate_size);
    let (q_width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let table_dtype = match dtype {
        DType::Q4_0 | DType::Q4_1 => DType::Q8_0,
        other => other,
    };
    let matrix =
        |name: String, n_rows, n_cols, dtype| Planned { name, n_rows, n_cols, dtype, values: Values::Matrix };
    let vector =
        |name: String, n_cols, values| Planned { name, n_rows: 1, n_cols, dtype: DType::F32, values };
    let mut planned = vec![matrix("token_embd.weight".to_owned(), shape.vocab_size, hidden, table_dtype)];
    for layer_idx in 0..shape.n_layers {
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        for (part, n_rows, n_cols) in [
            ("attn_q", q_width, hidden),
            ("attn_k", kv_width, hidden),
            ("attn_v", kv_width, hidden),
            ("attn_output", hidden, q_width),
            ("ffn_gate", width, hidden),
            ("ffn_up", width, hidden),
            ("ffn_down", hidden, width),
        ] {
            planned.push(matrix(name(&format!("{part}.weight")), n_rows, n_cols, dtype));
            if shape.family == "qwen2" && ["attn_q", "attn_k", "attn_v"].contains(&part) {
                planned.push(vector(name(&format!("{part}.bias")), n_rows, Values::Bias));
            }
        }
        planned.push(vector(name("attn_norm.weight"), hidden, Values::Norm));
        planned.push(vector(name("ffn_norm.weight"), hidden, Values::Norm));
    }
    planned.push(vector("output_norm.weight".to_owned(), hidden, Values::Norm));
    if !shape.is_tied {
        planned.push(matrix("output.weight".to_owned(), shape.vocab_size, hidden, table_dtype));
    }
    planned
}

fn row_bytes(planned: &Planned) -> Result<usize> {
    let bytes = planned.dtype.row_bytes(planned.n_cols);
    bytes.with_context(|| format!("{}: {} columns in {}", planned.name, planned.n_cols, planned.dtype))
}

fn write(shape: &Shape, dtype: DType, seed: u64, out: &Path) -> Result<u64> {
    let planned = tensors(shape, dtype);
    let mut gguf = Gguf::default();
    put_metadata(&mut gguf, shape)?;
    let mut offset = 0u64;
    for tensor in &planned {
        let dims = match tensor.values {
            Values::Matrix => vec![tensor.n_cols as u64, tensor.n_rows as u64],
            Values::Norm | Values::Bias => vec![tensor.n_cols as u64],
        };
        gguf.tensors.push(GgufTensor {
            name: tensor.name.clone(),
            dims,
            type_id: tensor.dtype.ggml_id(),
            offset: Some(offset),
            data: Vec::new(),
        });
        offset += (tensor.n_rows * row_bytes(tensor)?).next_multiple_of(gguf.alignment) as u64;
    }
    let mut header = gguf.header_bytes();
    header.resize(header.len().next_multiple_of(gguf.alignment), 0);
    let mut file = BufWriter::new(File::create(out).with_context(|| out.display().to_string())?);
    file.write_all(&header)?;
    let mut rng = Rng::new(seed);
    for tensor in &planned {
        write_tensor(&mut file, tensor, gguf.alignment, &mut rng)?;
    }
    file.flush()?;
    Ok(header.len() as u64 + offset)
}

fn write_tensor(file: &mut impl Write, tensor: &Planned, alignment: usize, rng: &mut Rng) -> Result<()> {
    let row_bytes = row_bytes(tensor)?;
    let rows_at_once = (BLOCK_VALUES / tensor.n_cols).clamp(1, tensor.n_rows);
    // A uniform number in -1..1 has the variance 1/3.
    let scale = (3.0 / tensor.n_cols as f32).sqrt();
    for first in (0..tensor.n_rows).step_by(rows_at_once) {
        let n_rows = rows_at_once.min(tensor.n_rows - first);
        let mut value = || 2.0 * rng.uniform() - 1.0;
        let values: Vec<f32> = (0..n_rows * tensor.n_cols)
            .map(|_| match tensor.values {
                Values::Matrix => scale * value(),
                Values::Norm => 1.0 + 0.1 * value(),
                Values::Bias => 0.1 * value(),
            })
            .collect();
        let mut bytes = vec![0; n_rows * row_bytes];
        quantize(tensor.dtype, &values, &mut bytes)
            .map_err(|error| anyhow::anyhow!("{}: {error}", tensor.name))?;
        file.write_all(&bytes)?;
    }
    let len = tensor.n_rows * row_bytes;
    file.write_all(&vec![0; len.next_multiple_of(alignment) - len])?;
    Ok(())
}

fn put_metadata(gguf: &mut Gguf, shape: &Shape) -> Result<()> {
    let size = |value: usize| Meta::U32(value as u32);
    gguf.push("general.architecture", shape.family);
    gguf.push("general.type", "model");
    gguf.push("general.name", "Synthetic");
    for (name, value) in [
        ("block_count", size(shape.n_layers)),
        ("context_length", Meta::U32(shape.context_len)),
        ("embedding_length", size(shape.hidden_size)),
        ("feed_forward_length", size(shape.intermediate_size)),
        ("attention.head_count", size(shape.heads)),
        ("attention.head_count_kv", size(shape.kv_heads)),
        ("attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("attention.key_length", size(shape.head_dim)),
        ("attention.value_length", size(shape.head_dim)),
        ("rope.freq_base", Meta::F32(shape.rope_theta)),
        ("rope.dimension_count", size(shape.head_dim)),
        ("vocab_size", size(shape.vocab_size)),
    ] {
        gguf.push(format!("{}.{name}", shape.family), value);
    }
    let vocab = vocabulary(shape.vocab_size)?;
    vocab.put(gguf);
    gguf.push("tokenizer.chat_template", CHAT_TEMPLATE);
    gguf.push("general.quantization_version", Meta::U32(2));
    Ok(())
}

/// The tiny vocabulary, and after it pairs of letters and then triples until there are `n_tokens`.
fn vocabulary(n_tokens: usize) -> Result<TinyVocab> {
    let mut vocab = TinyVocab::default();
    ensure!(vocab.tokens.len() <= n_tokens, "a vocabulary has at least {} tokens", vocab.tokens.len());
    let letters: Vec<String> = ('!'..='~').map(String::from).collect();
    let mut known: std::collections::HashSet<String> = vocab.tokens.iter().cloned().collect();
    let mut heads = letters.clone();
    while vocab.tokens.len() < n_tokens {
        let mut longer = Vec::new();
        'heads: for head in &heads {
            for letter in &letters {
                let token = format!("{head}{letter}");
                longer.push(token.clone());
                if known.insert(token.clone()) {
                    vocab.merges.push(format!("{head} {letter}"));
                    vocab.tokens.push(token);
                    vocab.token_types.push(1);
                }
                if n_tokens <= vocab.tokens.len() {
                    break 'heads;
                }
            }
        }
        heads = longer;
    }
    Ok(vocab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_have_the_size_asked_for_and_every_merge_leads_to_a_token() {
        for n_tokens in [288, 5000, 32_000] {
            let vocab = vocabulary(n_tokens).unwrap();
            let tokens: std::collections::HashSet<&str> = vocab.tokens.iter().map(String::as_str).collect();
            assert_eq!((vocab.tokens.len(), tokens.len()), (n_tokens, n_tokens));
            assert_eq!(vocab.token_types.len(), n_tokens);
            for merge in &vocab.merges {
                let (left, right) = merge.split_once(' ').unwrap();
                assert!([left, right, &format!("{left}{right}")].iter().all(|part| tokens.contains(part)));
            }
        }
        assert!(vocabulary(10).is_err());
    }

    #[test]
    fn the_file_is_as_long_as_its_header_says_and_the_seed_decides() {
        let dir = std::env::temp_dir().join(format!("secateur-synth-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let shape = Shape { hidden_size: 64, head_dim: 16, vocab_size: 300, n_layers: 2, ..CUSTOM };
        let mut contents = Vec::new();
        for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
            let path = dir.join(name);
            let bytes = write(&shape, DType::Q4_0, seed, &path).unwrap();
            let content = std::fs::read(&path).unwrap();
            assert_eq!(content.len() as u64, bytes);
            contents.push(content);
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(contents[0], contents[1]);
        assert_ne!(contents[0], contents[2]);
        assert!(shape_of_name("nonsense").is_err());
    }

    fn shape_of_name(name: &str) -> Result<Shape> {
        shape(&mut HashMap::from([("--shape".to_owned(), name.to_owned())]))
    }
}
