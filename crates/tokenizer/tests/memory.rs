//! What the reference tokenizer costs. Alone in its file, because it measures its whole process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use secateur_tokenizer::AddSpecial;

const KIB: u64 = 1;
const MIB: u64 = 1024 * KIB;

fn status_kib(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Makes the peak start again from the current size; false where the system cannot.
fn reset_peak() -> bool {
    let is_done = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let (peak, now) = (status_kib("VmHWM:").unwrap_or(u64::MAX), status_kib("VmRSS:").unwrap_or(0));
    is_done && peak.abs_diff(now) < MIB / 4
}

#[test]
fn the_reference_tokenizer_is_small() {
    let Some(reference) = common::Reference::load() else { return };
    let vocab = reference.vocab();
    if !reset_peak() {
        eprintln!("skipped: the peak of this process cannot be measured here");
        return;
    }
    let before = status_kib("VmRSS:").unwrap();
    let tokenizer = secateur_tokenizer::Tokenizer::from_gguf(&vocab).unwrap();
    let (after, peak) = (status_kib("VmRSS:").unwrap(), status_kib("VmHWM:").unwrap());
    println!("built: {} KiB resident, {} KiB at the peak", after - before, peak - before);
    assert!(peak - before < 4 * MIB, "building takes {} KiB", peak - before);

    let text = "The quick brown fox, aged 12, jumps over the lazy dog's tail.\n".repeat(16_000);
    let before = status_kib("VmRSS:").unwrap();
    assert!(reset_peak());
    let ids = tokenizer.encode(&text, AddSpecial::No).unwrap();
    let peak = status_kib("VmHWM:").unwrap();
    println!("encoded {} bytes to {} tokens: {} KiB at the peak", text.len(), ids.len(), peak - before);
    // The result alone may take twice its 4 bytes a token while it grows.
    let allowed = 12 * ids.len() as u64 / 1024 + MIB;
    assert!(peak - before < allowed, "encoding takes {} KiB, {allowed} allowed", peak - before);
}
