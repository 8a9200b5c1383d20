//! Resident memory while a checkpoint is opened, digested and written as GGUF: in a process of its own for each form,
//! because the peak is the process's, and the one that made the files has a heap that hides what is taken from it.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use secateur_model::WeightSource;
use secateur_model_file::{ModelFile, WriteOptions, write_gguf};
use secateur_tensor::DType;
use secateur_test_support::{Style, TinyLayer, TinyModel};
use std::path::Path;
use std::process::Command;
use support::{peak_bytes, reset_peak};

/// Allowed growth of the peak: two blocks of 4 MiB and a sixteenth, buffers, names, pages between two give-backs.
const OPEN_BYTES: u64 = 10 << 20;
const WRITE_BYTES: u64 = 12 << 20;

/// Writes about 40 MB of weights in three forms.
fn write(dir: &Path) -> [&'static str; 3] {
    let layer = TinyLayer { heads: 16, kv_heads: 4, intermediate_size: 2048 };
    let tiny = TinyModel {
        hidden_size: 1024,
        head_dim: 64,
        layers: vec![layer; 2],
        dtype: DType::F16,
        ..TinyModel::default()
    };
    let checkpoint = tiny.checkpoint();
    let names = ["safetensors", "inline", "data"];
    names.iter().for_each(|name| std::fs::create_dir(dir.join(name)).unwrap());
    checkpoint.write_shards(&dir.join(names[0]), 2);
    checkpoint.write_onnx(&dir.join(names[1]), Style::Optimum);
    checkpoint.write_onnx_with_data(&dir.join(names[2]), Style::Genai);
    names
}

/// Names the folder for the process that measures.
const FOLDER: &str = "SECATEUR_TEST_FOLDER";

/// Opens, digests and writes the checkpoint in `folder`, and says what each took.
fn measure(folder: &Path) {
    let start = reset_peak();
    let model = ModelFile::open(folder).unwrap();
    assert!(30 << 20 < model.file_bytes() && model.config().n_layers() == 2);
    let opened = peak_bytes() - start;
    model.give_back_all();
    let start = reset_peak();
    model.digest().unwrap();
    let digested = peak_bytes() - start;
    let start = reset_peak();
    let options = WriteOptions { dtype: Some(DType::Q8_0), ..WriteOptions::default() };
    write_gguf(&folder.join("out.gguf"), model.metadata(), &model, &options).unwrap();
    let written = peak_bytes() - start;
    eprintln!("open {opened}, digest {digested}, write {written} bytes");
    assert!(opened < OPEN_BYTES, "opening took {opened} bytes");
    assert!(digested < OPEN_BYTES, "digesting took {digested} bytes");
    assert!(written < WRITE_BYTES, "writing took {written} bytes");
}

#[test]
fn a_checkpoint_passes_through_without_becoming_resident() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return measure(Path::new(&folder));
    }
    let dir = tempfile::tempdir().unwrap();
    for name in write(dir.path()) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_checkpoint_passes_through_without_becoming_resident", "--nocapture"]);
        let output = command.env(FOLDER, dir.path().join(name)).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{name}: {said}");
        assert!(output.status.success(), "{name}: {said}");
    }
}
