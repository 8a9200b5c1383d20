//! Logprobs of a chosen token and its likeliest alternatives.
//!
//! They describe the model, not the sampler: log-softmax of the raw logits, before penalties, bias and temperature.

/// A token and the logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The id.
    pub token: u32,
    /// Natural logarithm of the probability.
    pub logprob: f32,
}

/// The chosen token and the likeliest ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// What was chosen.
    pub chosen: TokenLogprob,
    /// The likeliest tokens, likeliest first; the lower id first among equals.
    pub top: Vec<TokenLogprob>,
}

/// Returns the logprob of `token` and of the `n_top` likeliest tokens under `logits`: `[vocab_size]`.
///
/// `token` must be an index of `logits`. `O(vocab_size + n_top * updates)` time, `O(n_top)` memory.
/// # Panics
/// When `token` is out of range.
#[must_use]
pub fn token_logprobs(logits: &[f32], token: u32, n_top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n_top + 1);
    for (candidate, &logit) in (0u32..).zip(logits) {
        let enters = top.len() < n_top || top.last().is_some_and(|&(_, lowest)| lowest < logit);
        if enters {
            let place = top.partition_point(|&(_, other)| logit <= other);
            top.insert(place, (candidate, logit));
            top.truncate(n_top);
        }
    }
    TokenLogprobs {
        chosen: TokenLogprob { token, logprob: logprob(logits[token as usize]) },
        top: top.into_iter().map(|(token, logit)| TokenLogprob { token, logprob: logprob(logit) }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_the_log_softmax() {
        // Probabilities 1/10, 4/10, 3/10, 2/10.
        let logits: Vec<f32> = [1.0f32, 4.0, 3.0, 2.0].iter().map(|p| p.ln() + 17.0).collect();
        let got = token_logprobs(&logits, 3, 2);
        assert!((got.chosen.logprob - 0.2f32.ln()).abs() < 1e-5, "{got:?}");
        let tokens: Vec<u32> = got.top.iter().map(|t| t.token).collect();
        assert_eq!(tokens, [1, 2]);
        assert!((got.top[0].logprob - 0.4f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn equals_come_in_order_of_id_and_counts_are_kept() {
        let logits = [1.0f32; 7];
        for n_top in 0..10 {
            let got = token_logprobs(&logits, 0, n_top);
            let tokens: Vec<u32> = got.top.iter().map(|t| t.token).collect();
            let want: Vec<u32> = (0..n_top.min(7) as u32).collect();
            assert_eq!(tokens, want, "n_top {n_top}");
        }
    }
}
