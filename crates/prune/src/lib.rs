//! COMP and its rivals: calibration, statistics, selection, recovery, and the pipeline that streams them.
//!
//! The maths (`comp`, `methods`, `select`, `refit`, `widths`) is pure. The pipeline ([`prune`]) moves the hidden
//! states of a calibration set through the layers, one layer's weights at a time, with everything that does
//! not fit in memory in files of a work folder.
#![forbid(unsafe_code)]

pub mod calibration;
pub mod comp;
pub mod footprint;
pub mod matrix;
pub mod methods;
pub mod numeric;
pub mod refit;
pub mod select;
pub mod stats;
pub mod widths;

mod align;
mod apply;
mod checkpoint;
mod course;
mod depth_pass;
mod error;
mod job;
mod layer_pass;
mod measure;
mod overlay;
mod pipeline;
mod pooled_pass;
mod projection;
mod registry;
mod rounding;
mod speed;
mod spill;
mod streams;
mod sweep;
mod table;

pub use checkpoint::write_atomic;
pub use error::PruneError;
pub use footprint::{MOMENTS_RUNG, PruneFootprint};
pub use job::{LayerReport, Progress, PruneOutcome, PruneReport, PruneRequest, Stage};
pub use overlay::OverlaySource;
pub use pipeline::{discard_work, prune};
pub use registry::{DEFAULT_METHOD, method_names};
pub use speed::StageRate;
pub use table::HeadRounder;
