//! Layers that run alone and share their buffers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod common;

use common::{config, source};
use secateur_engine::{LayerBuffers, LayerRunner, Sublayer};
use secateur_model::LayerConfig;
use secateur_tensor::kernels::ThreadPool;
use std::sync::Arc;

const HIDDEN: usize = 32;

/// Hidden states of `n` tokens.
fn hidden(n: usize, seed: usize) -> Vec<f32> {
    (0..n * HIDDEN).map(|at| ((at * 37 + seed * 101) % 113) as f32 / 56.0 - 1.0).collect()
}

/// Two layers of different widths, windows of different lengths, results that are still read while others run: shared
/// buffers give what each runner gives alone.
#[test]
fn shared_buffers_change_no_byte() {
    let wide = LayerConfig { num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 48 };
    let narrow = LayerConfig { num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 24 };
    let source = source(config(vec![wide, narrow]));
    let pool = Arc::new(ThreadPool::new(2));
    let buffers = LayerBuffers::default();
    let shared = [0, 1].map(|idx| LayerRunner::with_buffers(&source, idx, pool.clone(), &buffers).unwrap());
    let mut held = Vec::new();
    for (round, n) in [7, 40, 3, 40, 12].into_iter().enumerate() {
        for (layer_idx, runner) in shared.iter().enumerate() {
            let rows = hidden(n, round + layer_idx);
            let alone = LayerRunner::new(&source, layer_idx, pool.clone()).unwrap();
            for sublayer in [Sublayer::Attn, Sublayer::Mlp] {
                let got = runner.run(sublayer, &rows).unwrap().unwrap();
                let want = alone.run(sublayer, &rows).unwrap().unwrap();
                held.push((got, want.output().to_vec(), want.inner().to_vec()));
            }
            let got = runner.run_mlp_inner(&rows).unwrap().unwrap();
            assert_eq!(got.inner(), alone.run_mlp_inner(&rows).unwrap().unwrap().inner());
        }
        if round == 2 {
            buffers.release();
        }
        for (got, output, inner) in &held {
            assert_eq!((got.output(), got.inner()), (&output[..], &inner[..]), "round {round}");
        }
        if round % 2 == 1 {
            held.clear();
        }
    }
}
