//! The service: command in, event out. Owns the model, the store, the jobs and the one compute thread.
//!
//! [`ServiceHandle`] is the way in for HTTP and for apps; [`api`] holds what is said. The compute thread owns
//! engine, sessions and prune jobs; handles never touch them.
#![forbid(unsafe_code)]

pub mod api;
mod error;
mod handle;
mod jobs;
mod queue;
mod served;
mod shared;
mod stream;

pub use error::ServiceError;
pub use handle::{AddSpecial, Heartbeat, ServiceHandle};
pub use jobs::JobEvents;
pub use stream::EventStream;
