//! Prunes a tiny random model into a file and prints the report: the same program on every processor, to compare.
//!
//! `tiny_prune FOLDER` writes `FOLDER/pruned.gguf`.
#![allow(clippy::print_stdout, reason = "the report is its output")]

use secateur_service::ops::{PruneFileRequest, RunOptions, prune_to_file};
use secateur_service::{Calibration, OpenModel, PlanSettings, PruneSettings};
use secateur_test_support::{TinyLayer, TinyModel};
use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("give a folder")?;
    let folder = Path::new(&folder);
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 128 };
    let model = TinyModel { layers: vec![layer; 4], ..TinyModel::default() }.write_to(folder);
    let settings = PruneSettings {
        plan: PlanSettings { ratio: Some(0.3), ..PlanSettings::default() },
        calibration: Calibration { tokens: Some(2048), ..Calibration::default() },
        ..PruneSettings::default()
    };
    let request = PruneFileRequest {
        out: folder.join("pruned.gguf"),
        settings,
        run: RunOptions { memory_budget: "1GiB".to_owned(), n_threads: Some(2), ..RunOptions::default() },
        report: None,
    };
    let report = prune_to_file(OpenModel::open(&model)?, &request, &mut |_| {}, &AtomicBool::new(false))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
