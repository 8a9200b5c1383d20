//! The service inside an app: the same guarantees behind a C ABI (`include/secateur.h`) and behind JNI.
//!
//! - Handles are numbers that are looked up: null, freed and made-up ones are errors, not crashes.
//! - Every entry catches panics and turns them into `SECATEUR_CODE_INTERNAL`.
//! - Any thread may call anything, several at a time. Calls that wait (start, stop, free, wait, plan, prune, generate)
//!   are refused inside a callback.
//! - Callbacks run on the thread that made the call, never on one of ours.
//!
//! Memory: nothing beyond the service's own, besides a runtime of one thread for HTTP.
//!
//! `unsafe` stands in `c_abi`, at the pointers of C, and in `apple`; JNI goes through the `jni` crate.

#[cfg(target_os = "ios")]
mod apple;
mod c_abi;
mod config;
mod error;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod hidden;
mod instance;
#[cfg(not(target_vendor = "apple"))]
pub mod java;
mod registry;
mod waiting;

pub use c_abi::*;
pub use error::{FfiError, SecateurCode};
