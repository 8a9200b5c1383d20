//! Methods by name: what `--method` accepts, and how the pipeline runs each of them.

use crate::comp::Comp;
use crate::error::PruneError;
use crate::footprint::{MethodNeeds, Rung, SumsIn};
use crate::methods::{DepthMethod, Fasp, Flap, Magnitude, Needs, SecondOrder, WandaSp, WidthMethod};

/// How the cut is shared between layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Spread {
    /// The same width in all layers.
    Uniform,
    /// By the damage each layer and each KV group does, measured on the base model.
    Measured {
        /// Exponent of [`crate::widths::DamageCurve`]. 1 says that divergence grows with the squared error of an
        /// output, which holds where the error is refitted away as far as it can be: on the reference model the
        /// held-out loss of the default method falls from 3 over 2 and 1.5 to 1, and further to 0.7, where single
        /// layers lose three quarters of their neurons. Mask tuning alone wants the flatter cut of 3.
        gamma: f64,
    },
    /// One threshold over the scores of all neurons and KV groups: [`crate::methods::pool_units`].
    Pooled,
    /// Whole layers leave, the others keep their width; the method's `width` is never asked.
    Depth(DepthMethod),
}

/// How far fits follow the dense model where the pruned one has drifted from it. All of the way does harm: each fit
/// adds error of its own, and what it chases grows from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TeacherShares {
    /// Share of the dense residual stream in the target of an output projection.
    pub(crate) output: f64,
    /// Share of the dense model's normed hidden states in what the matrices that read them are aligned to.
    pub(crate) input: f64,
}

/// A method as the pipeline runs it.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// How layers are narrowed.
    pub(crate) width: &'static dyn WidthMethod,
    /// How much of the dense model's residual stream the fits follow; `None` fits the layer's own output.
    pub(crate) teacher: Option<TeacherShares>,
    /// How the cut is shared between layers.
    pub(crate) spread: Spread,
}

impl Method {
    /// What the method asks of memory.
    pub(crate) fn memory_needs(&self) -> MethodNeeds {
        let needs = self.width.needs();
        MethodNeeds {
            gram: Needs::Gram <= needs,
            cross: self.teacher.is_some(),
            projections: match (self.spread, needs) {
                (Spread::Depth(_), _) => 0,
                // Down projection and what is left of it; gate and up projection beside them.
                (_, Needs::Weights) => 4,
                _ => 2,
            },
            solves: self.width.solves(),
            reads_by_rows: self.width.damping_by_rows().is_some(),
            sweep: matches!(self.spread, Spread::Measured { .. }),
            pooled: self.spread == Spread::Pooled,
        }
    }

    /// The method itself, or on a rung without a Gram matrix the best of those that need none.
    pub(crate) fn on(self, rung: Rung) -> Self {
        if rung.sums == SumsIn::Moments && Needs::Gram <= self.width.needs() { MOMENTS_METHOD } else { self }
    }
}

/// What narrows layers when there is no room for a Gram matrix.
const MOMENTS_METHOD: Method = Method { name: "flap", width: &Flap, teacher: None, spread: Spread::Pooled };

/// The default method: COMP's stages with second-order selection, weight refit and measured widths.
pub const DEFAULT_METHOD: &str = "comp-refit";

static METHODS: [Method; 10] = [
    Method {
        name: DEFAULT_METHOD,
        width: &SecondOrder::REFIT,
        teacher: Some(TeacherShares { output: 0.2, input: 0.4 }),
        spread: Spread::Measured { gamma: 1.0 },
    },
    Method {
        name: "comp",
        width: &Comp::COLLINEARITY,
        teacher: None,
        spread: Spread::Measured { gamma: 3.0 },
    },
    Method { name: "comp-condition", width: &Comp::CONDITION, teacher: None, spread: Spread::Uniform },
    Method { name: "condition", width: &Comp::CONDITION_ONLY, teacher: None, spread: Spread::Uniform },
    Method { name: "wanda-sp", width: &WandaSp, teacher: None, spread: Spread::Uniform },
    Method { name: "flap", width: &Flap, teacher: None, spread: Spread::Pooled },
    Method { name: "fasp", width: &Fasp, teacher: None, spread: Spread::Uniform },
    Method {
        name: "shortgpt",
        width: &Magnitude,
        teacher: None,
        spread: Spread::Depth(DepthMethod::ShortGpt),
    },
    Method { name: "sleb", width: &Magnitude, teacher: None, spread: Spread::Depth(DepthMethod::Sleb) },
    Method { name: "magnitude", width: &Magnitude, teacher: None, spread: Spread::Uniform },
];

/// Names of all methods, the default one first.
#[must_use]
pub fn method_names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}

pub(crate) fn method(name: &str) -> Result<Method, PruneError> {
    let unknown = || PruneError::UnknownMethod { name: name.to_owned(), known: method_names().join(", ") };
    METHODS.iter().find(|method| method.name == name).copied().ok_or_else(unknown)
}
