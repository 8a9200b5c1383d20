//! The built binary, from outside: what it prints, how it ends, what it leaves behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod budget;
mod checkpoints;
mod commands;
mod prune;
mod serve;
mod support;
