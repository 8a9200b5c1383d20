//! The built binary, from outside: what it prints, how it ends, what it leaves behind.

mod commands;
mod prune;
mod serve;
mod support;
