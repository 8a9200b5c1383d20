//! The service: command in, event out. Owns the model, the store, the jobs and the one compute thread.
//!
//! [`Service::start`] starts it, [`ServiceHandle`] is the way in for HTTP and for apps, [`api`] holds what is said.
//! The compute thread owns engine, sessions and prune jobs; handles never touch them. [`ops`] holds what the
//! command line does without a running service.
//!
//! Memory: the budget bounds the whole process. Models are mapped, one is served at a time, and a model leaves
//! memory before the next one comes.
#![forbid(unsafe_code)]

pub mod api;
pub mod ops;

mod budget;
mod calibration;
mod catalog;
mod convert;
mod drafting;
mod error;
mod handle;
mod hints;
mod housekeeping;
mod jobs;
mod opened;
mod options;
mod pending;
mod pressure;
mod pruning;
mod queries;
mod queue;
mod served;
mod shared;
mod slots;
mod stage_watch;
mod start;
mod stream;
mod tools;
mod work;
mod worker;

pub use budget::{Budget, PlanSettings, resident_bytes};
pub use calibration::{Calibration, CalibrationText};
pub use catalog::resolve_model;
pub use convert::error_chain;
pub use error::ServiceError;
pub use handle::{AddSpecial, Heartbeat, ServiceHandle};
pub use hints::{MemoryPressure, ThermalState};
pub use jobs::JobEvents;
pub use opened::OpenModel;
pub use options::{DEFAULT_PARALLEL, DEFAULT_QUEUE_LEN, PressureResponse, ServiceOptions};
pub use pruning::{DEFAULT_METHOD, PruneSettings, method_names};
pub use secateur_memory::{AppleFigures, AppleProbe, format_bytes, set_platform_probe};
pub use secateur_tensor::kernels::disk::IdleDisk;
pub use secateur_tensor::kernels::heap::return_large_blocks;
pub use start::Service;
pub use stream::EventStream;
pub use tools::{TOOL_CALL_CLOSE, TOOL_CALL_OPEN};
