//! The loop over the real engine on a tiny random model.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use secateur_engine::{Engine, EngineOptions, Session};
use secateur_generate::{
    FinishReason, GenerateError, GenerateEvent, GenerateRequest, SamplingParams, Sequence, TextDecoder,
};
use secateur_model::KvDType;
use secateur_model_file::ModelFile;
use secateur_test_support::TinyModel;
use std::ops::ControlFlow;
use std::sync::Arc;

const CONTEXT_LEN: usize = 64;

fn engine() -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let model = ModelFile::open(&TinyModel::with_layers(2).write_to(dir.path())).unwrap();
    let engine = Engine::new(Arc::new(model), EngineOptions { n_threads: 2 }).unwrap();
    (dir, engine)
}

fn session(engine: &Engine) -> Session {
    engine.session(CONTEXT_LEN, KvDType::F32).unwrap()
}

/// Writes ids as numbers.
struct Numbers;

impl TextDecoder for Numbers {
    fn push(&mut self, token: u32, out: &mut String) -> Result<(), GenerateError> {
        out.push_str(&format!("{token} "));
        Ok(())
    }

    fn finish(&mut self, _out: &mut String) {}
}

/// The answer, why it ended, and how much of the prompt was cached.
fn run(sequence: &mut Sequence<Session>, request: &GenerateRequest) -> (String, FinishReason, usize) {
    let mut text = String::new();
    let finished = sequence
        .generate(request, &mut Numbers, &|| false, &mut |event| {
            if let GenerateEvent::Delta { text: more, .. } = event {
                text.push_str(&more);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    (text, finished.reason, finished.usage.cached_tokens)
}

/// The likeliest continuation, by hand.
fn greedy(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut input = prompt.to_vec();
    for _ in 0..n {
        let logits = session.extend(&input, &|| false).unwrap();
        let best = (1..logits.len()).fold(0, |best, idx| if logits[best] < logits[idx] { idx } else { best });
        tokens.push(best as u32);
        input = vec![best as u32];
    }
    tokens
}

#[test]
fn greedy_answers_are_those_of_the_model_and_fill_the_context() {
    let (_dir, engine) = engine();
    let prompt: Vec<u32> = vec![3, 1, 4, 1, 5, 9, 2, 6];
    // Every place but the last answer's is used.
    let n = CONTEXT_LEN - prompt.len() + 1;
    let want: String =
        greedy(&mut session(&engine), &prompt, n).iter().map(|token| format!("{token} ")).collect();
    let mut sequence = Sequence::new(session(&engine));
    let request = GenerateRequest { prompt, max_tokens: 1000, ..GenerateRequest::default() };
    let (text, reason, cached_tokens) = run(&mut sequence, &request);
    assert_eq!((text, reason, cached_tokens), (want, FinishReason::Length, 0));
}

#[test]
fn a_seed_gives_the_same_text_from_the_same_cache() {
    let (_dir, engine) = engine();
    let sampling = SamplingParams { temperature: 1.0, top_p: 0.95, seed: 9, ..SamplingParams::default() };
    let request = GenerateRequest {
        prompt: vec![3, 1, 4, 1, 5],
        max_tokens: 20,
        sampling,
        ..GenerateRequest::default()
    };
    let mut sequence = Sequence::new(session(&engine));
    let (fresh, ..) = run(&mut sequence, &request);
    let (again, _, cached_tokens) = run(&mut sequence, &request);
    assert_eq!(cached_tokens, 4, "all but the last token of the prompt");
    let (third, ..) = run(&mut sequence, &request);
    assert_eq!(again, third);
    assert_eq!(fresh, run(&mut Sequence::new(session(&engine)), &request).0);
    let other = GenerateRequest {
        sampling: SamplingParams { seed: 10, ..request.sampling.clone() },
        ..request.clone()
    };
    assert_ne!(run(&mut sequence, &other).0, again);
}

#[test]
fn a_cancelled_prompt_leaves_a_sequence_that_answers_as_before() {
    let (_dir, engine) = engine();
    let request = GenerateRequest { prompt: (0..40).collect(), max_tokens: 8, ..GenerateRequest::default() };
    let mut sequence = Sequence::new(session(&engine));
    let finished =
        sequence.generate(&request, &mut Numbers, &|| true, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((finished.reason, finished.usage.completion_tokens), (FinishReason::Cancelled, 0));
    let want = run(&mut Sequence::new(session(&engine)), &request);
    assert_eq!(run(&mut sequence, &request), want);
}
