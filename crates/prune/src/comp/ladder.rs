//! The recovery ladder: each kind of compensation is fitted on one set of tokens and judged on another.
//!
//! More degrees of freedom fit the calibration set better and generalise worse; with few tokens a mask can
//! beat a full refit (RCPU, arXiv 2510.07782, shows ridge least squares losing at 128 samples). The held-out
//! error costs no further token: [`squared_error`] works on sums.

use super::mask::{MaskTuning, fold, tune};
use crate::methods::{Linear, Recovery};
use crate::numeric::NumericError;
use crate::refit::{Damping, FitProblem, mean_bias, refit, squared_error};
use crate::stats::LayerStats;

/// Kinds of compensation, from none to many degrees of freedom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Kept columns as they are.
    None,
    /// A bias: d numbers.
    Bias,
    /// A scale per column: s numbers.
    Mask,
    /// Both.
    MaskBias,
    /// Columns re-solved: s d numbers.
    Ridge,
    /// Columns re-solved on centred statistics, and a bias.
    RidgeBias,
}

impl Rung {
    /// All rungs, rising.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Bias, Self::Mask, Self::MaskBias, Self::Ridge, Self::RidgeBias];
    /// The rungs that add no tensor to the model: what stock runtimes load.
    pub const WITHOUT_BIAS: [Self; 3] = [Self::None, Self::Mask, Self::Ridge];

    /// Name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bias => "bias",
            Self::Mask => "mask",
            Self::MaskBias => "mask+bias",
            Self::Ridge => "ridge",
            Self::RidgeBias => "ridge+bias",
        }
    }
}

/// Settings of the fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LadderOptions {
    /// Ridge of the refits.
    pub damping: Damping,
    /// Mask tuning.
    pub tuning: MaskTuning,
}

impl LadderOptions {
    /// What works on real layers.
    pub const DEFAULT: Self = Self { damping: Damping::DEFAULT, tuning: MaskTuning::DEFAULT };
}

/// Relative squared errors of one rung: error over the target's energy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RungError {
    /// Which rung.
    pub rung: Rung,
    /// On the tokens that were fitted.
    pub fitted: f64,
    /// On the held-out tokens.
    pub held_out: f64,
}

/// The rung that won and what it costs on either set.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderChoice {
    /// Lowest held-out error; of equal ones the lower rung.
    pub rung: Rung,
    /// Its result.
    pub recovery: Recovery,
    /// All rungs that were tried, in the order given.
    pub errors: Vec<RungError>,
}

/// Fits one rung on `fit`, whose target must be set.
/// # Errors
/// [`NumericError::Missing`] without Gram or target, [`NumericError::Linalg`].
pub fn fit_rung(
    linear: &Linear<'_>,
    fit: &LayerStats,
    kept: &[usize],
    rung: Rung,
    options: &LadderOptions,
) -> Result<Recovery, NumericError> {
    linear.check(fit, Some(kept))?;
    let columns = linear.columns(kept);
    let weight = match rung {
        Rung::None | Rung::Bias => linear.sliced(kept),
        Rung::Mask | Rung::MaskBias => {
            let mut weight = linear.sliced(kept);
            let tuned = tune(linear, fit.gram()?, &fit.target()?.cross, kept, &options.tuning)?;
            fold(&mut weight, &tuned.scale)?;
            weight
        }
        Rung::Ridge => refit(&FitProblem::from_stats(linear, fit, options.damping)?, &columns)?,
        Rung::RidgeBias => refit(&FitProblem::centred(linear, fit, options.damping)?, &columns)?,
    };
    let bias = match rung {
        Rung::None | Rung::Mask | Rung::Ridge => None,
        Rung::Bias | Rung::MaskBias | Rung::RidgeBias => Some(mean_bias(fit, &columns, &weight)?),
    };
    Ok(Recovery { weight, bias })
}

/// Fits `rungs` on `fit` and keeps the one with the lowest error on `held_out`. Both must have the same kind
/// of target set. Holds two results at a time.
/// # Errors
/// As [`fit_rung`]; [`NumericError::Range`] for no rung or an error that is not a number.
pub fn choose_rung(
    linear: &Linear<'_>,
    fit: &LayerStats,
    held_out: &LayerStats,
    kept: &[usize],
    rungs: &[Rung],
    options: &LadderOptions,
) -> Result<LadderChoice, NumericError> {
    linear.check(held_out, Some(kept))?;
    let columns = linear.columns(kept);
    let relative = |stats: &LayerStats, recovery: &Recovery| -> Result<f64, NumericError> {
        let energy = stats.target()?.energy;
        let error = squared_error(stats, &columns, recovery)?;
        Ok(if 0.0 < energy { error / energy } else { error })
    };
    let mut best: Option<(f64, Rung, Recovery)> = None;
    let mut errors = Vec::with_capacity(rungs.len());
    for &rung in rungs {
        let recovery = fit_rung(linear, fit, kept, rung, options)?;
        let error =
            RungError { rung, fitted: relative(fit, &recovery)?, held_out: relative(held_out, &recovery)? };
        errors.push(error);
        let value = error.held_out;
        if value.is_nan() {
            return Err(NumericError::Range { what: "held-out error", value, allowed: "numbers" });
        }
        let better = |(lowest, chosen, _): &(f64, Rung, Recovery)| {
            value < *lowest || (value == *lowest && rung < *chosen)
        };
        if best.as_ref().is_none_or(better) {
            best = Some((value, rung, recovery));
        }
    }
    let none = NumericError::Range { what: "rungs", value: 0.0, allowed: "1 or more" };
    let (_, rung, recovery) = best.ok_or(none)?;
    Ok(LadderChoice { rung, recovery, errors })
}
