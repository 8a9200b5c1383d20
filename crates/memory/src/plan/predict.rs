//! What a cut will cost, very roughly.

use secateur_model::{DType, KvDType, PruneRatio};

/// Share removed, and perplexity divided by that of the base: measured on WikiText with SmolLM2-135M-Instruct and the default
/// method, stored in F16, 16,384 tokens of calibration.
const MEASURED: [(f64, f64); 5] = [(0.0, 1.0), (0.1, 1.19), (0.2, 1.48), (0.3, 2.01), (0.5, 3.77)];

/// Expected perplexity of the result divided by that of the base.
///
/// The logarithm is interpolated between points measured on one small model, and continued beyond the last:
/// a guide to compare plans by, not a promise. Larger models lose less. Never falls when the ratio grows.
#[must_use]
pub fn predicted_perplexity_factor(ratio: PruneRatio) -> f64 {
    let ratio = ratio.get();
    let last = MEASURED.len() - 2;
    let upper = |at: usize| ratio <= MEASURED[at + 1].0;
    let at = (0..last).find(|&at| upper(at)).unwrap_or(last);
    let ((x0, y0), (x1, y1)) = (MEASURED[at], MEASURED[at + 1]);
    let share = (ratio - x0) / (x1 - x0);
    (y0.ln() + share * (y1.ln() - y0.ln())).exp()
}

/// Dtypes in which token table and output head may be stored anew, and perplexity divided by that of the base:
/// measured on WikiText with SmolLM2-135M-Instruct, whose one table is both. Its base has Q8_0; going there from
/// wider types was taken as free. The head's rounding errors are fed back; without that the factors were 1.057, 1.099.
pub(super) const TABLE_DTYPES: [(DType, f64); 3] =
    [(DType::Q8_0, 1.0), (DType::Q4_1, 1.042), (DType::Q4_0, 1.052)];

/// The same for the matrices of the layers: measured on the same model, whose base has Q4_1, with all matrices rounded
/// and refitted one after the other; going to Q4_1 from wider types was taken as half as harmful as going on to Q4_0.
pub(super) const LAYER_DTYPES: [(DType, f64); 3] =
    [(DType::Q8_0, 1.0), (DType::Q4_1, 1.06), (DType::Q4_0, 1.12)];

/// Perplexity with keys and values in q8_0, divided by that with f32.
const Q8_CACHE: f64 = 1.0007;

/// Expected factor on perplexity of storing matrices as `dtype`, by one of the tables above; 1 for wide types.
pub(super) fn storage_factor(known: &[(DType, f64)], dtype: Option<DType>) -> f64 {
    let known = known.iter().find(|(of, _)| Some(*of) == dtype);
    known.map_or(1.0, |(_, factor)| *factor)
}

/// Expected factor on perplexity of keeping keys and values so: measured as above with q8_0 against f32.
pub(super) fn cache_factor(kv_dtype: KvDType) -> f64 {
    match kv_dtype {
        KvDType::F32 | KvDType::F16 => 1.0,
        KvDType::Q8_0 => Q8_CACHE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_through_the_measured_points_and_only_rises() {
        let factor = |ratio: f64| predicted_perplexity_factor(PruneRatio::new(ratio).unwrap());
        for (ratio, want) in MEASURED {
            assert!((factor(ratio) - want).abs() < 1e-9, "{ratio}: {}", factor(ratio));
        }
        let curve: Vec<f64> = (0..100).map(|percent| factor(f64::from(percent) / 100.0)).collect();
        assert!(curve.windows(2).all(|pair| pair[0] < pair[1]), "{curve:?}");
        // Beyond the last point the slope of the last segment goes on.
        let [.., (from, low), (to, high)] = MEASURED;
        let slope = (high / low).ln() / (to - from);
        assert!((factor(to + 0.1) - high * (0.1 * slope).exp()).abs() < 1e-9);
    }
}
