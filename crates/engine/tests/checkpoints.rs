//! The same weights as GGUF, safetensors and ONNX give the same logits, and so does the GGUF file written of each.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

use secateur_engine::{Engine, EngineOptions};
use secateur_model::{KvDType, RopeScaling, WeightId, WeightRole, WeightSource};
use secateur_model_file::{ModelFile, Vocab, WriteError, WriteOptions, write_checkpoint, write_gguf};
use secateur_test_support::{
    Biases, Checkpoint, DType, Head, Style, TinyFamily, TinyLayer, TinyModel, reference_model,
};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

const TOKENS: [u32; 40] = [
    1, 40, 75, 3, 260, 271, 9, 200, 31, 5, 6, 7, 280, 99, 100, 101, 17, 64, 65, 66, 67, 68, 2, 1, 40, 75, 3,
    260, 271, 9, 200, 31, 5, 6, 7, 280, 99, 100, 101, 17,
];

fn logits(model: &ModelFile) -> Vec<f32> {
    let engine = Engine::new(Arc::new(model.clone()), EngineOptions { n_threads: 2 }).unwrap();
    let mut session = engine.session(TOKENS.len() + 1, KvDType::F32).unwrap();
    let mut all = session.extend(&TOKENS, &|| false).unwrap().to_vec();
    all.extend(session.extend(&[77], &|| false).unwrap());
    all
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Writes a checkpoint in every form, each into a folder of its own, and names them.
fn every_form(checkpoint: &Checkpoint, dir: &Path) -> Vec<&'static str> {
    let folder = |name: &str| {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    checkpoint.write_safetensors(&folder("one"));
    checkpoint.write_shards(&folder("shards"), 3);
    checkpoint.write_onnx(&folder("optimum"), Style::Optimum);
    checkpoint.write_onnx(&folder("turned"), Style::Turned);
    checkpoint.write_onnx(&folder("genai"), Style::Genai);
    checkpoint.write_onnx_with_data(&folder("genai-data"), Style::Genai);
    checkpoint.write_onnx_with_data(&folder("optimum-data"), Style::Optimum);
    vec!["one", "shards", "optimum", "turned", "genai", "genai-data", "optimum-data"]
}

#[test]
fn every_form_of_a_model_gives_the_same_logits() {
    let base = || TinyModel { context_length: 128, ..TinyModel::with_layers(2) };
    let cases = [
        ("plain", base()),
        ("f16", TinyModel { dtype: DType::F16, ..base() }),
        ("bf16", TinyModel { dtype: DType::BF16, ..base() }),
        ("separate head", TinyModel { head: Head::Separate, seed: 3, ..base() }),
        ("all biases", TinyModel { biases: Biases::All, ..base() }),
        ("qwen2", TinyModel { family: TinyFamily::Qwen2, biases: Biases::Qkv, ..base() }),
        // Heads wider than their share, and matrices that are square either way.
        (
            "wide heads",
            TinyModel {
                layers: vec![TinyLayer { heads: 4, kv_heads: 4, intermediate_size: 64 }; 2],
                head_dim: 32,
                ..base()
            },
        ),
        (
            "square",
            TinyModel {
                layers: vec![TinyLayer { heads: 4, kv_heads: 4, intermediate_size: 64 }; 2],
                ..base()
            },
        ),
    ];
    for (case, tiny) in cases {
        let dir = tempfile::tempdir().unwrap();
        let want = logits(&ModelFile::open(&tiny.write_to(dir.path())).unwrap());
        for form in every_form(&tiny.checkpoint(), dir.path()) {
            let model = ModelFile::open(&dir.path().join(form))
                .unwrap_or_else(|error| panic!("{case}, {form}: {error}"));
            let got = logits(&model);
            assert!(gap(&want, &got) < 2e-5, "{case}, {form}: {}", gap(&want, &got));
            let path = dir.path().join(format!("{form}.gguf"));
            let written = write_gguf(&path, model.metadata(), &model, &WriteOptions::default()).unwrap();
            let architecture = if tiny.family == TinyFamily::Qwen2 { "qwen2" } else { "llama" };
            assert_eq!(written.architecture, architecture, "{case}, {form}");
            let back = ModelFile::open(&path).unwrap();
            assert!(gap(&want, &logits(&back)) < 2e-5, "{case}, {form}, written as GGUF");
            assert_eq!(back.vocab().unwrap(), model.vocab().unwrap(), "{case}, {form}");
        }
    }
}

#[test]
fn scaled_rotary_frequencies_are_the_same_in_the_written_file() {
    let tiny = TinyModel { context_length: 128, ..TinyModel::with_layers(2) };
    let plain_dir = tempfile::tempdir().unwrap();
    let plain = logits(&ModelFile::open(&tiny.write_to(plain_dir.path())).unwrap());
    for scaling in [
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"type": "linear", "factor": 2}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoint = tiny.checkpoint();
        checkpoint.config["rope_scaling"] = scaling.clone();
        checkpoint.write_safetensors(dir.path());
        let model = ModelFile::open(dir.path()).unwrap();
        assert_ne!(model.config().rope_scaling, RopeScaling::None);
        let want = logits(&model);
        assert!(1e-3 < gap(&want, &plain), "{scaling}");
        let path = dir.path().join("written.gguf");
        write_gguf(&path, model.metadata(), &model, &WriteOptions::default()).unwrap();
        let back = ModelFile::open(&path).unwrap();
        assert!(gap(&want, &logits(&back)) < 2e-5, "{scaling}");
        let factors = matches!(back.config().rope_scaling, RopeScaling::Factors(_));
        assert_eq!(factors, scaling["rope_type"] == "llama3", "{scaling}");
    }
}

/// What a checkpoint says of a vocabulary that may leave things open.
fn told(vocab: Vocab) -> Vocab {
    Vocab { add_bos: Some(vocab.add_bos == Some(true)), add_eos: Some(vocab.add_eos == Some(true)), ..vocab }
}

#[test]
fn a_model_written_as_a_folder_is_the_same_model() {
    let base = || TinyModel { context_length: 128, ..TinyModel::with_layers(2) };
    let cases = [
        ("plain", base(), "LlamaForCausalLM"),
        ("bf16", TinyModel { dtype: DType::BF16, ..base() }, "LlamaForCausalLM"),
        ("separate head", TinyModel { head: Head::Separate, ..base() }, "LlamaForCausalLM"),
        ("all biases", TinyModel { biases: Biases::All, ..base() }, "LlamaForCausalLM"),
        ("llama with biases of qwen2", TinyModel { biases: Biases::Qkv, ..base() }, "Qwen2ForCausalLM"),
        ("qwen2", TinyModel { family: TinyFamily::Qwen2, biases: Biases::Qkv, ..base() }, "Qwen2ForCausalLM"),
    ];
    for (case, tiny, class) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelFile::open(&tiny.write_to(dir.path())).unwrap();
        let folder = dir.path().join("folder");
        let written = write_checkpoint(&folder, model.metadata(), &model, None).unwrap();
        assert_eq!((written.class, written.stored_as_f16.len()), (class, 0), "{case}");
        let back = ModelFile::open(&folder).unwrap();
        assert_eq!(back.digest().unwrap(), written.digest, "{case}");
        assert!(gap(&logits(&model), &logits(&back)) < 2e-5, "{case}");
        assert_eq!(told(back.vocab().unwrap()), told(model.vocab().unwrap()), "{case}");
        let names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names.len(), 2, "nothing is left beside: {names:?}");
        let again = write_checkpoint(&folder, model.metadata(), &model, None);
        assert!(matches!(again, Err(WriteError::Io { .. })), "{case}: the folder is there");
    }
}

#[test]
fn what_a_checkpoint_cannot_say_is_refused() {
    let uneven = [128, 64].map(|intermediate_size| TinyLayer { heads: 4, kv_heads: 2, intermediate_size });
    let cases = [
        ("compatible", TinyModel { layers: uneven.to_vec(), ..TinyModel::default() }, None),
        ("rotary scaling", TinyModel { rope_factors: Some(vec![2.0; 8]), ..TinyModel::default() }, None),
        ("not q8_0", TinyModel::default(), Some(DType::Q8_0)),
    ];
    for (want, tiny, dtype) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelFile::open(&tiny.write_to(dir.path())).unwrap();
        let error = write_checkpoint(&dir.path().join("x"), model.metadata(), &model, dtype).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{want}: nothing is left behind");
    }
}

#[test]
fn the_reference_model_is_the_same_as_a_folder() {
    let Some(path) = reference_model() else { return };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let model = ModelFile::open(&path).unwrap();
    let options = WriteOptions { dtype: Some(DType::F16), ..WriteOptions::default() };
    let gguf = dir.path().join("f16.gguf");
    write_gguf(&gguf, model.metadata(), &model, &options).unwrap();
    let folder = dir.path().join("folder");
    write_checkpoint(&folder, model.metadata(), &model, Some(DType::F16)).unwrap();
    let (gguf, folder) = (ModelFile::open(&gguf).unwrap(), ModelFile::open(&folder).unwrap());
    let (want, got) = (logits(&gguf), logits(&folder));
    assert!(gap(&want, &got) < 1e-3, "{}", gap(&want, &got));
    assert_eq!(told(folder.vocab().unwrap()), told(gguf.vocab().unwrap()));
    // And back: the same bytes of every tensor.
    let again = dir.path().join("again.gguf");
    write_gguf(&again, folder.metadata(), &folder, &WriteOptions::default()).unwrap();
    let again = ModelFile::open(&again).unwrap();
    for layer_idx in 0..gguf.config().n_layers() {
        for role in WeightRole::LAYER_MATRICES {
            let id = WeightId::layer(layer_idx, role);
            assert!(gguf.require(id).unwrap().data() == again.require(id).unwrap().data(), "{id}");
        }
    }
}
