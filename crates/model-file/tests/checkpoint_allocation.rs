//! Checkpoints that promise much and hold little, or are full of the smallest things there are, must not make the
//! readers allocate. A test of its own process: it lowers the limit on writable memory, so that an allocation beyond
//! the bound ends the process.
#![expect(clippy::unwrap_used, reason = "test code")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use secateur_model_file::ModelFile;
use secateur_test_support::{Checkpoint, Data, Onnx, Style, TinyLayer, TinyModel};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// What a reader may take beside a few times the file that it reads, with room for the allocator's arenas.
const BOUND_BYTES: u64 = 16 << 20;
/// Times the largest file.
const TIMES: u64 = 4;

fn data_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmData:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn small() -> Checkpoint {
    let layer = TinyLayer { heads: 2, kv_heads: 1, intermediate_size: 32 };
    TinyModel { hidden_size: 32, head_dim: 16, layers: vec![layer], ..TinyModel::default() }.checkpoint()
}

/// Writes a hostile folder for each, and returns them.
fn hostile(dir: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut add = |write: &dyn Fn(&Path)| {
        let folder = dir.join(folders.len().to_string());
        fs::create_dir(&folder).unwrap();
        write(&folder);
        folders.push(folder);
    };
    for count in [1_u64 << 20, 1 << 32, 1 << 48, u64::MAX] {
        for key in
            ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
        {
            add(&|dir| {
                let mut checkpoint = small();
                checkpoint.config[key] = json!(count);
                checkpoint.write_safetensors(dir);
            });
        }
        add(&|dir| {
            small().write_config(dir);
            fs::write(dir.join("model.safetensors"), [&count.to_le_bytes()[..], b"{"].concat()).unwrap();
        });
        add(&|dir| {
            small().write_config(dir);
            let mut onnx = small().onnx(Style::Optimum);
            let tensor = onnx.tensor("model.embed_tokens.weight");
            (tensor.dims, tensor.data) = (vec![count, 32], Data::None);
            fs::write(dir.join("model.onnx"), onnx.to_bytes()).unwrap();
        });
    }
    let text = |name: &'static str, text: String| {
        move |dir: &Path| {
            small().write_shards(dir, 1);
            fs::write(dir.join(name), &text).unwrap();
        }
    };
    let many = |part: &str, times: usize| vec![part; times].join(",");
    add(&text(
        "tokenizer.json",
        format!("{{\"added_tokens\":[{}]}}", many("{\"id\":0,\"content\":\"\"}", 1 << 16)),
    ));
    add(&text("tokenizer.json", format!("{{\"model\":{{\"merges\":[{}]}}}}", many("\"a b\"", 1 << 18))));
    add(&text("tokenizer.json", format!("{{\"pre_tokenizer\":[{}]}}", many("0", 1 << 20))));
    add(&text("tokenizer.json", format!("{{\"x\":{}", "[".repeat(1 << 20))));
    add(&text("config.json", format!("{{\"x\":[{}]}}", many("0", 1 << 18))));
    add(&text("config.json", format!("{{\"architectures\":[{}]}}", many("\"\"", 1 << 18))));
    add(&text(
        "model.safetensors.index.json",
        format!("{{\"weight_map\":{{{}}}}}", many("\"\":\"\"", 1 << 18)),
    ));
    add(&|dir| {
        small().write_config(dir);
        let mut onnx = Onnx::default();
        for (number, tensor) in
            small().onnx(Style::Optimum).tensors.into_iter().cycle().take(1 << 16).enumerate()
        {
            onnx.tensors.push(secateur_test_support::OnnxTensor {
                name: number.to_string(),
                data: Data::None,
                ..tensor
            });
        }
        fs::write(dir.join("model.onnx"), onnx.to_bytes()).unwrap();
    });
    folders
}

#[test]
fn promises_of_the_files_are_not_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let folders = hostile(dir.path());
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let largest = files.map(|file| file.unwrap().metadata().unwrap().len()).max().unwrap();
    let before = getrlimit(Resource::Data);
    let bound = TIMES * largest + BOUND_BYTES;
    setrlimit(Resource::Data, Rlimit { current: Some(data_bytes() + bound), ..before }).unwrap();
    let results: Vec<bool> = folders.iter().map(|folder| ModelFile::open(folder).is_err()).collect();
    // The limit works: what a believed promise would need is not to be had.
    let mut probe = Vec::<u8>::new();
    let too_much = probe.try_reserve_exact((bound + BOUND_BYTES) as usize);
    std::hint::black_box(&mut probe);
    setrlimit(Resource::Data, before).unwrap();
    assert!(too_much.is_err());
    assert!(results.iter().all(|refused| *refused), "{results:?}");
}
