//! Rounded activations: close to exact ones, and the same bits however many tokens come at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod common;

use common::{FULL, config, source, stored_in};
use secateur_engine::{Engine, EngineOptions, MAX_EACH, Precision};
use secateur_model::{KvDType, LayerConfig, ModelConfig};
use secateur_tensor::DType;
use std::sync::Arc;

const TOKENS: [u32; 9] = [3, 1, 4, 15, 9, 26, 5, 35, 8];
const WIDE: LayerConfig = LayerConfig { intermediate_size: 96, ..FULL };

fn engine(dtype: DType) -> Engine {
    engine_of(8, dtype)
}

fn engine_of(head_dim: usize, dtype: DType) -> Engine {
    let config = ModelConfig { head_dim, ..config(vec![WIDE, FULL]) };
    let source = stored_in(source(config), dtype);
    Engine::new(Arc::new(source), EngineOptions { n_threads: 2 }).unwrap()
}

fn never() -> bool {
    false
}

#[test]
fn rounded_activations_change_logits_a_little() {
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        let logits = |precision| {
            let engine = engine(dtype).with_precision(precision);
            assert_eq!(engine.precision(), precision);
            let mut session = engine.session(16, KvDType::F32).unwrap();
            let prompt = session.extend(&TOKENS, &never).unwrap().to_vec();
            let step = session.extend(&[7], &never).unwrap().to_vec();
            let losses = engine.score(&TOKENS, &never).unwrap();
            [prompt, step, losses]
        };
        for (exact, rounded) in logits(Precision::F32).iter().zip(logits(Precision::Int8)) {
            let largest = exact.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
            let gap = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 0.03 * largest, "{dtype}: off by {gap} of {largest}");
            assert!(0.0 < gap, "{dtype}: nothing was rounded");
        }
    }
}

#[test]
fn logits_after_each_token_are_the_bits_of_single_steps() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        for kv_dtype in KvDType::ALL {
            let engine = engine_of(32, dtype).with_precision(Precision::Int8);
            let mut single = engine.session(32, kv_dtype).unwrap();
            let mut each = engine.session(32, kv_dtype).unwrap();
            for session in [&mut single, &mut each] {
                session.extend(&TOKENS, &never).unwrap();
            }
            for n in 1..=MAX_EACH {
                let tokens = &TOKENS[..n];
                let want: Vec<f32> = tokens
                    .iter()
                    .flat_map(|&token| single.extend(&[token], &never).unwrap().to_vec())
                    .collect();
                let got = each.extend_each(tokens, &never).unwrap();
                let same = got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits());
                assert!(same && got.len() == want.len(), "{dtype}, {n} tokens at once");
                single.truncate(TOKENS.len());
                each.truncate(TOKENS.len());
            }
        }
    }
}

#[test]
fn rounded_keys_and_values_change_logits_a_little_and_survive_a_change_of_context() {
    let logits = |kv_dtype| {
        let mut session = engine_of(32, DType::F32).session(16, kv_dtype).unwrap();
        session.extend(&TOKENS, &never).unwrap();
        session.resize(24).unwrap();
        session.extend(&[7], &never).unwrap().to_vec()
    };
    let exact = logits(KvDType::F32);
    let largest = exact.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    for (kv_dtype, bound) in [(KvDType::F16, 1e-3), (KvDType::Q8_0, 1e-2)] {
        let rounded = logits(kv_dtype);
        let gap = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(0.0 < gap && gap < bound * largest, "{kv_dtype:?}: off by {gap} of {largest}");
    }
}

#[test]
fn heads_that_are_no_whole_groups_are_not_kept_as_q8_0() {
    let error = engine(DType::F32).session(16, KvDType::Q8_0).err().unwrap();
    assert!(error.to_string().contains("choose f16"), "{error}");
}
