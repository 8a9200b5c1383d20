//! Writes a tiny random model for tests on other platforms: `tiny_model FOLDER` prints its path.
#![allow(clippy::print_stdout, reason = "the path is its output")]

use secateur_test_support::{TinyLayer, TinyModel};
use std::path::Path;

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 128 };
    let model = TinyModel { layers: vec![layer; 3], ..TinyModel::default() };
    println!("{}", model.write_to(Path::new(&folder)).display());
}
