use super::*;
use crate::{FinishReason, SamplingParams, Timings};
use secateur_engine::EngineError;
use secateur_tokenizer::TokenizerError;
use std::cell::Cell;
use std::time::Duration;

/// A model that answers every token with the next letter of a script: after reading `n` tokens it wants token
/// `script[n]`. Letters are their own ids.
struct Scripted {
    script: Vec<u32>,
    context_len: usize,
    held: Vec<u32>,
    read: usize,
    fail_at: Option<usize>,
    logits: Vec<f32>,
}

const VOCAB: usize = 128;

impl Scripted {
    fn new(prompt_len: usize, answer: &str, context_len: usize) -> Self {
        let mut script = vec![u32::from(b'?'); prompt_len - 1];
        script.extend(answer.bytes().map(u32::from));
        Self { script, context_len, held: Vec::new(), read: 0, fail_at: None, logits: vec![0.0; VOCAB] }
    }
}

impl TokenModel for Scripted {
    fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        for &token in tokens {
            if cancelled() {
                return Err(EngineError::Cancelled);
            }
            if self.context_len <= self.held.len() {
                return Err(EngineError::ContextFull { asked: 1, free: 0, context_len: self.context_len });
            }
            if self.fail_at == Some(self.held.len()) {
                return Err(EngineError::NotFinite { what: "logits" });
            }
            self.held.push(token);
            self.read += 1;
        }
        self.logits.fill(0.0);
        let next = self.script.get(self.held.len() - 1).copied().unwrap_or(u32::from(b'.'));
        self.logits[next as usize] = 10.0;
        Ok(&self.logits)
    }

    fn len(&self) -> usize {
        self.held.len()
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn truncate(&mut self, len: usize) {
        self.held.truncate(len);
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }
}

/// Ids are ASCII, but `<` and `>` are the two bytes of `é`.
#[derive(Default)]
struct Ascii {
    open: bool,
}

impl TextDecoder for Ascii {
    fn push(&mut self, token: u32, out: &mut String) -> Result<(), GenerateError> {
        match char::from_u32(token) {
            Some('<') => self.open = true,
            Some('>') => {
                self.open = false;
                out.push('é');
            }
            Some('!') => {
                let source = TokenizerError::TokenOutOfRange { id: token, vocab_size: VOCAB };
                return Err(GenerateError::Decode { token, source });
            }
            Some(c) => out.push(c),
            None => {}
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut String) {
        if std::mem::take(&mut self.open) {
            out.push('\u{fffd}');
        }
    }
}

fn request(prompt: &str, max_tokens: usize) -> GenerateRequest {
    let prompt = prompt.bytes().map(u32::from).collect();
    GenerateRequest { prompt, max_tokens, stop_tokens: vec![u32::from(b'$')], ..GenerateRequest::default() }
}

type Outcome = Result<Finished, GenerateError>;

fn run(sequence: &mut Sequence<Scripted>, request: &GenerateRequest) -> (Vec<GenerateEvent>, Outcome) {
    let mut events = Vec::new();
    let outcome = sequence.generate(request, &mut Ascii::default(), &|| false, &mut |event| {
        events.push(event);
        ControlFlow::Continue(())
    });
    (events, outcome)
}

fn text(events: &[GenerateEvent]) -> String {
    let delta = |event: &GenerateEvent| match event {
        GenerateEvent::Delta { text, .. } => text.clone(),
        GenerateEvent::Prefilled { .. } => String::new(),
    };
    events.iter().map(delta).collect()
}

#[test]
fn answers_end_for_the_right_reason() {
    struct Case {
        answer: &'static str,
        max_tokens: usize,
        stops: &'static [&'static str],
        text: &'static str,
        reason: FinishReason,
        stop_string: Option<&'static str>,
        tokens: usize,
    }
    use FinishReason::{Length, Stop};
    let cases = [
        Case {
            answer: "hello$",
            max_tokens: 50,
            stops: &[],
            text: "hello",
            reason: Stop,
            stop_string: None,
            tokens: 6,
        },
        Case {
            answer: "hello$",
            max_tokens: 3,
            stops: &[],
            text: "hel",
            reason: Length,
            stop_string: None,
            tokens: 3,
        },
        Case {
            answer: "hello$",
            max_tokens: 5,
            stops: &[],
            text: "hello",
            reason: Length,
            stop_string: None,
            tokens: 5,
        },
        Case {
            answer: "hello",
            max_tokens: 0,
            stops: &[],
            text: "",
            reason: Length,
            stop_string: None,
            tokens: 0,
        },
        Case { answer: "$", max_tokens: 9, stops: &[], text: "", reason: Stop, stop_string: None, tokens: 1 },
        Case {
            answer: "a<>b$",
            max_tokens: 9,
            stops: &[],
            text: "aéb",
            reason: Stop,
            stop_string: None,
            tokens: 5,
        },
        Case {
            answer: "a<>b$",
            max_tokens: 2,
            stops: &[],
            text: "a\u{fffd}",
            reason: Length,
            stop_string: None,
            tokens: 2,
        },
        Case {
            answer: "one END two",
            max_tokens: 50,
            stops: &["END"],
            text: "one ",
            reason: Stop,
            stop_string: Some("END"),
            tokens: 7,
        },
        Case {
            answer: "one EN$",
            max_tokens: 50,
            stops: &["END"],
            text: "one EN",
            reason: Stop,
            stop_string: None,
            tokens: 7,
        },
        Case {
            answer: "one END",
            max_tokens: 6,
            stops: &["END"],
            text: "one EN",
            reason: Length,
            stop_string: None,
            tokens: 6,
        },
    ];
    for case in cases {
        let mut sequence = Sequence::new(Scripted::new(2, case.answer, 100));
        let stop_strings = case.stops.iter().map(|s| (*s).to_owned()).collect();
        let (events, outcome) =
            run(&mut sequence, &GenerateRequest { stop_strings, ..request("hi", case.max_tokens) });
        let finished = outcome.unwrap();
        assert_eq!(text(&events), case.text, "{}", case.answer);
        assert_eq!(finished.reason, case.reason, "{}", case.answer);
        assert_eq!(finished.stop_string.as_deref(), case.stop_string, "{}", case.answer);
        assert_eq!(finished.usage.completion_tokens, case.tokens, "{}", case.answer);
        assert_eq!(events[0], GenerateEvent::Prefilled { prompt_tokens: 2, cached_tokens: 0 });
    }
}

#[test]
fn text_is_streamed_token_by_token() {
    let mut sequence = Sequence::new(Scripted::new(2, "a<>bc$", 100));
    let (events, _) = run(&mut sequence, &request("hi", 9));
    let deltas: Vec<String> = events[1..].iter().map(|event| text(std::slice::from_ref(event))).collect();
    assert_eq!(deltas, ["a", "é", "b", "c"]);
}

#[test]
fn a_full_context_ends_with_length() {
    let mut sequence = Sequence::new(Scripted::new(4, "abcdefgh", 6));
    let (events, outcome) = run(&mut sequence, &request("1234", 50));
    // Two answers fit into the context and the one after them needs no place.
    assert_eq!(text(&events), "abc");
    assert_eq!(outcome.unwrap().reason, FinishReason::Length);
    assert_eq!(sequence.model().len(), 6);
}

#[test]
fn prompts_that_cannot_run_are_refused_before_anything_runs() {
    let mut sequence = Sequence::new(Scripted::new(4, "a", 4));
    assert!(matches!(run(&mut sequence, &request("", 1)).1, Err(GenerateError::EmptyPrompt)));
    let (events, outcome) = run(&mut sequence, &request("1234", 1));
    let error = outcome.unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { prompt_tokens: 4, context_len: 4 }), "{error}");
    assert!(events.is_empty());
    assert_eq!(sequence.model().read, 0);
    let hot = SamplingParams { temperature: 3.0, ..SamplingParams::default() };
    let (_, outcome) = run(&mut sequence, &GenerateRequest { sampling: hot, ..request("12", 1) });
    assert!(matches!(outcome, Err(GenerateError::Param(_))));
}

#[test]
fn a_repeated_prefix_is_not_read_again() {
    let mut sequence = Sequence::new(Scripted::new(3, "xyz$", 100));
    run(&mut sequence, &request("abc", 10)).1.unwrap();
    assert_eq!(sequence.tokens(), "abcxyz".bytes().map(u32::from).collect::<Vec<_>>());
    let read = sequence.model().read;
    // The next turn of the chat: the same, the answer, and four tokens.
    let (events, outcome) = run(&mut sequence, &request("abcxyzmore", 1));
    assert_eq!(events[0], GenerateEvent::Prefilled { prompt_tokens: 10, cached_tokens: 6 });
    assert_eq!(outcome.unwrap().usage.cached_tokens, 6);
    assert_eq!(sequence.model().read, read + 4);
    // The same again: the last token must be read for its logits.
    let (events, _) = run(&mut sequence, &request("abcxyzmore", 1));
    assert_eq!(events[0], GenerateEvent::Prefilled { prompt_tokens: 10, cached_tokens: 9 });
    // Another text.
    let (events, _) = run(&mut sequence, &request("qbc", 1));
    assert_eq!(events[0], GenerateEvent::Prefilled { prompt_tokens: 3, cached_tokens: 0 });
    assert_eq!(sequence.model().held, sequence.tokens());
    sequence.clear();
    assert!(sequence.model().is_empty() && sequence.tokens().is_empty());
}

#[test]
fn cancelling_takes_at_most_one_token() {
    let mut sequence = Sequence::new(Scripted::new(2, "abcdefghijklmnop", 100));
    let stop = Cell::new(false);
    let mut events = Vec::new();
    let outcome =
        sequence.generate(&request("hi", 16), &mut Ascii::default(), &|| stop.get(), &mut |event| {
            events.push(event);
            stop.set(text(&events).len() == 3);
            ControlFlow::Continue(())
        });
    let finished = outcome.unwrap();
    assert_eq!((text(&events).as_str(), finished.reason), ("abc", FinishReason::Cancelled));
    assert_eq!(finished.usage.completion_tokens, 3);
    assert_eq!(sequence.model().held, sequence.tokens());
}

#[test]
fn a_receiver_that_is_gone_cancels() {
    for n_wanted in 0..4 {
        let mut sequence = Sequence::new(Scripted::new(2, "abcdefghijklmnop", 100));
        let mut n_events = 0;
        let outcome = sequence.generate(&request("hi", 16), &mut Ascii::default(), &|| false, &mut |_| {
            n_events += 1;
            if n_wanted < n_events { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(outcome.unwrap().reason, FinishReason::Cancelled);
        assert_eq!(n_events, n_wanted + 1);
    }
}

#[test]
fn errors_leave_a_usable_sequence() {
    let mut model = Scripted::new(3, "xyz$", 100);
    model.fail_at = Some(1);
    let mut sequence = Sequence::new(model);
    let (_, outcome) = run(&mut sequence, &request("abc", 5));
    assert!(matches!(outcome, Err(GenerateError::Model(EngineError::NotFinite { .. }))));
    assert_eq!(sequence.tokens(), [u32::from(b'a')]);
    sequence.model.fail_at = None;
    let (events, outcome) = run(&mut sequence, &request("abc", 5));
    assert_eq!(events[0], GenerateEvent::Prefilled { prompt_tokens: 3, cached_tokens: 1 });
    assert_eq!((text(&events).as_str(), outcome.unwrap().reason), ("xyz", FinishReason::Stop));

    let mut sequence = Sequence::new(Scripted::new(1, "ab!c$", 100));
    let (events, outcome) = run(&mut sequence, &request("q", 9));
    assert_eq!(text(&events), "ab");
    assert!(matches!(outcome, Err(GenerateError::Decode { token: 33, .. })));
}

#[test]
fn logprobs_come_with_their_text() {
    let mut sequence = Sequence::new(Scripted::new(1, "a<>ENx$", 100));
    let request =
        GenerateRequest { logprobs: Some(2), stop_strings: vec!["END".to_owned()], ..request("q", 20) };
    let (events, _) = run(&mut sequence, &request);
    let deltas: Vec<(String, Vec<u32>)> = events[1..]
        .iter()
        .map(|event| match event {
            GenerateEvent::Delta { text, logprobs } => {
                assert!(logprobs.iter().all(|l| l.top.len() == 2 && l.top[0] == l.chosen));
                (text.clone(), logprobs.iter().map(|l| l.chosen.token).collect())
            }
            GenerateEvent::Prefilled { .. } => unreachable!("only one comes, first"),
        })
        .collect();
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(
        deltas,
        [("a".to_owned(), ids("a")), ("é".to_owned(), ids("<>")), ("ENx".to_owned(), ids("ENx"))]
    );
}

#[test]
fn timings_are_derived_from_the_moments() {
    let ms = Duration::from_millis;
    let timings = Timings::measure(100, ms(50), ms(60), ms(160), 11);
    assert_eq!(timings.ttft_ms, 60.0);
    assert_eq!(timings.prefill_ms, 50.0);
    assert!((timings.tpot_ms - 10.0).abs() < 1e-9);
    assert!((timings.prompt_tokens_per_s - 2000.0).abs() < 1e-6);
    assert!((timings.tokens_per_s - 100.0).abs() < 1e-6);
    assert_eq!(Timings::measure(0, ms(0), ms(0), ms(0), 0), Timings::default());
}
