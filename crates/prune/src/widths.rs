//! Width allocation: how many units each projection gives up so that the budget is met at the least cost.
//!
//! A [`Stack`] is one projection with its possible widths, the parameters each removes and the damage each is
//! predicted to do. Damage of layer l with i units removed: `K_l (e_l(i) / e_l(ref))^gamma`, where e is the
//! error curve of the second-order removal and K_l the measured divergence of the whole model when only this
//! layer is cut to the reference width. The allocation takes the cheapest damage per parameter, in jumps of
//! one, four or eight widths so that a flat stretch behind a small hill is found.

use crate::numeric::NumericError;

/// Jumps along the widths of a stack: with widths 32 apart, 32, 128 and 256 units.
const JUMPS: [usize; 3] = [1, 4, 8];
/// Largest share of all parameters by which the result may miss the budget.
pub const BUDGET_TOLERANCE: f64 = 0.005;

/// Possible widths of one projection, from untouched to narrowest.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Units kept, falling; the first is the untouched width.
    pub widths: Vec<usize>,
    /// Parameters removed at each width, rising from 0.
    pub removed_params: Vec<u64>,
    /// Predicted damage at each width; made never falling by [`Stack::new`].
    pub damage: Vec<f64>,
}

/// How widths may look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WidthGrid {
    /// Kept units are multiples of this (or all units): 32 or 256 for storage formats, 1 for KV groups.
    pub snap: usize,
    /// Fewest units that may stay.
    pub floor: usize,
}

impl WidthGrid {
    /// For MLP neurons stored in blocks of 32.
    pub const NEURONS: Self = Self { snap: 32, floor: 64 };

    /// Returns the possible widths of `n_units` units, falling, the untouched one first.
    #[must_use]
    pub fn widths(&self, n_units: usize) -> Vec<usize> {
        let snap = self.snap.max(1);
        let lowest = self.floor.div_ceil(snap).max(1);
        let multiples = (lowest..n_units.div_ceil(snap)).rev().map(|m| m * snap);
        std::iter::once(n_units).chain(multiples.filter(|&width| width < n_units)).collect()
    }
}

/// Measured and fitted damage of one projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DamageCurve<'a> {
    /// `e(i)`: error with i units removed, at least up to the narrowest width of the grid; `e(0)` = 0.
    pub errors: &'a [f64],
    /// Units removed when `measured` was measured.
    pub reference: usize,
    /// `K_l`: divergence of the model at the reference.
    pub measured: f64,
    /// Exponent.
    pub gamma: f64,
}

impl DamageCurve<'_> {
    /// Damage predicted for `n_removed` units; `None` beyond the curve.
    #[must_use]
    pub fn at(&self, n_removed: usize) -> Option<f64> {
        let scale = *self.errors.get(self.reference)?;
        let error = *self.errors.get(n_removed)?;
        Some(if error <= 0.0 {
            0.0
        } else if 0.0 < scale {
            self.measured.max(0.0) * (error / scale).powf(self.gamma)
        } else {
            // Free up to the reference, not free here: there is no scale to compare with.
            f64::INFINITY
        })
    }
}

impl Stack {
    /// A stack with `unit_params` parameters per unit.
    /// # Errors
    /// [`NumericError::Range`] when the curve ends before the grid does or holds NaN.
    pub fn new(
        n_units: usize,
        unit_params: u64,
        grid: WidthGrid,
        curve: &DamageCurve<'_>,
    ) -> Result<Self, NumericError> {
        let widths = grid.widths(n_units);
        let mut damage = Vec::with_capacity(widths.len());
        let mut highest = 0.0f64;
        for &width in &widths {
            let value = curve.at(n_units - width).unwrap_or(f64::NAN);
            if value.is_nan() {
                let value = (n_units - width) as f64;
                return Err(NumericError::Range {
                    what: "units removed",
                    value,
                    allowed: "inside of the error curve",
                });
            }
            highest = highest.max(value);
            damage.push(highest);
        }
        let removed_params = widths.iter().map(|&width| (n_units - width) as u64 * unit_params).collect();
        Ok(Self { widths, removed_params, damage })
    }
}

/// An allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Widths {
    /// Units kept of each stack.
    pub keep: Vec<usize>,
    /// Parameters removed.
    pub removed_params: u64,
    /// Sum of the predicted damage.
    pub damage: f64,
}

/// Position of each stack on its widths.
struct Allocation<'a> {
    stacks: &'a [Stack],
    at: Vec<usize>,
    removed: u64,
}

impl Allocation<'_> {
    /// Parameters that moving stack `s` from its place to place `to` removes.
    fn gain(&self, s: usize, to: usize) -> u64 {
        self.stacks[s].removed_params[to] - self.stacks[s].removed_params[self.at[s]]
    }

    fn cost(&self, s: usize, to: usize) -> f64 {
        let (from, to) = (self.stacks[s].damage[self.at[s]], self.stacks[s].damage[to]);
        // A difference of infinities is no number, and would win every comparison by losing none.
        if to.is_infinite() { to } else { to - from }
    }

    /// The move with the least damage per parameter that removes at most `limit`; of equal ones the earlier
    /// stack, then the shorter jump.
    fn cheapest(&self, limit: u64) -> Option<(usize, usize)> {
        let mut best: Option<(f64, usize, usize)> = None;
        for (s, stack) in self.stacks.iter().enumerate() {
            for jump in JUMPS {
                let to = self.at[s] + jump;
                if stack.widths.len() <= to {
                    break;
                }
                let gain = self.gain(s, to);
                if gain == 0 || limit < gain {
                    continue;
                }
                let price = self.cost(s, to) / gain as f64;
                if best.is_none_or(|(lowest, ..)| price < lowest) {
                    best = Some((price, s, to));
                }
            }
        }
        best.map(|(_, s, to)| (s, to))
    }

    fn take(&mut self, s: usize, to: usize) {
        self.removed += self.gain(s, to);
        self.at[s] = to;
    }

    fn finish(self) -> Widths {
        let keep = self.stacks.iter().zip(&self.at).map(|(stack, &at)| stack.widths[at]).collect();
        let damage = self.stacks.iter().zip(&self.at).map(|(stack, &at)| stack.damage[at]).sum();
        Widths { keep, removed_params: self.removed, damage }
    }
}

/// Shares out the removal of `remove_params` parameters by marginal damage per parameter. No move exceeds the
/// budget; at the end one small step may, when the sum comes closer to what was asked with it than without.
///
/// `all_params`: what [`BUDGET_TOLERANCE`] is a share of. Deterministic: ties go to the earlier stack.
/// # Errors
/// [`NumericError::Unreachable`] when the result misses by more than the tolerance.
pub fn allocate(stacks: &[Stack], remove_params: u64, all_params: u64) -> Result<Widths, NumericError> {
    let mut allocation = Allocation { stacks, at: vec![0; stacks.len()], removed: 0 };
    while let Some((s, to)) = allocation.cheapest(remove_params - allocation.removed) {
        allocation.take(s, to);
    }
    // One more small step when overshooting comes closer than stopping short.
    let short = remove_params - allocation.removed;
    let next = (0..stacks.len())
        .filter_map(|s| {
            let to = allocation.at[s] + 1;
            let gain = (to < stacks[s].widths.len()).then(|| allocation.gain(s, to))?;
            (short < gain && gain - short < short).then(|| (gain - short, allocation.cost(s, to), s, to))
        })
        .min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    if let Some((.., s, to)) = next {
        allocation.take(s, to);
    }
    within_tolerance(allocation.removed, remove_params, all_params)?;
    Ok(allocation.finish())
}

fn within_tolerance(reached: u64, asked: u64, all_params: u64) -> Result<(), NumericError> {
    if reached.abs_diff(asked) as f64 <= BUDGET_TOLERANCE * all_params as f64 {
        Ok(())
    } else {
        Err(NumericError::Unreachable { asked, reached })
    }
}

/// Cuts every projection to the same width: the one of the grid that comes closest to removing
/// `remove_params` parameters (of two equally close ones the wider). Returns the kept units.
///
/// How close that is depends on `snap` alone; it is reported, not refused.
/// # Errors
/// [`NumericError::Range`] when there is nothing to cut.
pub fn uniform(
    n_units: usize,
    unit_params: u64,
    n_layers: usize,
    grid: WidthGrid,
    remove_params: u64,
) -> Result<Widths, NumericError> {
    let removed = |width: usize| (n_units - width) as u64 * unit_params * n_layers as u64;
    let none = NumericError::Range { what: "layers", value: n_layers as f64, allowed: "1 or more" };
    let widths = grid.widths(n_units);
    let best = widths.into_iter().min_by_key(|&width| removed(width).abs_diff(remove_params));
    let width = best.filter(|_| n_layers != 0).ok_or(none)?;
    Ok(Widths { keep: vec![width; n_layers], removed_params: removed(width), damage: f64::NAN })
}
