//! The loop over the real engine on a tiny random model.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use secateur_engine::{Engine, EngineOptions, Session};
use secateur_generate::{
    FinishReason, GenerateError, GenerateEvent, GenerateRequest, Generation, SamplingParams, Sequence, Step,
    TextDecoder,
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

/// The answers of generations that take turns, each over a sequence of its own; the cache of the last one is lost
/// after `lost_after` rounds.
fn interleaved(engine: &Engine, requests: &[GenerateRequest], lost_after: usize) -> Vec<String> {
    let vocab_size = engine.config().vocab_size;
    let mut running: Vec<_> = requests
        .iter()
        .map(|request| {
            let generation =
                Generation::new(request.clone(), Numbers, None, vocab_size, CONTEXT_LEN).unwrap();
            (generation, Sequence::new(session(engine)), String::new(), false)
        })
        .collect();
    for round in 0..100 {
        for (generation, sequence, text, is_over) in running.iter_mut().filter(|running| !running.3) {
            let step = generation.step(sequence, &|| false, &mut |event| {
                if let GenerateEvent::Delta { text: more, .. } = event {
                    text.push_str(&more);
                }
                ControlFlow::Continue(())
            });
            *is_over = matches!(step.unwrap(), Step::Finished(_));
        }
        if let (true, Some(last)) = (round == lost_after, running.last_mut()) {
            // What comes in its place holds another answer, longer than this one.
            let mut other = Sequence::new(session(engine));
            let prompt = vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3];
            run(&mut other, &GenerateRequest { prompt, max_tokens: 9, ..GenerateRequest::default() });
            last.1 = other;
        }
    }
    assert!(running.iter().all(|running| running.3), "all came to an end");
    running.into_iter().map(|running| running.2).collect()
}

#[test]
fn answers_that_take_turns_are_those_they_give_alone() {
    let (_dir, engine) = engine();
    let request = |seed: u64, prompt: &[u32]| GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens: 12 + seed as usize,
        sampling: SamplingParams { temperature: 0.8, seed, ..SamplingParams::default() },
        ..GenerateRequest::default()
    };
    let requests = [request(1, &[5, 6, 7]), request(2, &[9, 8]), request(3, &[3, 1, 4, 1, 5, 9])];
    let alone: Vec<String> =
        requests.iter().map(|request| run(&mut Sequence::new(session(&engine)), request).0).collect();
    assert_eq!(interleaved(&engine, &requests, usize::MAX), alone);
    assert_eq!(interleaved(&engine, &requests, 4), alone, "reading the tokens again changes nothing");
}

#[test]
fn a_cache_that_grows_and_shrinks_keeps_its_tokens() {
    let (_dir, engine) = engine();
    let request = GenerateRequest { prompt: (0..20).collect(), max_tokens: 30, ..GenerateRequest::default() };
    let want = run(&mut Sequence::new(session(&engine)), &request).0;
    for kv_dtype in [KvDType::F32, KvDType::F16] {
        let mut sequence = Sequence::new(engine.session(1, kv_dtype).unwrap());
        let mut generation =
            Generation::new(request.clone(), Numbers, None, engine.config().vocab_size, CONTEXT_LEN).unwrap();
        let mut text = String::new();
        loop {
            // As tight as can be, so that every step moves the cache.
            let places = generation.places_needed(&sequence).max(1);
            sequence.model_mut().resize(places).unwrap();
            let step = generation.step(&mut sequence, &|| false, &mut |event| {
                if let GenerateEvent::Delta { text: more, .. } = event {
                    text.push_str(&more);
                }
                ControlFlow::Continue(())
            });
            if matches!(step.unwrap(), Step::Finished(_)) {
                break;
            }
        }
        if kv_dtype == KvDType::F32 {
            assert_eq!(text, want);
        }
        assert_eq!(sequence.model().context_len(), 49);
        let fork = sequence.model().fork(30, 64).unwrap();
        let tokens = sequence.tokens()[..30].to_vec();
        let mut forked = Sequence::holding(fork, tokens.clone());
        assert_eq!((forked.model().len(), forked.tokens()), (30, &tokens[..]));
        if kv_dtype == KvDType::F32 {
            let (again, _, cached_tokens) = run(&mut forked, &request);
            assert_eq!((again, cached_tokens), (want.clone(), 19));
        }
        sequence.model_mut().resize(10).unwrap();
        assert_eq!(sequence.model().len(), 10);
        assert!(sequence.model_mut().resize(0).is_err());
    }
}
