//! Alignment of inputs: where earlier cuts have moved the student's hidden states, the matrices that read them (q, k and
//! v; gate and up) are multiplied by a map that takes the states part of the way back to the teacher's.
//!
//! With normed states X of the student and Y of the teacher, `[n, d]`, a matrix W becomes `W M`, where M minimises
//! `||(1 - a) X + a Y - X M'||^2` with a ridge around the identity. The asymmetric calibration of GPTAQ
//! (arXiv 2504.02692) does the same to what is rounded; here one `d x d` system serves all readers of a sub-layer.

use crate::methods::Linear;
use crate::numeric::NumericError;
use crate::refit::{Damping, FitProblem, refit};
use secateur_tensor::linalg::{LinalgError, Operand, Product, multiply};

/// Ridge of the map around the identity.
const RIDGE: Damping = Damping { of_diagonal: 0.1, ..Damping::DEFAULT };

/// Sums over what the student's and the teacher's sub-layer read.
pub(crate) struct NormedSums {
    pub(crate) n_in: usize,
    /// `X'X`, `[n_in, n_in]`, of the student.
    pub(crate) gram: Vec<f32>,
    /// `X'Y`, `[n_in, n_in]`, with the teacher; empty when nothing is aligned.
    pub(crate) cross: Vec<f32>,
}

impl NormedSums {
    /// The map `[n_in, n_in]` that takes the student's normed states `share` of the way to the teacher's.
    /// # Errors
    /// [`NumericError::Linalg`] for sums that are not finite.
    pub(crate) fn alignment(&self, share: f64) -> Result<Vec<f32>, NumericError> {
        let n = self.n_in;
        let target = self.gram.iter().zip(&self.cross);
        let target: Vec<f32> = target.map(|(own, teacher)| own + share as f32 * (teacher - own)).collect();
        let mut identity = vec![0.0; n * n];
        identity.iter_mut().step_by(n + 1).for_each(|value| *value = 1.0);
        let linear = Linear::new(&identity, n, n, 1)?;
        let problem = FitProblem::new(&self.gram[..], &target[..], &linear, RIDGE)?;
        refit(&problem, &(0..n).collect::<Vec<_>>())
    }
}

/// Returns `W M` of a matrix `[n_rows, n_in]` and a map `[n_in, n_in]`.
pub(crate) fn aligned(values: &[f32], map: &[f32], n_in: usize) -> Result<Vec<f32>, LinalgError> {
    let mut product = vec![0.0; values.len()];
    let values = Operand::new(values, values.len() / n_in.max(1), n_in);
    multiply(values, Operand::new(map, n_in, n_in), Product::Replace(1.0), &mut product)?;
    Ok(product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur_test_support::Rng;

    const N_IN: usize = 12;
    const N_TOKENS: usize = 400;

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..n).map(|_| rng.normal()).collect()
    }

    /// `A B'` of rows, in plain loops.
    fn rows_by_rows(a: &[f32], b: &[f32]) -> Vec<f32> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        a.chunks(N_IN).flat_map(|a| b.chunks(N_IN).map(move |b| dot(a, b))).collect()
    }

    fn sums(own: &[f32], teacher: &[f32]) -> NormedSums {
        let (mut gram, mut cross) = (vec![0.0; N_IN * N_IN], vec![0.0; N_IN * N_IN]);
        for (own, teacher) in own.chunks(N_IN).zip(teacher.chunks(N_IN)) {
            for i in 0..N_IN {
                for j in 0..N_IN {
                    gram[i * N_IN + j] += own[i] * own[j];
                    cross[i * N_IN + j] += own[i] * teacher[j];
                }
            }
        }
        NormedSums { n_in: N_IN, gram, cross }
    }

    #[test]
    fn what_has_not_drifted_is_left_as_it_is() {
        let own = normal(N_TOKENS * N_IN, 1);
        let map = sums(&own, &own).alignment(0.4).unwrap();
        for (at, value) in map.iter().enumerate() {
            let want = if at % (N_IN + 1) == 0 { 1.0 } else { 0.0 };
            assert!((value - want).abs() < 1e-4, "{at}: {value}");
        }
    }

    #[test]
    fn readers_see_the_share_of_the_way_to_the_teacher() {
        let own = normal(N_TOKENS * N_IN, 2);
        let mut drift = normal(N_IN * N_IN, 3);
        drift.iter_mut().for_each(|value| *value *= 0.05);
        let moved = rows_by_rows(&own, &drift);
        let teacher: Vec<f32> = own.iter().zip(&moved).map(|(own, moved)| own + moved).collect();
        let weight = normal(5 * N_IN, 4);
        for share in [0.0, 0.4, 1.0] {
            let map = sums(&own, &teacher).alignment(share).unwrap();
            let got = rows_by_rows(&own, &aligned(&weight, &map, N_IN).unwrap());
            let wanted: Vec<f32> =
                own.iter().zip(&moved).map(|(own, moved)| own + share as f32 * moved).collect();
            let (mut error, mut energy) = (0.0, 0.0);
            for (got, want) in got.iter().zip(rows_by_rows(&wanted, &weight)) {
                error += (got - want) * (got - want);
                energy += want * want;
            }
            // The ridge keeps about a tenth of the way, which is a few hundredths of what is read.
            assert!(error < 1e-3 * energy, "share {share}: {error} of {energy}");
        }
    }

    #[test]
    fn silence_keeps_the_matrix() {
        let map = sums(&[0.0; N_IN], &[0.0; N_IN]).alignment(0.4).unwrap();
        let weight = normal(3 * N_IN, 5);
        assert_eq!(aligned(&weight, &map, N_IN).unwrap(), weight);
    }
}
