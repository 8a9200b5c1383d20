//! Writes the tiny model of the tests into a folder, for scripts that need a server: `served_model FOLDER [WIDTH]`.
#![expect(clippy::print_stdout, reason = "the path is what the caller wants")]

use secateur_test_support::{TinyLayer, TinyModel};
use std::path::Path;

fn main() {
    let mut args = std::env::args().skip(1);
    let folder = args.next().expect("usage: tiny_model FOLDER [WIDTH]");
    let width = args.next().map_or(256, |text| text.parse().expect("WIDTH is a number of neurons"));
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: width };
    let model = TinyModel { layers: vec![layer; 6], context_length: 65_536, ..TinyModel::default() };
    println!("{}", model.write_to(Path::new(&folder)).display());
}
