//! Speculative decoding (Leviathan et al., arXiv 2211.17192) in its exact form: a small model drafts, the base reads its
//! guesses in one pass, and the logits are always the base's own.
//!
//! [`Drafted`] is a [`TokenModel`] like any other: a token that was guessed finds its logits computed already, any other
//! starts a new round. Samplers, stop conditions and grammars therefore see exactly what they would see without drafts,
//! and so the answer is the same; only the time differs.
//!
//! Memory: a second KV cache, and the logits of [`MAX_EACH`] tokens.

use crate::{BatchModel, TokenModel};
use secateur_engine::{EngineError, MAX_EACH, Session, argmax, log_sum_exp};

/// A guess the draft gives less than this ends the round: it would more likely be thrown away than save a step.
const MIN_CONFIDENCE: f32 = 0.5;

/// What became of guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Passes of the base that read a token and its guesses.
    pub rounds: u64,
    /// Guesses the base has read.
    pub guessed: u64,
    /// Guesses that became part of the answer.
    pub accepted: u64,
}

impl std::ops::AddAssign for DraftCounts {
    fn add_assign(&mut self, more: Self) {
        self.rounds += more.rounds;
        self.guessed += more.guessed;
        self.accepted += more.accepted;
    }
}

/// A base model with a smaller one that guesses ahead.
#[derive(Debug)]
pub struct Drafted<B, D> {
    base: B,
    draft: D,
    /// What the caller has added and not taken back. The caches may hold guesses behind it.
    tokens: Vec<u32>,
    /// The token of the round and the guesses behind it, as the base has read them.
    round: Vec<u32>,
    /// Tokens of the round that are in `tokens`; 0 when there is no round.
    used: usize,
    counts: DraftCounts,
}

impl<B: BatchModel, D: TokenModel> Drafted<B, D> {
    /// Joins two models of the same vocabulary; what their caches hold is forgotten.
    /// # Panics
    /// When their numbers of logits differ.
    #[must_use]
    pub fn new(mut base: B, mut draft: D) -> Self {
        assert_eq!(base.vocab_size(), draft.vocab_size(), "models of two vocabularies");
        base.truncate(0);
        draft.truncate(0);
        let tokens = Vec::with_capacity(base.context_len());
        let round = Vec::with_capacity(MAX_EACH);
        Self { base, draft, tokens, round, used: 0, counts: DraftCounts::default() }
    }

    /// What became of all guesses so far.
    #[must_use]
    pub fn counts(&self) -> DraftCounts {
        self.counts
    }

    /// What became of the guesses since this was last asked.
    pub fn take_counts(&mut self) -> DraftCounts {
        std::mem::take(&mut self.counts)
    }

    /// Takes back the guesses that did not come true.
    fn end_round(&mut self) {
        self.round.clear();
        self.used = 0;
        self.base.truncate(self.tokens.len());
        self.draft.truncate(self.tokens.len());
    }

    /// Reads `token` and the guesses behind it.
    fn start_round(&mut self, token: u32, cancelled: &dyn Fn() -> bool) -> Result<(), EngineError> {
        self.round.push(token);
        let room = self.base.context_len() - self.base.len();
        let most = MAX_EACH.min(room);
        if 1 < most && self.tokens.len() + most <= self.draft.context_len() {
            self.guess(most, cancelled)?;
        }
        self.base.extend_each(&self.round, cancelled)?;
        self.tokens.push(token);
        self.used = 1;
        self.counts.rounds += 1;
        self.counts.guessed += self.round.len() as u64 - 1;
        Ok(())
    }

    /// Lengthens the round by guesses to at most `most` tokens.
    fn guess(&mut self, most: usize, cancelled: &dyn Fn() -> bool) -> Result<(), EngineError> {
        // After a prompt or a round in which every guess came true the draft lags behind.
        let missing = &self.tokens[self.draft.len()..];
        if !missing.is_empty() {
            self.draft.extend(missing, cancelled)?;
        }
        while self.round.len() < most {
            let last = self.round[self.round.len() - 1];
            let logits = self.draft.extend(&[last], cancelled)?;
            let Some(best) = argmax(logits) else { break };
            let confidence = (logits[best] - log_sum_exp(logits)).exp();
            let Some(guess) = u32::try_from(best).ok().filter(|_| MIN_CONFIDENCE <= confidence) else {
                break;
            };
            self.round.push(guess);
        }
        Ok(())
    }
}

impl Drafted<Session, Session> {
    /// Gives both caches room for `context_len` tokens; see [`Session::resize`]. Guesses are forgotten.
    /// # Errors
    /// As [`Session::resize`].
    pub fn resize(&mut self, context_len: usize) -> Result<(), EngineError> {
        self.tokens.truncate(context_len);
        self.end_round();
        self.base.resize(context_len)?;
        self.draft.resize(context_len)
    }

    /// Two models with room for `context_len` tokens that have read the first `n_tokens` of these; see [`Session::fork`].
    /// # Errors
    /// As [`Session::fork`].
    pub fn fork(&self, n_tokens: usize, context_len: usize) -> Result<Self, EngineError> {
        let n_tokens = n_tokens.min(self.tokens.len());
        let base = self.base.fork(n_tokens, context_len)?;
        let draft = self.draft.fork(n_tokens, context_len)?;
        let tokens = self.tokens[..base.len()].to_vec();
        Ok(Self { base, draft, tokens, round: Vec::new(), used: 0, counts: DraftCounts::default() })
    }
}

impl<B: BatchModel, D: TokenModel> TokenModel for Drafted<B, D> {
    fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        let vocab_size = self.base.vocab_size();
        if let [token] = tokens {
            if 0 < self.used && self.round.get(self.used) == Some(token) {
                self.tokens.push(*token);
                self.used += 1;
                self.counts.accepted += 1;
            } else {
                self.end_round();
                if let Err(error) = self.start_round(*token, cancelled) {
                    self.end_round();
                    return Err(error);
                }
            }
            return Ok(&self.base.last_logits()[(self.used - 1) * vocab_size..self.used * vocab_size]);
        }
        self.end_round();
        self.base.extend(tokens, cancelled)?;
        self.tokens.extend_from_slice(tokens);
        Ok(self.base.last_logits())
    }

    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn context_len(&self) -> usize {
        self.base.context_len()
    }

    fn truncate(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.end_round();
        }
    }

    fn vocab_size(&self) -> usize {
        self.base.vocab_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prefers one token after each history; the rest is flat.
    #[derive(Debug)]
    struct Scripted {
        rule: fn(&[u32]) -> u32,
        tokens: Vec<u32>,
        context_len: usize,
        logits: Vec<f32>,
        calls: usize,
    }

    const VOCAB: usize = 10;

    impl Scripted {
        fn new(rule: fn(&[u32]) -> u32, context_len: usize) -> Self {
            Self { rule, tokens: Vec::new(), context_len, logits: Vec::new(), calls: 0 }
        }

        fn read(&mut self, tokens: &[u32], each: bool) -> Result<&[f32], EngineError> {
            let free = self.context_len - self.tokens.len();
            if free < tokens.len() {
                return Err(EngineError::ContextFull {
                    asked: tokens.len(),
                    free,
                    context_len: self.context_len,
                });
            }
            self.calls += 1;
            self.logits.clear();
            for (nth, &token) in tokens.iter().enumerate() {
                self.tokens.push(token);
                if each || nth + 1 == tokens.len() {
                    let mut row = [0.0; VOCAB];
                    row[(self.rule)(&self.tokens) as usize] = 9.0;
                    self.logits.extend(row);
                }
            }
            Ok(&self.logits)
        }
    }

    impl TokenModel for Scripted {
        fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
            if cancelled() { Err(EngineError::Cancelled) } else { self.read(tokens, false) }
        }
        fn len(&self) -> usize {
            self.tokens.len()
        }
        fn context_len(&self) -> usize {
            self.context_len
        }
        fn truncate(&mut self, len: usize) {
            self.tokens.truncate(len);
        }
        fn vocab_size(&self) -> usize {
            VOCAB
        }
    }

    impl BatchModel for Scripted {
        fn extend_each(
            &mut self,
            tokens: &[u32],
            cancelled: &dyn Fn() -> bool,
        ) -> Result<&[f32], EngineError> {
            if cancelled() { Err(EngineError::Cancelled) } else { self.read(tokens, true) }
        }
        fn last_logits(&self) -> &[f32] {
            &self.logits
        }
    }

    fn sum(tokens: &[u32]) -> u32 {
        (tokens.iter().sum::<u32>() * 7 + 3 + (tokens.len() * tokens.len()) as u32) % VOCAB as u32
    }

    /// As [`sum`], but wrong after every fourth token.
    fn mostly(tokens: &[u32]) -> u32 {
        (sum(tokens) + u32::from(tokens.len().is_multiple_of(4))) % VOCAB as u32
    }

    fn never(_: &[u32]) -> u32 {
        0
    }

    fn answer(model: &mut impl TokenModel, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut next = prompt.to_vec();
        (0..n)
            .map(|_| {
                let logits = model.extend(&next, &|| false).unwrap();
                next = vec![u32::try_from(argmax(logits).unwrap()).unwrap()];
                next[0]
            })
            .collect()
    }

    #[test]
    fn answers_are_those_of_the_base_whatever_the_draft_says() {
        let prompt = [1, 2, 3];
        let want = answer(&mut Scripted::new(sum, 64), &prompt, 40);
        for (name, rule, accepts) in
            [("same", sum as fn(&[u32]) -> u32, 30..40), ("near", mostly, 15..35), ("bad", never, 0..12)]
        {
            let mut model = Drafted::new(Scripted::new(sum, 64), Scripted::new(rule, 64));
            assert_eq!(answer(&mut model, &prompt, 40), want, "{name}");
            let counts = model.counts();
            assert!(accepts.contains(&(counts.accepted as usize)), "{name}: {counts:?}");
            assert!(counts.accepted <= counts.guessed, "{name}: {counts:?}");
            // One call for the prompt and one for each round: every accepted guess saves one.
            assert_eq!(model.base.calls as u64, 40 - counts.accepted, "{name}: {counts:?}");
        }
    }

    #[test]
    fn the_context_may_be_filled_to_its_end_and_a_small_draft_may_run_out() {
        let want = answer(&mut Scripted::new(sum, 20), &[1, 2], 19);
        for draft_len in [20, 5, 1] {
            let mut model = Drafted::new(Scripted::new(sum, 20), Scripted::new(sum, draft_len));
            assert_eq!(answer(&mut model, &[1, 2], 19), want, "{draft_len}");
            assert_eq!(model.len(), 20);
            assert!(matches!(model.extend(&[1], &|| false), Err(EngineError::ContextFull { .. })));
            assert_eq!(model.len(), 20);
        }
    }

    #[test]
    fn taking_back_and_cancelling_leave_what_counts() {
        let mut model = Drafted::new(Scripted::new(sum, 64), Scripted::new(sum, 64));
        let first = answer(&mut model, &[4, 4], 9);
        assert!(matches!(model.extend(&[1, 2], &|| true), Err(EngineError::Cancelled)));
        model.truncate(2);
        assert_eq!(model.len(), 2);
        assert!(matches!(model.extend(&[first[0]], &|| true), Err(EngineError::Cancelled)));
        assert_eq!(model.len(), 2);
        assert_eq!(answer(&mut model, &first[..1], 8), first[1..]);
    }
}
