//! Chooses the next token from logits.
//!
//! Every cut (top-k, top-p, min-p) becomes a bound on the rank of a token: more logit first, lower id among equals.
//! Bounds are found by selection, never by sorting the vocabulary, and the draw walks the survivors in order of id,
//! so that a seed gives the same token whatever order the selection left behind.
//!
//! Memory: two buffers of `vocab_size` candidates, allocated once.

use crate::{GenerateError, ParamError, Rng, SamplingParams, TokenSet};
use secateur_engine::argmax;
use std::cmp::Ordering;
use std::collections::HashMap;

/// Below this many candidates a nucleus is found by sorting them.
const SMALL_NUCLEUS: usize = 32;

/// A token that may be chosen; `weight` is its logit, later its probability without the common factor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    weight: f32,
    token: u32,
}

impl Candidate {
    /// Likelier first, lower id first among equals: a total order, so every bound cuts at one place.
    fn rank(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// Chooses tokens by [`SamplingParams`] and remembers what penalties need.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    rng: Rng,
    /// Times each token was generated; 0 when only the prompt has it.
    seen: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for logits of `vocab_size`.
    /// # Errors
    /// [`ParamError`] when a setting is out of its range.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self, ParamError> {
        params.validate(vocab_size)?;
        let rng = Rng::new(params.seed);
        Ok(Self {
            params,
            vocab_size,
            rng,
            seen: HashMap::new(),
            candidates: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Remembers tokens of the prompt: the repetition penalty applies to them, the others do not.
    pub fn observe_prompt(&mut self, tokens: &[u32]) {
        if self.params.repetition_penalty != 1.0 {
            for &token in tokens {
                self.seen.entry(token).or_default();
            }
        }
    }

    /// Remembers a generated token.
    pub fn accept(&mut self, token: u32) {
        let params = &self.params;
        let needed = params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0;
        if needed {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Chooses a token from `logits`: `[vocab_size]`.
    /// # Errors
    /// [`GenerateError::LogitCount`] for another vocabulary; [`GenerateError::NotFinite`] when a logit is NaN or
    /// positive infinity, or when no token is possible.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        self.choose(logits, None)
    }

    /// Chooses a token of `allowed` from `logits`: `[vocab_size]`.
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_among(&mut self, logits: &[f32], allowed: &TokenSet) -> Result<u32, GenerateError> {
        self.choose(logits, Some(allowed))
    }

    fn choose(&mut self, logits: &[f32], allowed: Option<&TokenSet>) -> Result<u32, GenerateError> {
        if logits.len() != self.vocab_size {
            return Err(GenerateError::LogitCount { got: logits.len(), vocab_size: self.vocab_size });
        }
        // Negative infinity is a legal logit: a token that cannot be.
        // Without early exits the loop is one of vectors.
        if logits.iter().fold(false, |bad, logit| bad | logit.is_nan() | (*logit == f32::INFINITY)) {
            return Err(GenerateError::NotFinite);
        }
        let is_adjusted = !self.seen.is_empty() || !self.params.logit_bias.is_empty();
        if self.takes_likeliest() && allowed.is_none() && !is_adjusted {
            let best = argmax(logits).filter(|&best| logits[best].is_finite());
            return best.and_then(|best| u32::try_from(best).ok()).ok_or(GenerateError::NotFinite);
        }
        self.candidates.clear();
        let pairs = (0u32..).zip(logits);
        self.candidates.extend(pairs.map(|(token, &weight)| Candidate { weight, token }));
        self.adjust();
        if let Some(allowed) = allowed {
            self.candidates.retain(|candidate| allowed.contains(candidate.token));
        }
        let is_narrowed = allowed.is_some() || !self.params.logit_bias.is_empty();
        if is_narrowed && self.candidates.iter().all(|candidate| candidate.weight == f32::NEG_INFINITY) {
            return Err(GenerateError::NothingAllowed);
        }
        if self.takes_likeliest() {
            return likeliest(&self.candidates).ok_or(GenerateError::NotFinite);
        }
        self.keep_top_k();
        self.weigh()?;
        self.keep_top_p();
        self.keep_min_p();
        Ok(draw(&self.candidates, self.rng.next_unit()))
    }

    fn takes_likeliest(&self) -> bool {
        self.params.temperature == 0.0 || self.params.top_k == 1
    }

    /// Applies penalties and bias to the logits of the tokens concerned. The candidates still stand at their ids.
    fn adjust(&mut self) {
        let params = &self.params;
        // Each token is touched once, so the order of the map does not matter.
        for (&token, &generated) in &self.seen {
            let Some(candidate) = self.candidates.get_mut(token as usize) else { continue };
            let logit = candidate.weight;
            let repeated = if 0.0 < logit {
                logit / params.repetition_penalty
            } else {
                logit * params.repetition_penalty
            };
            let presence = if generated == 0 { 0.0 } else { params.presence_penalty };
            candidate.weight = repeated - presence - params.frequency_penalty * generated as f32;
        }
        for &(token, bias) in &params.logit_bias {
            let weight = &mut self.candidates[token as usize].weight;
            // As documented by OpenAI -100 bans the token; adding -100 alone would only make it rare.
            *weight = if bias <= -100.0 { f32::NEG_INFINITY } else { *weight + bias };
        }
    }

    fn keep_top_k(&mut self) {
        let top_k = self.params.top_k;
        if top_k == 0 || self.candidates.len() <= top_k {
            return;
        }
        self.scratch.clone_from(&self.candidates);
        let (_, &mut bound, _) = self.scratch.select_nth_unstable_by(top_k - 1, Candidate::rank);
        self.candidates.retain(|candidate| candidate.rank(&bound) != Ordering::Greater);
    }

    /// Turns logits into probabilities up to a common factor; the likeliest gets 1.
    fn weigh(&mut self) -> Result<(), GenerateError> {
        let max = self.candidates.iter().map(|c| c.weight).fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() {
            return Err(GenerateError::NotFinite);
        }
        let temperature = self.params.temperature;
        for candidate in &mut self.candidates {
            candidate.weight = ((candidate.weight - max) / temperature).exp();
        }
        Ok(())
    }

    fn keep_top_p(&mut self) {
        if self.params.top_p == 1.0 {
            return;
        }
        let mass = f64::from(self.params.top_p) * total(&self.candidates);
        self.scratch.clone_from(&self.candidates);
        if let Some(bound) = nucleus_bound(&mut self.scratch, mass) {
            self.candidates.retain(|candidate| candidate.rank(&bound) != Ordering::Greater);
        }
    }

    fn keep_min_p(&mut self) {
        // The likeliest weighs 1, so the bound is the setting itself.
        let min_p = self.params.min_p;
        if 0.0 < min_p {
            self.candidates.retain(|candidate| min_p <= candidate.weight);
        }
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// The token of most logit, the lowest id among equals; `None` when nothing is possible.
fn likeliest(candidates: &[Candidate]) -> Option<u32> {
    let best = candidates.iter().copied().reduce(|best, c| if best.weight < c.weight { c } else { best })?;
    best.weight.is_finite().then_some(best.token)
}

/// The last of the fewest best-ranked candidates that together weigh at least `mass`; reorders `candidates`.
///
/// Halves the range by selection and looks only into the half where the bound lies: `O(candidates)`.
fn nucleus_bound(candidates: &mut [Candidate], mass: f64) -> Option<Candidate> {
    let (mut from, mut to) = (0, candidates.len());
    let mut above = 0.0;
    while SMALL_NUCLEUS < to - from {
        let half = (to - from) / 2;
        candidates[from..to].select_nth_unstable_by(half, Candidate::rank);
        let with_half = above + total(&candidates[from..from + half]);
        if mass <= with_half {
            to = from + half;
        } else {
            above = with_half;
            from += half;
        }
    }
    let rest = &mut candidates[from..to];
    rest.sort_unstable_by(Candidate::rank);
    for candidate in rest.iter() {
        above += f64::from(candidate.weight);
        if mass <= above {
            return Some(*candidate);
        }
    }
    // Only rounding leads here: the mass is the sum of all.
    rest.last().copied()
}

/// The candidate at `unit` (`0.0..1.0`) of the total weight; `candidates` must hold one of positive weight.
fn draw(candidates: &[Candidate], unit: f64) -> u32 {
    let mut left = unit * total(candidates);
    let mut chosen = candidates[0].token;
    for candidate in candidates.iter().filter(|candidate| 0.0 < candidate.weight) {
        chosen = candidate.token;
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            break;
        }
    }
    chosen
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
