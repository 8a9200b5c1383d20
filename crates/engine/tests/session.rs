//! Sessions over tiny models: the two drivers of a layer agree, and misuse is an error.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod common;

use common::{FULL, config, source};
use secateur_engine::{Engine, EngineError, EngineOptions};
use secateur_model::{KvDType, LayerConfig, ModelConfig, RopeLayout, RopeScaling, WeightId, WeightRole};
use std::sync::Arc;

fn engine(config: ModelConfig, n_threads: usize) -> Engine {
    Engine::new(Arc::new(source(config)), EngineOptions { n_threads }).unwrap()
}

fn never() -> bool {
    false
}

fn largest_gap(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

const TOKENS: [u32; 9] = [3, 1, 4, 15, 9, 26, 5, 35, 8];

#[test]
fn prefill_and_decode_agree_on_every_shape_of_layer() {
    let no_attn = LayerConfig { num_attention_heads: 0, num_key_value_heads: 0, ..FULL };
    let no_mlp = LayerConfig { intermediate_size: 0, ..FULL };
    let narrow = LayerConfig { num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 31 };
    let empty = LayerConfig { num_attention_heads: 0, num_key_value_heads: 0, intermediate_size: 0 };
    for (name, layers) in [
        ("uniform", vec![FULL, FULL]),
        ("without attention", vec![FULL, no_attn]),
        ("without mlp", vec![no_mlp, FULL]),
        ("uneven", vec![narrow, FULL, narrow]),
        ("identity layer", vec![FULL, empty, FULL]),
    ] {
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            let engine = engine(ModelConfig { rope_layout: layout, ..config(layers.clone()) }, 2);
            let mut at_once = engine.session(16, KvDType::F32).unwrap();
            let mut one_by_one = engine.session(16, KvDType::F32).unwrap();
            let prefill = at_once.extend(&TOKENS, &never).unwrap().to_vec();
            for token in TOKENS {
                one_by_one.extend(&[token], &never).unwrap();
            }
            let step = at_once.extend(&[7], &never).unwrap().to_vec();
            let other = one_by_one.extend(&[7], &never).unwrap();
            assert!(largest_gap(&step, other) < 1e-4, "{name} {layout:?}");
            assert!(1e-3 < largest_gap(&step, &prefill), "{name}: another token must change the logits");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let logits = |n_threads| {
        let engine = engine(config(vec![FULL, FULL]), n_threads);
        let mut session = engine.session(16, KvDType::F16).unwrap();
        session.extend(&TOKENS, &never).unwrap();
        session.extend(&[2], &never).unwrap().to_vec()
    };
    assert_eq!(logits(1), logits(3));
}

#[test]
fn score_is_the_log_softmax_of_the_logits() {
    let engine = engine(config(vec![FULL, FULL]), 1);
    let losses = engine.score(&TOKENS, &never).unwrap();
    let mut session = engine.session(16, KvDType::F32).unwrap();
    for (at, &token) in TOKENS[..TOKENS.len() - 1].iter().enumerate() {
        let logits = session.extend(&[token], &never).unwrap();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let want = sum.ln() - f64::from(logits[TOKENS[at + 1] as usize]);
        assert!((want - f64::from(losses[at])).abs() < 1e-4, "token {at}: {want} {}", losses[at]);
    }
}

#[test]
fn rope_layouts_agree_when_rows_are_permuted() {
    let base = config(vec![FULL]);
    let mut permuted = source(ModelConfig { rope_layout: RopeLayout::Halves, ..base.clone() });
    let half = base.head_dim / 2;
    for role in [WeightRole::QProj, WeightRole::KProj] {
        let id = WeightId::layer(0, role);
        let old = &permuted.weights[&id];
        let (n_rows, n_cols) = (old.n_rows(), old.n_cols());
        let values = old.to_f32();
        let mut new = vec![0.0; values.len()];
        for row in 0..n_rows {
            let (head, at) = (row / base.head_dim, row % base.head_dim);
            let to = head * base.head_dim + at / 2 + (at % 2) * half;
            new[to * n_cols..(to + 1) * n_cols].copy_from_slice(&values[row * n_cols..(row + 1) * n_cols]);
        }
        permuted.weights.insert(id, common::matrix(n_rows, n_cols, &new));
    }
    let run = |engine: Engine| {
        let mut session = engine.session(16, KvDType::F32).unwrap();
        session.extend(&TOKENS, &never).unwrap().to_vec()
    };
    let halves = run(Engine::new(Arc::new(permuted), EngineOptions { n_threads: 1 }).unwrap());
    assert!(largest_gap(&run(engine(base, 1)), &halves) < 1e-5);
}

#[test]
fn rope_scaling_changes_far_positions_and_llama3_keeps_high_frequencies() {
    let with = |rope_scaling| {
        let engine = engine(ModelConfig { rope_scaling, ..config(vec![FULL]) }, 1);
        let mut session = engine.session(16, KvDType::F32).unwrap();
        session.extend(&TOKENS, &never).unwrap().to_vec()
    };
    let plain = with(RopeScaling::None);
    let linear = with(RopeScaling::Linear { factor: 4.0 });
    let llama3 = |original_max_position_embeddings| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings,
    };
    assert!(1e-4 < largest_gap(&plain, &linear));
    assert!(largest_gap(&plain, &with(llama3(100_000_000))) < 1e-6, "all wavelengths are short then");
    assert!(1e-4 < largest_gap(&plain, &with(llama3(64))));
    let unit = RopeScaling::Factors(vec![1.0; 4]);
    assert_eq!(plain, with(unit));
}

#[test]
fn misuse_is_an_error_and_leaves_the_session_as_it_was() {
    let engine = engine(config(vec![FULL]), 1);
    let mut session = engine.session(4, KvDType::F32).unwrap();
    session.extend(&[1, 2, 3], &never).unwrap();
    assert!(matches!(
        session.extend(&[1, 2], &never),
        Err(EngineError::ContextFull { asked: 2, free: 1, .. })
    ));
    assert!(matches!(session.extend(&[50], &never), Err(EngineError::TokenOutOfRange { token: 50, .. })));
    assert!(matches!(session.extend(&[], &never), Err(EngineError::Empty)));
    assert!(matches!(session.extend(&[1], &|| true), Err(EngineError::Cancelled)));
    assert_eq!(session.len(), 3);
    let first = session.extend(&[9], &never).unwrap().to_vec();
    session.truncate(3);
    assert_eq!(session.extend(&[9], &never).unwrap(), first, "truncate must forget exactly the last token");
    assert!(matches!(engine.score(&[1], &never), Err(EngineError::Empty)));
    assert!(engine.session(0, KvDType::F32).is_err());
}

#[test]
fn missing_and_misshapen_weights_are_named() {
    let mut missing = source(config(vec![FULL]));
    missing.weights.remove(&WeightId::layer(0, WeightRole::UpProj));
    let error = Engine::new(Arc::new(missing), EngineOptions { n_threads: 1 }).err().unwrap().to_string();
    assert_eq!(error, "the model has no weight `layer 0 UpProj`");
    let mut wrong = source(config(vec![FULL]));
    wrong.weights.insert(WeightId::layer(0, WeightRole::KProj), common::matrix(1, 32, &[0.0; 32]));
    let error = Engine::new(Arc::new(wrong), EngineOptions { n_threads: 1 }).err().unwrap().to_string();
    assert_eq!(error, "weight `layer 0 KProj` is [1, 32], expected [16, 32]");
}

#[test]
fn nan_logits_are_an_error() {
    let mut broken = source(config(vec![FULL]));
    broken.weights.insert(WeightId::global(WeightRole::FinalNorm), common::matrix(1, 32, &[f32::NAN; 32]));
    let engine = Engine::new(Arc::new(broken), EngineOptions { n_threads: 1 }).unwrap();
    let mut session = engine.session(4, KvDType::F32).unwrap();
    assert!(matches!(session.extend(&[1], &never), Err(EngineError::NotFinite { .. })));
    assert!(engine.score(&[1, 2, 3], &never).is_err());
}
