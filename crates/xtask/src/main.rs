//! `cargo xtask tidy`: checks the house itself. The same checks run as a test.
#![forbid(unsafe_code)]

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
        _ => bail!("usage: cargo xtask tidy"),
    }
}
