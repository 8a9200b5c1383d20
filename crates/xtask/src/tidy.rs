//! Rules on the house: which crate may know which, which foreign crate lives where, where `unsafe` may
//! stand, how long a file may be. The picture is drawn in ARCHITECTURE.md.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates a crate may depend on.
const EDGES: [(&str, &[&str]); 15] = [
    ("tensor", &[]),
    ("model", &["tensor"]),
    ("model-file", &["model", "tensor"]),
    ("tokenizer", &[]),
    ("engine", &["model", "tensor"]),
    ("prune", &["engine", "tokenizer", "model", "tensor"]),
    ("generate", &["engine", "tokenizer"]),
    ("memory", &["model"]),
    ("store", &["model-file", "model"]),
    (
        "service",
        &["prune", "generate", "memory", "store", "engine", "model-file", "model", "tensor", "tokenizer"],
    ),
    ("http-api", &["service"]),
    ("daemon", &["http-api", "service"]),
    ("ffi", &["http-api", "service"]),
    ("test-support", &["tensor"]),
    ("xtask", &["tensor", "test-support"]),
];

/// Foreign crates that only some of ours may know.
const ROOMS: [(&str, &[&str]); 16] = [
    ("axum", &["http-api"]),
    ("clap", &["daemon"]),
    ("faer", &["tensor"]),
    ("figment", &["daemon"]),
    ("jni", &["ffi"]),
    ("landlock", &["daemon"]),
    ("llguidance", &["generate"]),
    ("memmap2", &["model-file"]),
    ("minijinja", &["tokenizer"]),
    ("prost", &[]),
    ("safetensors", &["model-file"]),
    ("sd-notify", &["daemon"]),
    ("sysinfo", &["memory"]),
    ("tokenizers", &["tokenizer"]),
    ("tract-core", &["engine"]),
    ("tract-onnx", &[]),
];

/// Where `unsafe` may stand: folders end with a slash.
const UNSAFE_PLACES: [&str; 3] =
    ["crates/tensor/src/kernels/", "crates/model-file/src/mapped.rs", "crates/ffi/src/"];

/// Longest source file.
const MAX_FILE_LINES: usize = 700;

/// Every fault of the checkout at `root`, in words.
pub(crate) fn faults(root: &Path) -> Result<Vec<String>> {
    let mut faults = dependency_faults(&metadata(root)?);
    let mut files = Vec::new();
    rust_files(&root.join("crates"), &mut files)?;
    anyhow::ensure!(!files.is_empty(), "no sources found under {}", root.display());
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        faults.extend(source_faults(&name, &text));
    }
    Ok(faults)
}

fn metadata(root: &Path) -> Result<Value> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn short(name: &str) -> Option<&str> {
    if name == "xtask" { Some(name) } else { name.strip_prefix("secateur-") }
}

fn dependency_faults(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(krate) = short(name) else {
            faults.push(format!("package `{name}` is not named secateur-*"));
            continue;
        };
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == krate) else {
            faults.push(format!("crate `{krate}` is not in the picture"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let is_dev = dependency["kind"].as_str() == Some("dev");
            let to = dependency["name"].as_str().unwrap_or_default();
            faults.extend(edge_fault(krate, allowed, to, is_dev));
        }
    }
    faults
}

fn edge_fault(krate: &str, allowed: &[&str], to: &str, is_dev: bool) -> Option<String> {
    if let Some(ours) = short(to) {
        let fine = is_dev || allowed.contains(&ours);
        return (!fine).then(|| format!("`{krate}` must not depend on `{ours}`"));
    }
    let (_, rooms) = ROOMS.iter().find(|(foreign, _)| *foreign == to)?;
    let fine = is_dev || rooms.contains(&krate);
    (!fine).then(|| format!("`{to}` lives in {rooms:?}, not in `{krate}`"))
}

fn source_faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let n_lines = text.lines().count();
    if MAX_FILE_LINES < n_lines {
        faults.push(format!("{name}: {n_lines} lines, at most {MAX_FILE_LINES}"));
    }
    let unsafe_allowed = UNSAFE_PLACES.iter().any(|place| name.starts_with(place));
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if !unsafe_allowed && has_unsafe(code) {
            faults.push(format!("{name}:{}: `unsafe` outside {UNSAFE_PLACES:?}", number + 1));
        }
    }
    faults
}

/// True when the keyword stands in the code: as a block, a function, an impl, or inside an attribute.
fn has_unsafe(code: &str) -> bool {
    let keyword = concat!("un", "safe");
    ["{", "fn ", "impl ", "extern ", "trait "].iter().any(|next| code.contains(&format!("{keyword} {next}")))
        || code.contains(&format!("#[{keyword}("))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            rust_files(&path, out)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
    out.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let faults = faults(&root).unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn breaches_are_seen() {
        let upward = edge_fault("model", &["tensor"], "secateur-engine", false);
        assert_eq!(upward.as_deref(), Some("`model` must not depend on `engine`"));
        assert!(edge_fault("model", &["tensor"], "secateur-test-support", true).is_none());
        assert!(edge_fault("engine", &[], "memmap2", false).is_some());
        assert!(edge_fault("model-file", &[], "memmap2", false).is_none());
        let block = concat!("let x = un", "safe { read(p) };");
        assert_eq!(source_faults("crates/model/src/lib.rs", block).len(), 1);
        assert!(source_faults("crates/tensor/src/kernels/a.rs", block).is_empty());
        assert!(source_faults("crates/model/src/lib.rs", concat!("// un", "safe { }")).is_empty());
        assert_eq!(source_faults("crates/model/src/lib.rs", &"x\n".repeat(701)).len(), 1);
    }
}
