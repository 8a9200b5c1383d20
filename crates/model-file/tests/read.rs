//! Right files: what is read is what was written.
#![expect(clippy::unwrap_used, reason = "test code")]

use secateur_model::{
    Architecture, LayerConfig, RopeLayout, RopeScaling, WeightError, WeightId, WeightRole, WeightSource,
};
use secateur_model_file::{ModelFile, ModelFileError};
use secateur_tensor::DType;
use secateur_test_support::{
    Biases, CHAT_TEMPLATE, Gguf, Head, Meta, TinyFamily, TinyLayer, TinyModel, reference_model,
};
use std::path::Path;

fn open(gguf: &Gguf, dir: &Path) -> Result<ModelFile, ModelFileError> {
    let path = dir.join("model.gguf");
    std::fs::write(&path, gguf.to_bytes()).unwrap();
    ModelFile::open(&path)
}

#[test]
fn config_and_weights_of_a_uniform_model() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel::default();
    let mut gguf = tiny.gguf();
    let model = open(&gguf, dir.path()).unwrap();
    let config = model.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!(config.rope_layout, RopeLayout::Interleaved);
    assert_eq!(config.rope_scaling, RopeScaling::None);
    assert_eq!((config.hidden_size, config.head_dim, config.vocab_size), (64, 16, 288));
    assert_eq!((config.name.as_str(), config.max_position_embeddings), ("Tiny", 256));
    let layer = LayerConfig { num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128 };
    assert_eq!(config.layers, vec![layer; 4]);
    assert!(config.tie_word_embeddings);
    assert!(model.weight(WeightId::global(WeightRole::LmHead)).unwrap().is_none());
    assert!(model.weight(WeightId::layer(0, WeightRole::QBias)).unwrap().is_none());
    let missing = model.require(WeightId::global(WeightRole::LmHead)).unwrap_err();
    assert!(matches!(missing, WeightError::Missing(_)));
    for (role, name, shape) in [
        (WeightRole::KProj, "blk.2.attn_k.weight", (32, 64)),
        (WeightRole::DownProj, "blk.2.ffn_down.weight", (64, 128)),
        (WeightRole::MlpNorm, "blk.2.ffn_norm.weight", (1, 64)),
    ] {
        let weight = model.require(WeightId::layer(2, role)).unwrap();
        assert_eq!((weight.n_rows(), weight.n_cols()), shape);
        assert_eq!(weight.data(), &gguf.tensor(name).data, "{name}");
        model.give_back(WeightId::layer(2, role));
        assert_eq!(weight.data(), &gguf.tensor(name).data, "{name} after its pages were given back");
    }
    assert_eq!(model.file_bytes(), gguf.to_bytes().len() as u64);
    assert_eq!(model.digest().unwrap(), blake3::hash(&gguf.to_bytes()).to_hex().to_string());
    let names: Vec<&str> = model.tensors().map(|tensor| tensor.name()).collect();
    let want: Vec<&str> = gguf.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, want);
}

#[test]
fn every_dtype_head_and_bias() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in DType::ALL {
        let tiny = TinyModel { head: Head::Separate, biases: Biases::All, ..TinyModel::with_dtype(dtype) };
        let mut gguf = tiny.gguf();
        let model = open(&gguf, dir.path()).unwrap();
        assert!(!model.config().tie_word_embeddings);
        let weight = model.require(WeightId::layer(1, WeightRole::DownProj)).unwrap();
        assert_eq!(weight.dtype(), dtype);
        assert_eq!(weight.data(), &gguf.tensor("blk.1.ffn_down.weight").data, "{dtype}");
        for role in [
            WeightRole::QBias,
            WeightRole::KBias,
            WeightRole::VBias,
            WeightRole::OBias,
            WeightRole::GateBias,
            WeightRole::UpBias,
            WeightRole::DownBias,
        ] {
            assert_eq!(model.require(WeightId::layer(0, role)).unwrap().dtype(), DType::F32, "{role:?}");
        }
        assert!(model.weight(WeightId::global(WeightRole::LmHead)).unwrap().is_some());
    }
}

#[test]
fn layers_without_parts() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |heads, kv_heads, intermediate_size| TinyLayer { heads, kv_heads, intermediate_size };
    let layers = vec![layer(4, 2, 96), layer(0, 0, 64), layer(2, 1, 0), layer(4, 4, 32)];
    let model = open(&TinyModel { layers, ..TinyModel::default() }.gguf(), dir.path()).unwrap();
    let shapes: Vec<_> = model
        .config()
        .layers
        .iter()
        .map(|layer| (layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size))
        .collect();
    assert_eq!(shapes, [(4, 2, 96), (0, 0, 64), (2, 1, 0), (4, 4, 32)]);
    assert!(model.weight(WeightId::layer(1, WeightRole::AttnNorm)).unwrap().is_none());
    assert!(model.weight(WeightId::layer(2, WeightRole::DownProj)).unwrap().is_none());
}

#[test]
fn qwen2_rotates_halves_and_has_biases() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = TinyModel { family: TinyFamily::Qwen2, biases: Biases::Qkv, ..TinyModel::default() };
    let model = open(&tiny.gguf(), dir.path()).unwrap();
    assert_eq!(model.config().architecture, Architecture::Qwen2);
    assert_eq!(model.config().rope_layout, RopeLayout::Halves);
    assert_eq!(model.require(WeightId::layer(3, WeightRole::VBias)).unwrap().n_cols(), 32);
}

#[test]
fn optional_keys_have_the_defaults_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = TinyModel::default().gguf();
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"] {
        assert!(gguf.remove(&format!("llama.{key}")));
    }
    assert!(gguf.remove("llama.vocab_size") && gguf.remove("general.name"));
    gguf.set("llama.attention.head_count_kv", Meta::I32s(vec![2; 4]));
    gguf.set("llama.context_length", Meta::U64(1000));
    let model = open(&gguf, dir.path()).unwrap();
    let config = model.config();
    assert_eq!((config.head_dim, config.rope_theta, config.name.as_str()), (16, 10_000.0, ""));
    assert_eq!(config.max_position_embeddings, 1000);
}

#[test]
fn rotary_scaling() {
    let dir = tempfile::tempdir().unwrap();
    let factors: Vec<f32> = (1..=8).map(|factor| factor as f32).collect();
    let tiny = TinyModel { rope_factors: Some(factors.clone()), ..TinyModel::default() };
    let model = open(&tiny.gguf(), dir.path()).unwrap();
    assert_eq!(model.config().rope_scaling, RopeScaling::Factors(factors));
    let mut gguf = TinyModel::default().gguf();
    gguf.set("llama.rope.scaling.type", "linear");
    gguf.set("llama.rope.scaling.factor", Meta::F32(4.0));
    let model = open(&gguf, dir.path()).unwrap();
    assert_eq!(model.config().rope_scaling, RopeScaling::Linear { factor: 4.0 });
    gguf.set("llama.rope.scaling.type", "none");
    let model = open(&gguf, dir.path()).unwrap();
    assert_eq!(model.config().rope_scaling, RopeScaling::None);
}

#[test]
fn the_vocabulary_is_plain_data() {
    let dir = tempfile::tempdir().unwrap();
    let vocab = open(&TinyModel::default().gguf(), dir.path()).unwrap().vocab().unwrap();
    let tiny = secateur_test_support::TinyVocab::default();
    assert_eq!((vocab.model.as_str(), vocab.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!(vocab.tokens.iter().collect::<Vec<_>>(), tiny.tokens);
    assert_eq!(vocab.merges.iter().collect::<Vec<_>>(), tiny.merges);
    assert_eq!(vocab.token_types, tiny.token_types);
    assert_eq!((vocab.bos_id, vocab.eos_id, vocab.unknown_id), (Some(1), Some(2), Some(0)));
    assert_eq!((vocab.eot_id, vocab.add_eos), (None, None));
    assert_eq!((vocab.add_bos, vocab.add_space_prefix), (Some(false), Some(false)));
    assert_eq!(vocab.chat_template.as_deref(), Some(CHAT_TEMPLATE));
    assert!(vocab.scores.is_empty());
}

#[test]
fn half_precision_norms_are_widened() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = TinyModel::default().gguf();
    let norm = gguf.tensor("output_norm.weight");
    norm.type_id = 30;
    norm.data = std::iter::repeat_n([0x80, 0x3f], 64).flatten().collect();
    let model = open(&gguf, dir.path()).unwrap();
    let norm = model.require(WeightId::global(WeightRole::FinalNorm)).unwrap();
    assert_eq!((norm.dtype(), norm.to_f32()), (DType::F32, vec![1.0; 64]));
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let model = open(&TinyModel::default().gguf(), dir.path()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(model.path()).unwrap();
    file.set_len(model.file_bytes() - 32).unwrap();
    let error = model.weight(WeightId::global(WeightRole::FinalNorm)).unwrap_err();
    assert!(matches!(error, WeightError::Unreadable { .. }));
    assert!(matches!(model.digest(), Err(ModelFileError::Changed { .. })));
}

#[test]
fn the_reference_model() {
    let Some(path) = reference_model() else { return };
    let model = ModelFile::open(&path).unwrap();
    let config = model.config();
    let layer = LayerConfig { num_attention_heads: 9, num_key_value_heads: 3, intermediate_size: 1536 };
    assert_eq!(config.layers, vec![layer; 30]);
    assert_eq!((config.hidden_size, config.head_dim, config.vocab_size), (576, 64, 49152));
    assert_eq!((config.rope_theta, config.rms_norm_eps), (100_000.0, 1e-5));
    assert_eq!(config.all_layer_params(), 106_168_320);
    let vocab = model.vocab().unwrap();
    assert_eq!((vocab.tokens.len(), vocab.merges.len()), (49152, 48900));
    assert_eq!(vocab.tokens.iter().nth(1), Some("<|im_start|>"));
    let gate = model.require(WeightId::layer(29, WeightRole::GateProj)).unwrap();
    assert_eq!((gate.dtype(), gate.n_rows(), gate.n_cols()), (DType::Q4_1, 1536, 576));
    assert!(gate.to_f32().iter().all(|value| value.abs() < 10.0));
}
