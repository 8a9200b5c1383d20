//! The reference model against an independent f32 run: see `tests/golden/make_reference.py`.
//! Needs the 93 MB reference model; says so and passes where it is not there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

use secateur_engine::{Engine, EngineOptions};
use secateur_model::KvDType;
use secateur_model_file::ModelFile;
use serde_json::Value;
use std::sync::Arc;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    u32::try_from(best).unwrap()
}

#[test]
fn greedy_tokens_equal_an_independent_run() {
    let Some(path) = secateur_test_support::reference_model() else { return };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/reference_greedy.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let source = Arc::new(ModelFile::open(&path).unwrap());
    let engine = Engine::new(source, EngineOptions { n_threads: 2 }).unwrap();
    for case in cases.as_array().unwrap() {
        let (prompt, want) = (ids(&case["prompt_ids"]), ids(&case["new_ids"]));
        let mut session = engine.session(prompt.len() + want.len(), KvDType::F32).unwrap();
        let mut next = argmax(session.extend(&prompt, &|| false).unwrap());
        let mut got = vec![next];
        while got.len() < want.len() {
            next = argmax(session.extend(&[next], &|| false).unwrap());
            got.push(next);
        }
        assert_eq!(got, want, "{}", case["prompt"]);
    }
}
