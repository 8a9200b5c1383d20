//! HTTP over the service: what OpenAI's clients expect, our own routes, health, metrics and a page.
//!
//! [`App::new`] builds the routes over a [`Backend`] (the service's handle, or a script in tests) and
//! [`App::serve`] runs them. Every documented request field is honoured or refused by name; every error is one
//! enum with two renderings.
//!
//! Not here: anything about models. This is the only room that knows axum and hyper.
//!
//! Memory: a request costs its body (at most `max_body_bytes`) and its answer; requests and connections are bounded.
//! No text of a prompt or an answer is ever logged.
#![forbid(unsafe_code)]

mod app;
mod backend;
mod body;
mod error;
mod fields;
mod guard;
mod health;
mod metrics;
mod native;
mod openai;
mod openapi;
mod page;
mod server;
mod sse;

pub use app::{Access, AccessControl, App, HttpOptions};
pub use backend::{Backend, Events};
pub use guard::ApiKeys;
pub use openapi::document as openapi_document;
pub use server::{Drained, Listener};
