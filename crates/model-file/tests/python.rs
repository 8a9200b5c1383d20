//! What is written is read the same by the Python package `gguf`: keys, types, shapes, every value.
//!
//! Needs a Python with `gguf`: `SECATEUR_PYTHON`, or the virtual environment in the user's cache.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use secateur_model::{LayerConfig, WeightSource};
use secateur_model_file::{ModelFile, WriteOptions, write_gguf};
use secateur_tensor::{DType, blocks};
use secateur_test_support::{Biases, Head, TinyModel};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::MemoryModel;

fn python() -> Option<PathBuf> {
    let in_cache = || {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/secateur/venv/bin/python"))
    };
    let path = std::env::var_os("SECATEUR_PYTHON").map(PathBuf::from).or_else(in_cache)?;
    let has_gguf =
        Command::new(&path).args(["-c", "import gguf"]).output().is_ok_and(|out| out.status.success());
    if !has_gguf {
        eprintln!("skipped: no Python with the package gguf; SECATEUR_PYTHON names one");
    }
    has_gguf.then_some(path)
}

fn read_in_python(python: &Path, file: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_with_gguf.py");
    let out = Command::new(python).arg(script).arg(file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// The tensors of the file as we read them, in the form of the script.
fn our_tensors(path: &Path) -> Value {
    let model = ModelFile::open(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let tensors = model.tensors().map(|tensor| {
        let mut values = vec![0.0; tensor.n_values() as usize];
        blocks::dequantize(tensor.dtype(), &bytes[tensor.range()], &mut values);
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        json!([tensor.name(), tensor.dtype().name(), tensor.shape(), crc32(&raw)])
    });
    Value::Array(tensors.collect())
}

#[test]
fn python_reads_what_we_write() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel { head: Head::Separate, biases: Biases::All, ..TinyModel::with_layers(4) };
    let base = ModelFile::open(&tiny.write_to(dir.path())).unwrap();
    let shape = |num_attention_heads, num_key_value_heads, intermediate_size| LayerConfig {
        num_attention_heads,
        num_key_value_heads,
        intermediate_size,
    };
    let mut uneven = MemoryModel::copy_of(&base);
    uneven.cut(1, shape(2, 1, 96));
    uneven.cut(2, shape(4, 2, 0));
    uneven.cut(3, shape(0, 0, 64));
    let sources: [(&dyn WeightSource, &str); 2] = [(&base, "llama"), (&uneven, "deci")];
    let dtypes =
        [None, Some(DType::F16), Some(DType::BF16), Some(DType::Q8_0), Some(DType::Q4_0), Some(DType::Q4_1)];
    for (source, arch) in sources {
        for dtype in dtypes {
            let path = dir.path().join("out.gguf");
            let options = WriteOptions { dtype, ..WriteOptions::default() };
            write_gguf(&path, base.metadata(), source, &options).unwrap();
            let read = read_in_python(&python, &path);
            assert_eq!(read["tensors"], our_tensors(&path), "{arch} {dtype:?}");
            let keys = &read["keys"];
            let key = |name: &str| &keys[format!("{arch}.{name}")];
            assert_eq!(keys["general.architecture"], arch);
            assert_eq!(key("block_count"), 4);
            assert_eq!(key("attention.key_length"), 16);
            let (heads, widths) = match arch {
                "deci" => (json!([4, 2, 4, 0]), json!([128, 96, 32, 64])),
                _ => (json!(4), json!(128)),
            };
            assert_eq!((key("attention.head_count"), key("feed_forward_length")), (&heads, &widths));
            assert_eq!(keys["tokenizer.ggml.tokens"].as_array().unwrap().len(), 288);
            assert_eq!(keys["tokenizer.chat_template"], secateur_test_support::CHAT_TEMPLATE);
        }
    }
}
