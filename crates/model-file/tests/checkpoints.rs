//! Right checkpoints: what their files say is what a GGUF file of the same model says.
#![expect(clippy::unwrap_used, reason = "test code")]

use secateur_model::{Architecture, RopeLayout, RopeScaling, WeightId, WeightRole, WeightSource};
use secateur_model_file::{ModelFile, ModelForm, Vocab};
use secateur_test_support::{Biases, Checkpoint, Style, TinyFamily, TinyModel};
use serde_json::{Value, json};
use std::path::Path;

fn write(checkpoint: &Checkpoint) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write_safetensors(dir.path());
    dir
}

fn open(checkpoint: &Checkpoint) -> ModelFile {
    ModelFile::open(write(checkpoint).path()).unwrap()
}

#[test]
fn the_vocabulary_is_that_of_the_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel::default();
    let gguf = ModelFile::open(&tiny.write_to(dir.path())).unwrap();
    let vocab = open(&tiny.checkpoint()).vocab().unwrap();
    assert_eq!(vocab, Vocab { add_eos: Some(false), ..gguf.vocab().unwrap() });
    // Merges as pairs, as newer files have them, and the template in a file of its own.
    let mut checkpoint = tiny.checkpoint();
    for merge in checkpoint.tokenizer["model"]["merges"].as_array_mut().unwrap() {
        *merge = merge.as_str().unwrap().split(' ').collect();
    }
    let folder = write(&checkpoint);
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    let other = ModelFile::open(folder.path()).unwrap().vocab().unwrap();
    assert_eq!(other, Vocab { chat_template: Some("{{ 1 }}".to_owned()), ..vocab });
}

#[test]
fn ids_without_a_token_are_filled_and_kinds_follow_the_file() {
    let mut checkpoint = TinyModel::default().checkpoint();
    let rows = 300;
    checkpoint.config["vocab_size"] = json!(rows);
    let table = checkpoint.tensor("model.embed_tokens.weight");
    table.data.resize(table.data.len() / table.shape[0] * rows, 0);
    table.shape[0] = rows;
    let added = checkpoint.tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": 290, "content": "<tool>", "special": false}));
    added.push(json!({"id": 291, "content": "<|fim|>", "special": false}));
    let vocab = open(&checkpoint).vocab().unwrap();
    let tokens: Vec<&str> = vocab.tokens.iter().collect();
    assert_eq!(
        (tokens.len(), tokens[288], tokens[290], tokens[299]),
        (rows, "[PAD288]", "<tool>", "[PAD299]")
    );
    assert_eq!(&vocab.token_types[287..293], [1, 5, 5, 4, 3, 5]);
}

#[test]
fn special_tokens_come_from_whichever_file_names_them() {
    let template = |parts: Value| json!({"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": {}});
    let bos = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let tiny = TinyModel::default();
    let mut checkpoint = tiny.checkpoint();
    checkpoint.tokenizer["post_processor"] = template(json!([bos, text]));
    let vocab = open(&checkpoint).vocab().unwrap();
    assert_eq!((vocab.add_bos, vocab.add_eos, vocab.bos_id), (Some(true), Some(false), Some(1)));
    checkpoint.tokenizer_config["add_bos_token"] = json!(false);
    assert_eq!(open(&checkpoint).vocab().unwrap().add_bos, Some(false));
    // Without tokenizer_config.json the ids of config.json count, then those of generation_config.json.
    checkpoint.config["eos_token_id"] = json!([2, 0]);
    let folder = write(&checkpoint);
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    std::fs::write(folder.path().join("generation_config.json"), r#"{"pad_token_id": 0, "eos_token_id": 1}"#)
        .unwrap();
    let vocab = ModelFile::open(folder.path()).unwrap().vocab().unwrap();
    assert_eq!((vocab.bos_id, vocab.eos_id, vocab.padding_id), (Some(1), Some(2), Some(0)));
    assert_eq!((vocab.add_bos, vocab.chat_template), (Some(true), None));
}

#[test]
fn config_json_is_read_as_its_class_reads_it() {
    let tiny = TinyModel::default();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut checkpoint = tiny.checkpoint();
        change(&mut checkpoint.config);
        open(&checkpoint).config().clone()
    };
    let config = with(&|_| ());
    assert_eq!((config.architecture, config.rope_layout), (Architecture::Llama, RopeLayout::Halves));
    assert_eq!((config.name.as_str(), config.rope_theta, config.head_dim), ("", 10_000.0, 16));
    let bare = with(&|config| {
        let map = config.as_object_mut().unwrap();
        for key in [
            "head_dim",
            "rope_theta",
            "rope_scaling",
            "attention_bias",
            "mlp_bias",
            "hidden_act",
            "rms_norm_eps",
        ] {
            map.remove(key);
        }
        map.insert("_name_or_path".to_owned(), json!("owner/Tiny-1.5B"));
    });
    assert_eq!((bare.name.as_str(), bare.rms_norm_eps, bare.head_dim), ("Tiny-1.5B", 1e-6, 16));
    let path = with(&|config| config["_name_or_path"] = json!("/home/somebody/models/x"));
    assert_eq!(path.name, "");
    let five = with(&|config| {
        config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    });
    assert_eq!((five.rope_theta, five.rope_scaling), (5e5, RopeScaling::Linear { factor: 2.0 }));
    let mistral = with(&|config| {
        config["architectures"] = json!(["MistralForCausalLM"]);
        config["sliding_window"] = Value::Null;
    });
    assert_eq!(mistral.architecture, Architecture::Llama);
}

#[test]
fn digests_tell_every_file_and_not_the_folder() {
    let tiny = TinyModel::default();
    let digest = |dir: &Path| ModelFile::open(dir).unwrap().digest().unwrap();
    let shards = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = tiny.checkpoint();
        change(&mut checkpoint);
        let dir = tempfile::tempdir().unwrap();
        checkpoint.write_shards(dir.path(), 2);
        digest(dir.path())
    };
    let same = shards(&|_| ());
    assert_eq!(same, shards(&|_| ()));
    let others = [
        shards(&|checkpoint| checkpoint.config["x"] = json!(1)),
        shards(&|checkpoint| checkpoint.tokenizer["x"] = json!(1)),
        shards(&|checkpoint| checkpoint.tokenizer_config["x"] = json!(1)),
        shards(&|checkpoint| checkpoint.tensor("model.norm.weight").data[0] ^= 1),
        digest(write(&tiny.checkpoint()).path()),
    ];
    assert!(others.iter().all(|other| *other != same));
}

#[test]
fn forms_are_told_and_files_are_found() {
    let tiny = TinyModel { family: TinyFamily::Qwen2, biases: Biases::Qkv, ..TinyModel::default() };
    let checkpoint = tiny.checkpoint();
    let dir = write(&checkpoint);
    let folder = ModelFile::open(dir.path()).unwrap();
    let file = ModelFile::open(&dir.path().join("model.safetensors")).unwrap();
    assert_eq!((folder.form(), folder.config().architecture), (ModelForm::Safetensors, Architecture::Qwen2));
    assert_eq!(folder.digest().unwrap(), file.digest().unwrap());
    let length = std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
    assert_eq!(folder.file_bytes(), length);
    assert!(folder.weight(WeightId::layer(0, WeightRole::QBias)).unwrap().is_some());
    // A graph in a folder below the other files, as repositories have it.
    let repository = tempfile::tempdir().unwrap();
    checkpoint.write_config(repository.path());
    let below = repository.path().join("onnx");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("model.onnx"), checkpoint.onnx(Style::Optimum).to_bytes()).unwrap();
    for path in [repository.path().to_owned(), below.join("model.onnx")] {
        assert_eq!(ModelFile::open(&path).unwrap().form(), ModelForm::Onnx, "{}", path.display());
    }
    // A link to where a download cache keeps the file.
    let cache = tempfile::tempdir().unwrap();
    checkpoint.write_config(cache.path());
    std::os::unix::fs::symlink(dir.path().join("model.safetensors"), cache.path().join("model.safetensors"))
        .unwrap();
    assert_eq!(ModelFile::open(cache.path()).unwrap().digest().unwrap(), folder.digest().unwrap());
}

#[test]
fn a_tied_model_passes_over_a_second_copy_of_its_table() {
    let mut checkpoint = TinyModel::default().checkpoint();
    let mut head = checkpoint.tensor("model.embed_tokens.weight").clone();
    "lm_head.weight".clone_into(&mut head.name);
    checkpoint.tensors.push(head);
    let rotary = checkpoint.tensor("model.norm.weight").clone();
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    checkpoint.tensors.push(secateur_test_support::CheckpointTensor { name, ..rotary });
    let dir = write(&checkpoint);
    let onnx = tempfile::tempdir().unwrap();
    checkpoint.tensors.pop();
    checkpoint.write_onnx(onnx.path(), Style::Optimum);
    for dir in [dir.path(), onnx.path()] {
        let model = ModelFile::open(dir).unwrap();
        assert!(model.weight(WeightId::global(WeightRole::LmHead)).unwrap().is_none());
    }
}

#[test]
fn a_shortened_shard_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    TinyModel::default().checkpoint().write_shards(dir.path(), 2);
    let model = ModelFile::open(dir.path()).unwrap();
    let shard = dir.path().join("model-00002-of-00002.safetensors");
    let length = std::fs::metadata(&shard).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(length - 1).unwrap();
    let error = model.digest().unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}
