//! A C program over the shared library: the way of an app, misuse, threads, and what the library exports.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]
#![cfg(target_os = "linux")]

use secateur_test_support::{TinyLayer, TinyModel};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Where cargo leaves the libraries beside this test.
fn library(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is not there", path.display());
    path
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("SECATEUR_CI").is_none(), "{program} is missing, and CI must not skip");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn run(command: &mut Command) -> String {
    // Cargo's own folders come first there, with a library of an earlier build.
    let output = command.env_remove("LD_LIBRARY_PATH").output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

struct Program {
    dir: TempDir,
    path: PathBuf,
    model: PathBuf,
}

/// Compiles the C program against the header and `link`.
fn compile(link: &[String]) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abi");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(Command::new("cc")
        .args([
            "-std=c11",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-O1",
            "-g",
            "-pthread",
        ])
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("tests/c/abi.c"))
        .args(link)
        .arg("-o")
        .arg(&path));
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 128 };
    let model = TinyModel { layers: vec![layer; 3], ..TinyModel::default() }.write_to(dir.path());
    Program { dir, path, model }
}

fn shared() -> Vec<String> {
    let library = library("libsecateur_ffi.so");
    let folder = library.parent().unwrap().display().to_string();
    vec![library.display().to_string(), format!("-Wl,-rpath,{folder}")]
}

#[test]
fn a_c_program_uses_and_misuses_the_shared_library() {
    if !has("cc") {
        return;
    }
    let program = compile(&shared());
    let text = run(Command::new(&program.path).arg(&program.model).arg(program.dir.path().join("state")));
    assert!(text.contains("all as expected"), "{text}");
}

#[test]
fn a_c_program_links_the_archive() {
    if !has("cc") {
        return;
    }
    let archive = library("libsecateur_ffi.a").display().to_string();
    let program = compile(&[archive, "-ldl".into(), "-lm".into()]);
    let state = program.dir.path().join("state");
    run(Command::new(&program.path).arg(&program.model).arg(state).arg("quick"));
}

#[test]
fn valgrind_finds_no_fault() {
    // Minutes on a quiet machine, because it prunes a model instruction by instruction.
    if std::env::var_os("SECATEUR_VALGRIND").is_none() {
        eprintln!("skipped: set SECATEUR_VALGRIND=1 to run the C program under valgrind");
        return;
    }
    if !has("cc") || !has("valgrind") {
        return;
    }
    let program = compile(&shared());
    let text = run(Command::new("valgrind")
        .args([
            "--error-exitcode=99",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
            "--num-callers=30",
        ])
        .arg(&program.path)
        .arg(&program.model)
        .arg(program.dir.path().join("state"))
        .arg("quick"));
    assert!(text.contains("ERROR SUMMARY: 0 errors"), "{text}");
}

#[test]
fn only_c_and_jni_symbols_are_exported() {
    if !has("nm") {
        return;
    }
    let text = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library("libsecateur_ffi.so")));
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)).collect();
    let header = include_str!("../include/secateur.h");
    let is_c = |name: &&&str| name.starts_with("secateur_") && header.contains(&format!("{name}("));
    let is_java = |name: &&&str| name.starts_with("Java_dev_secateur_Native_");
    let foreign: Vec<&&str> = names.iter().filter(|name| !is_c(name) && !is_java(name)).collect();
    assert!(foreign.is_empty(), "exported besides (src/hidden.rs must name them): {foreign:?}");
    let counts = (names.iter().filter(is_c).count(), names.iter().filter(is_java).count());
    assert_eq!(counts, (15, 12), "{names:?}");
}

#[test]
fn segments_are_aligned_to_pages_of_16_kib() {
    if !has("readelf") {
        return;
    }
    let text = run(Command::new("readelf").args(["-lW"]).arg(library("libsecateur_ffi.so")));
    let loads: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("LOAD")).collect();
    assert!(2 <= loads.len(), "{text}");
    for load in loads {
        let align = load.split_ascii_whitespace().last().unwrap();
        let align = u64::from_str_radix(align.trim_start_matches("0x"), 16).unwrap();
        assert!(0x4000 <= align, "{load}");
    }
}
