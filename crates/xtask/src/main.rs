//! `cargo xtask tidy` checks the house itself; the same checks run as a test. `cargo xtask synth` writes models of
//! real shapes with random weights.
#![forbid(unsafe_code)]

mod synth;
mod tidy;

use anyhow::{Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => {
            let faults = tidy::faults(&root)?;
            for fault in &faults {
                eprintln!("tidy: {fault}");
            }
            if !faults.is_empty() {
                bail!("{} faults", faults.len());
            }
            Ok(())
        }
        Some("synth") => synth::run(std::env::args().skip(2)),
        _ => bail!("usage: cargo xtask tidy, or {}", synth::USAGE),
    }
}
