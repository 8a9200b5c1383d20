//! What the command line does without a running service: plain functions that end when the work is done.
//!
//! Each returns a report that is shown as text or as one JSON object. Memory: every function that runs a model
//! keeps the whole process within the budget it is given, or says which budget would do.

mod bench;
mod compare;
mod doctor;
mod eval;
mod export;
mod generate;
mod inspect;
mod models;
mod own_text;
mod prune;
mod report;
mod run;
mod tasks;

pub use bench::{BenchReport, BenchRequest, DEPTH_PROMPT, DepthReport, Spread, bench};
pub use compare::{
    CompareProgress, CompareReport, CompareRequest, CompareRow, TaskScore, TextScore, compare,
};
pub use doctor::{DoctorReport, DoctorRequest, Finding, Level, doctor};
pub use eval::{DEFAULT_SEQ_LEN, EvalProgress, EvalReport, EvalRequest, eval_text};
pub use export::{ExportReport, export};
pub use generate::{DEFAULT_MAX_TOKENS, DraftReport, GenerateOptions, GenerateReport, PromptKind, generate};
pub use inspect::{DTypeCount, InspectReport, inspect};
pub use models::{DamagedModel, ModelsReport, VerifyReport, list_models, remove_models, verify_models};
pub use own_text::{OwnTextReport, OwnTextRequest, own_text};
pub use prune::{PlanReport, PruneFileReport, PruneFileRequest, plan, prune_to_file};
pub use run::RunOptions;
pub(crate) use run::{CacheNeed, build_engine, footprint, precision, threads};
pub use tasks::{TasksReport, TasksRequest, eval_tasks};
