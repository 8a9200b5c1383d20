//! A decode step allocates nothing. Alone in its process, because the counter sees every thread.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod common;

use common::{FULL, config, source, stored_in};
use secateur_engine::{Engine, EngineOptions, Precision};
use secateur_model::{KvDType, LayerConfig};
use secateur_tensor::DType;
use secateur_tensor::kernels::heap::CountingAllocator;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn decode_steps_allocate_nothing() {
    let wide = LayerConfig { intermediate_size: 96, ..FULL };
    for (dtype, precision) in
        [(DType::F16, Precision::Int8), (DType::Q8_0, Precision::Int8), (DType::Q4_1, Precision::F32)]
    {
        let model = stored_in(source(config(vec![FULL, wide, FULL])), dtype);
        let engine = Engine::new(Arc::new(model), EngineOptions { n_threads: 2 }).unwrap();
        let mut session = engine.with_precision(precision).session(40, KvDType::F16).unwrap();
        session.extend(&[3, 1, 4, 15, 9], &|| false).unwrap();
        // The first step sizes what the prompt did not need.
        session.extend(&[2], &|| false).unwrap();
        let mut token = 2;
        let mut ten_steps = || {
            let before = ALLOCATOR.n_blocks();
            for _ in 0..10 {
                let logits = session.extend(&[token], &|| false).unwrap();
                token = u32::try_from(secateur_engine::argmax(logits).unwrap()).unwrap();
            }
            ALLOCATOR.n_blocks() - before
        };
        // All threads are counted: that of the test runner may allocate once, our steps would each time.
        let fewest = (0..3).map(|_| ten_steps()).min();
        assert_eq!(fewest, Some(0), "{dtype}, {precision:?}");
    }
    let before = ALLOCATOR.n_blocks();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(ALLOCATOR.n_blocks() - before, 1, "the counter must count");
}
