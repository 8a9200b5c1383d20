//! The routes over a scripted service, and the server over real sockets.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod abuse;
mod access;
mod fake;
mod fields;
mod native;
mod openai;
mod server;
mod streams;
