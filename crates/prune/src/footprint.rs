//! What a prune job will need of memory, before it starts: every buffer by name, and the ladder of settings that need
//! less and less. Pure.
//!
//! A job goes through phases that do not overlap in memory; its peak is that of the largest phase plus what the
//! process holds throughout. All sizes are bytes. `k` is the MLP width, `d` the hidden size.

use crate::calibration::WINDOW_LEN;
use crate::matrix::PANEL;
use crate::methods::Solves;
use crate::refit::SOLVE_PANEL;
use crate::stats::own_panel;
use crate::sweep::{DAMAGE_POSITIONS, TOGETHER};
use secateur_model::{
    LayerConfig, ModelConfig, WeightError, WeightId, WeightRole, WeightSource, layer_bytes,
};
use secateur_tensor::DType;
use serde::{Deserialize, Serialize};

/// Where the two large sums of a projection lie while its systems are solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SumsIn {
    /// Gram matrix and cross products stay in memory.
    Memory,
    /// They go to files of the work folder and are read back in panels of rows.
    Files,
    /// There are none: vectors of sums are all that is collected.
    Moments,
}

/// One step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rung {
    /// Name in reports.
    pub name: &'static str,
    /// Where the large sums lie.
    pub sums: SumsIn,
    /// Tokens of a window that pass through an MLP together.
    pub mlp_rows: usize,
}

/// Name of the rung whose results are worse than those of the others.
pub const MOMENTS_RUNG: &str = "moments-only";

/// From the fastest to the smallest. All but the last give models of the same quality; those with equal
/// `mlp_rows` give the same bytes, wherever the sums lie.
pub const LADDER: [Rung; 4] = [
    Rung { name: "in-memory", sums: SumsIn::Memory, mlp_rows: 256 },
    Rung { name: "sums-in-files", sums: SumsIn::Files, mlp_rows: 256 },
    Rung { name: "short-portions", sums: SumsIn::Files, mlp_rows: 64 },
    Rung { name: MOMENTS_RUNG, sums: SumsIn::Moments, mlp_rows: 64 },
];

/// What the need of a job depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct FootprintInputs {
    /// Hidden size d.
    pub hidden_size: usize,
    /// Widest MLP k.
    pub intermediate_size: usize,
    /// Widest MLP that is left, when all layers are cut alike; else the same as before.
    pub kept_width: usize,
    /// Widest queries.
    pub q_width: usize,
    /// Widest keys.
    pub kv_width: usize,
    /// Mapped bytes of the largest layer.
    pub layer_bytes: u64,
    /// Bytes of the largest layer in its storage dtype, when it has to be converted; else 0.
    pub converted_bytes: u64,
    /// Bytes of the largest narrowed gate and up projection together with the down projection, as stored.
    pub mlp_bytes: u64,
    /// Bytes of a row of the output head.
    pub head_row_bytes: u64,
    /// Rows of the head.
    pub vocab_size: usize,
    /// Layers.
    pub n_layers: usize,
    /// Calibration tokens, held-out ones included.
    pub n_tokens: usize,
    /// Threads that compute.
    pub n_threads: usize,
    /// What the process holds whatever the job does: program, libraries, heap.
    pub runtime_bytes: u64,
    /// Whether the code of factorisations is in memory besides.
    pub has_factored: bool,
    /// How the method works.
    pub method: MethodNeeds,
}

/// How a method works, as far as memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodNeeds {
    /// It collects a Gram matrix.
    pub gram: bool,
    /// It collects cross products with the teacher.
    pub cross: bool,
    /// Projections in f32 that a selection without a Gram matrix works on: 0 when no layer is narrowed.
    pub projections: usize,
    /// Whose system it factors when it narrows a layer.
    pub solves: Solves,
    /// Its matrices may lie in files.
    pub reads_by_rows: bool,
    /// The damage sweep runs before.
    pub sweep: bool,
    /// Sums of all layers are held at once before.
    pub pooled: bool,
}

impl MethodNeeds {
    /// Whose systems are factored at all: the sweep takes all columns, whatever the method does afterwards.
    fn solves(self) -> Solves {
        if self.sweep { Solves::All } else { self.solves }
    }
}

impl FootprintInputs {
    /// Reads the shape and the dtypes of a model. `asked`: storage dtype of the result.
    /// # Errors
    /// [`WeightError`] when a weight cannot be had.
    pub fn of_source(
        source: &dyn WeightSource,
        asked: Option<DType>,
        method: MethodNeeds,
    ) -> Result<Self, WeightError> {
        let config = source.config();
        let widest = |of: fn(&LayerConfig) -> usize| config.layers.iter().map(of).max().unwrap_or(0);
        let mut largest = 0;
        for layer_idx in 0..config.n_layers() {
            let mut bytes = 0;
            for role in WeightRole::LAYER_MATRICES {
                let weight = source.weight(WeightId::layer(layer_idx, role))?;
                bytes += weight.map_or(0, |weight| weight.data().len() as u64);
            }
            largest = largest.max(bytes);
        }
        let head_role = if config.tie_word_embeddings { WeightRole::EmbedTokens } else { WeightRole::LmHead };
        let head = source.require(WeightId::global(head_role))?;
        let converted = |dtype| config.layers.iter().map(|layer| layer_bytes(config, layer, dtype)).max();
        let mlp_share = mlp_share(config);
        let stored = asked.and_then(converted).unwrap_or(largest);
        Ok(Self {
            hidden_size: config.hidden_size,
            intermediate_size: widest(|layer| layer.intermediate_size),
            kept_width: widest(|layer| layer.intermediate_size),
            q_width: widest(|layer| layer.num_attention_heads) * config.head_dim,
            kv_width: widest(|layer| layer.num_key_value_heads) * config.head_dim,
            layer_bytes: largest,
            converted_bytes: asked.and_then(converted).unwrap_or(0),
            mlp_bytes: (stored as f64 * mlp_share) as u64,
            head_row_bytes: head.row_bytes() as u64,
            vocab_size: config.vocab_size,
            n_layers: config.n_layers(),
            n_tokens: 0,
            n_threads: 1,
            runtime_bytes: 0,
            has_factored: false,
            method,
        })
    }
}

/// Share of a layer's parameters that the MLP has, at most.
fn mlp_share(config: &ModelConfig) -> f64 {
    let share = |layer: &LayerConfig| {
        let mlp = 3 * config.hidden_size * layer.intermediate_size;
        mlp as f64 / config.layer_params(layer).max(1) as f64
    };
    config.layers.iter().map(share).fold(0.0, f64::max)
}

/// One buffer, or several of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// What it is.
    pub name: String,
    /// How large it is.
    pub bytes: u64,
}

/// A stretch of a job with its own set of buffers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Which.
    pub name: String,
    /// What is in memory besides the runtime.
    pub terms: Vec<Term>,
}

impl Phase {
    fn new(name: &str, terms: &[(&str, u64)]) -> Self {
        let named = |(name, bytes): &(&str, u64)| Term { name: (*name).to_owned(), bytes: *bytes };
        let terms = terms.iter().filter(|(_, bytes)| *bytes != 0).map(named).collect();
        Self { name: name.to_owned(), terms }
    }

    /// Sum of the terms.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.terms.iter().map(|term| term.bytes).sum()
    }
}

/// The need of a job on one rung.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneFootprint {
    /// Rung.
    pub rung: String,
    /// What the process holds throughout.
    pub runtime_bytes: u64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
}

impl PruneFootprint {
    /// Predicts a job on `rung`.
    #[must_use]
    pub fn new(inputs: &FootprintInputs, rung: Rung) -> Self {
        let sizes = Sizes::new(inputs, rung);
        let mut phases = vec![sizes.windows()];
        if inputs.method.gram && rung.sums != SumsIn::Moments {
            phases.push(sizes.own_output());
            phases.push(sizes.solve());
        } else {
            phases.push(sizes.select());
        }
        phases.push(sizes.store());
        phases.push(sizes.head());
        // Calibration tokens are held twice: by the request and by the windows made of them.
        let tokens = 8 * inputs.n_tokens as u64;
        let code = CODE_BYTES + if inputs.has_factored { FACTOR_CODE_BYTES } else { 0 };
        let runtime_bytes = inputs.runtime_bytes + code + tokens;
        Self { rung: rung.name.to_owned(), runtime_bytes, phases }
    }

    /// Peak resident memory of the whole process.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.runtime_bytes + self.phases.iter().map(Phase::bytes).max().unwrap_or(0)
    }

    /// The phase with the peak.
    #[must_use]
    pub fn peak_phase(&self) -> Option<&Phase> {
        self.phases.iter().max_by_key(|phase| phase.bytes())
    }
}

/// Rungs that make sense for a method, widest first.
fn rungs(method: MethodNeeds) -> impl Iterator<Item = Rung> {
    LADDER.into_iter().filter(move |rung| match rung.sums {
        SumsIn::Memory => true,
        SumsIn::Files => method.gram && method.reads_by_rows,
        SumsIn::Moments => true,
    })
}

/// One part in this many of a predicted peak is left unused on purpose, up to a bound: no prediction knows every page of
/// code and heap, but those do not grow with the matrices.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MOST_BYTES: u64 = 12 << 20;

/// The first rung whose predicted peak is within `budget_bytes` with the reserve (the first of all without a budget),
/// with its prediction.
/// # Errors
/// The smallest feasible budget when no rung fits.
pub fn choose_rung(
    inputs: &FootprintInputs,
    budget_bytes: Option<u64>,
) -> Result<(Rung, PruneFootprint), u64> {
    let mut smallest = u64::MAX;
    for rung in rungs(inputs.method) {
        let footprint = PruneFootprint::new(inputs, rung);
        let peak = footprint.peak_bytes();
        let needed = peak + (peak / RESERVE_SHARE).min(RESERVE_MOST_BYTES);
        if budget_bytes.is_none_or(|budget| needed <= budget) {
            return Ok((rung, footprint));
        }
        smallest = smallest.min(needed);
    }
    Err(smallest)
}

/// Code and tables that a job brings into memory when it runs for the first time, and what comes with the first system
/// that is factored.
const CODE_BYTES: u64 = 4 << 20;
const FACTOR_CODE_BYTES: u64 = 3 << 20;

/// Rows of the vocabulary whose logits are in memory at a time.
const VOCAB_BLOCK: u64 = 1024;
/// Packed panels of one thread for projections, with its part of an attention.
const THREAD_PANEL_BYTES: u64 = 600 << 10;
/// Those for sums of products.
const GRAM_PANEL_BYTES: u64 = 960 << 10;
/// Pages around a layer that come into memory with it: faults map stretches of up to 2 MiB.
const AROUND_BYTES: u64 = 1 << 20;
/// Work space of factorisations, inverses and f64 products, and what each further thread adds.
const LINALG_BYTES: u64 = 5 << 18;
const LINALG_THREAD_BYTES: u64 = 2 << 20;

/// Threads that work on a system of `n_unknowns`: as many as add no more than a tenth to its matrix in f64.
pub(crate) fn solve_threads(n_unknowns: usize, n_threads: usize) -> usize {
    let matrix_bytes = 8 * (n_unknowns as u64).pow(2);
    n_threads.min((matrix_bytes / (10 * LINALG_THREAD_BYTES)).max(1) as usize)
}

struct Sizes<'a> {
    inputs: &'a FootprintInputs,
    rung: Rung,
    k: u64,
    d: u64,
}

impl<'a> Sizes<'a> {
    fn new(inputs: &'a FootprintInputs, rung: Rung) -> Self {
        Self { inputs, rung, k: inputs.intermediate_size as u64, d: inputs.hidden_size as u64 }
    }

    fn threads(&self) -> u64 {
        THREAD_PANEL_BYTES * self.inputs.n_threads as u64
    }

    fn linalg(&self) -> u64 {
        let n_threads = solve_threads(self.inputs.intermediate_size, self.inputs.n_threads);
        let code = if self.inputs.has_factored { 0 } else { FACTOR_CODE_BYTES };
        code + LINALG_BYTES + LINALG_THREAD_BYTES * (n_threads as u64 - 1)
    }

    fn gram_panels(&self) -> u64 {
        GRAM_PANEL_BYTES * self.inputs.n_threads as u64
    }

    /// Gram matrix and cross products while they are in memory.
    fn sums(&self) -> (u64, u64) {
        let method = self.inputs.method;
        let has_gram = method.gram && self.rung.sums != SumsIn::Moments;
        let gram = if has_gram { 4 * self.k * self.k } else { 0 };
        let cross = if has_gram && method.cross { 4 * self.k * self.d } else { 0 };
        (gram, cross)
    }

    /// Windows pass through a layer, teacher and student, and the sums are collected.
    fn windows(&self) -> Phase {
        let window = WINDOW_LEN as u64;
        let rows = (self.rung.mlp_rows as u64).min(window);
        let (k, d) = (self.k, self.d);
        let (q_width, kv_width) = (self.inputs.q_width as u64, self.inputs.kv_width as u64);
        // Input, inner and output of attention and MLP.
        let between = window * (2 * d + q_width) + rows * (2 * d + k);
        // Normed input, queries, keys and values; or normed input and one half of the gated product.
        let inside = (window * (d + q_width + 2 * kv_width)).max(rows * (d + k));
        let packed = (window * d.max(q_width)).max(rows * k);
        let (gram, cross) = self.sums();
        let method = self.inputs.method;
        let moments = 16 * (k + q_width) * self.inputs.n_layers as u64 * u64::from(method.pooled);
        Phase::new(
            "windows",
            &[
                ("mapped layer", self.inputs.layer_bytes + AROUND_BYTES),
                ("converted layer", self.inputs.converted_bytes),
                ("hidden states", 2 * 4 * window * d),
                ("activations between operations", 4 * between),
                ("activations inside of them", 4 * inside),
                ("keys and values of a window", 2 * 4 * window * kv_width),
                ("packed inputs", 4 * packed),
                ("thread panels", self.threads()),
                ("thread panels of sums", if gram == 0 { 0 } else { self.gram_panels() }),
                ("Gram matrix", gram),
                ("cross products", cross),
                ("sums of all layers", moments),
            ],
        )
    }

    /// Sums while systems are solved; those in files are read in panels of so many rows.
    fn held(&self, panel: usize) -> [(&'static str, u64); 3] {
        let (gram, _) = self.sums();
        let cross = 4 * self.k * self.d;
        let hidden = if self.inputs.method.sweep { 2 * 4 * WINDOW_LEN as u64 * self.d } else { 0 };
        match self.rung.sums {
            SumsIn::Memory => {
                [("Gram matrix", gram), ("cross products", cross), ("hidden states of the sweep", hidden)]
            }
            SumsIn::Files | SumsIn::Moments => {
                let panel = 4 * panel as u64 * (self.k + self.d);
                [("panels of sums", panel), ("", 0), ("hidden states of the sweep", hidden)]
            }
        }
    }

    fn down(&self) -> u64 {
        match self.rung.sums {
            SumsIn::Memory => 4 * self.k * self.d,
            SumsIn::Files | SumsIn::Moments => 4 * SOLVE_PANEL as u64 * self.k,
        }
    }

    /// The layer's own output is added to the target.
    fn own_output(&self) -> Phase {
        let panel = own_panel(self.inputs.hidden_size);
        let [gram, cross, hidden] = self.held(panel);
        Phase::new(
            "own output",
            &[
                gram,
                cross,
                hidden,
                ("down projection", self.down()),
                ("down projection in f64", 8 * self.k * self.d),
                ("panel in f64", 8 * panel as u64 * (self.k + self.d)),
                ("linear algebra", self.linalg()),
            ],
        )
    }

    /// Selection without a Gram matrix: the projection, what is left of it, and for some methods those that its
    /// neurons come from.
    fn select(&self) -> Phase {
        let projections = self.inputs.method.projections.max(2 * usize::from(self.inputs.method.gram)) as u64;
        Phase::new(
            "select",
            &[
                ("projections in f32", projections * 4 * self.k * self.d),
                ("stored projection", self.inputs.mlp_bytes / 3),
            ],
        )
    }

    /// Factor, inverse, selection, refit and rounding.
    fn solve(&self) -> Phase {
        let [gram, cross, hidden] = self.held(PANEL);
        let kept = self.inputs.kept_width as u64;
        let factored = match self.inputs.method.solves() {
            Solves::Nothing => 0,
            Solves::Kept => kept,
            Solves::All => self.k,
        };
        Phase::new(
            "solve",
            &[
                gram,
                cross,
                hidden,
                ("down projection", self.down()),
                ("factor and inverse in f64", 8 * factored * factored),
                ("refitted weights", 4 * factored.max(kept) * self.d),
                ("right-hand sides", 8 * SOLVE_PANEL as u64 * factored),
                ("linear algebra", self.linalg()),
            ],
        )
    }

    /// The narrowed layer is put together and written.
    fn store(&self) -> Phase {
        Phase::new(
            "store",
            &[
                ("mapped layer", self.inputs.layer_bytes),
                ("converted layer", 2 * self.inputs.converted_bytes),
                ("narrowed projections", self.inputs.mlp_bytes),
            ],
        )
    }

    /// Divergences and losses over the vocabulary.
    fn head(&self) -> Phase {
        let block = VOCAB_BLOCK.min(self.inputs.vocab_size as u64);
        // Copies, and the untouched window beside them.
        let kl = 4 * ((TOGETHER + 1) * DAMAGE_POSITIONS) as u64 * (2 * self.d + block);
        let loss = 4 * WINDOW_LEN as u64 * (2 * self.d + block);
        let sweeps = self.inputs.method.sweep && self.rung.sums != SumsIn::Moments;
        let both = if sweeps { kl.max(loss) } else { loss };
        Phase::new(
            "head",
            &[
                ("hidden states", 4 * WINDOW_LEN as u64 * self.d),
                ("states and logits", both),
                ("packed inputs", 4 * WINDOW_LEN as u64 * self.d),
                ("mapped block of the head", block * self.inputs.head_row_bytes + (128 << 10)),
                ("thread panels", self.threads()),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_ORDER: MethodNeeds = MethodNeeds {
        gram: true,
        cross: true,
        projections: 0,
        solves: Solves::All,
        reads_by_rows: true,
        sweep: true,
        pooled: false,
    };

    fn inputs(hidden_size: usize, intermediate_size: usize) -> FootprintInputs {
        FootprintInputs {
            hidden_size,
            intermediate_size,
            kept_width: intermediate_size,
            q_width: hidden_size,
            kv_width: hidden_size / 4,
            layer_bytes: (4 * hidden_size * intermediate_size) as u64,
            converted_bytes: 0,
            mlp_bytes: (3 * hidden_size * intermediate_size) as u64,
            head_row_bytes: hidden_size as u64,
            vocab_size: 32_000,
            n_layers: 32,
            n_tokens: 2048,
            n_threads: 2,
            runtime_bytes: 20 << 20,
            has_factored: false,
            method: SECOND_ORDER,
        }
    }

    #[test]
    fn more_budget_never_means_a_lower_rung_and_the_refusal_is_exact() {
        let needs = [
            SECOND_ORDER,
            MethodNeeds { reads_by_rows: false, ..SECOND_ORDER },
            MethodNeeds {
                gram: false,
                cross: false,
                projections: 4,
                solves: Solves::Nothing,
                reads_by_rows: false,
                ..SECOND_ORDER
            },
        ];
        for method in needs {
            for (hidden_size, width) in [(64, 128), (576, 1536), (2048, 8192), (4096, 11_008)] {
                let inputs = FootprintInputs { method, ..inputs(hidden_size, width) };
                let smallest = choose_rung(&inputs, Some(0)).unwrap_err();
                assert!(choose_rung(&inputs, Some(smallest - 1)).is_err(), "{inputs:?}");
                let mut last = usize::MAX;
                for budget in [smallest, smallest + 1, 2 * smallest, 4 * smallest, u64::MAX] {
                    let (rung, footprint) = choose_rung(&inputs, Some(budget)).unwrap();
                    assert!(footprint.peak_bytes() <= budget);
                    let at = LADDER.iter().position(|step| *step == rung).unwrap();
                    assert!(at <= last, "{budget} bytes lead to rung {at} after {last}");
                    last = at;
                }
                assert_eq!(choose_rung(&inputs, None).unwrap().0, LADDER[0]);
            }
        }
    }

    #[test]
    fn each_rung_needs_less_for_large_layers() {
        let inputs = inputs(2048, 8192);
        let peaks: Vec<u64> =
            LADDER.iter().map(|&rung| PruneFootprint::new(&inputs, rung).peak_bytes()).collect();
        assert!(peaks.windows(2).all(|pair| pair[1] <= pair[0]), "{peaks:?}");
        // The factor of the Gram matrix in f64 is what no rung but the last can do without.
        assert!(8 * 8192 * 8192 < peaks[2] && peaks[3] < 8 * 8192 * 8192, "{peaks:?}");
    }

    #[test]
    fn what_a_method_factors_decides_what_its_systems_take() {
        let peak = |solves, sweep| {
            let method = MethodNeeds { cross: false, solves, reads_by_rows: false, sweep, ..SECOND_ORDER };
            let inputs = FootprintInputs { method, kept_width: 1152, ..inputs(576, 1536) };
            PruneFootprint::new(&inputs, LADDER[0]).peak_bytes()
        };
        let [nothing, kept, all] = [Solves::Nothing, Solves::Kept, Solves::All].map(|it| peak(it, false));
        assert!(nothing < kept && kept < all, "{nothing} {kept} {all}");
        assert!(all < peak(Solves::Nothing, true), "the sweep factors all columns");
    }

    #[test]
    fn small_systems_are_solved_on_few_threads() {
        assert_eq!([0, 1536, 2048, 4864, 8192].map(|n| solve_threads(n, 8)), [1, 1, 1, 8, 8]);
        assert_eq!([3072, 8192].map(|n| solve_threads(n, 2)), [2, 2]);
    }

    #[test]
    fn files_are_for_methods_that_read_by_rows() {
        let method = MethodNeeds { reads_by_rows: false, ..SECOND_ORDER };
        assert!(rungs(method).all(|rung| rung.sums != SumsIn::Files));
        assert_eq!(rungs(SECOND_ORDER).count(), LADDER.len());
    }
}
