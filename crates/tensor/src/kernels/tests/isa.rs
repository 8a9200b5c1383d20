//! The sets of instructions that tests run on are those of this machine.

use super::Isa;

/// Under emulation the script says what the emulated processor has: a set that is not found would pass every test.
#[test]
fn the_sets_of_this_processor_are_found() {
    let found: Vec<&str> = Isa::all().into_iter().map(Isa::name).collect();
    println!("kernels are tested on {}", found.join(", "));
    assert_eq!(found[0], "portable");
    #[cfg(target_arch = "aarch64")]
    assert!(found.contains(&"neon"), "NEON belongs to every aarch64");
    if let Ok(want) = std::env::var("SECATEUR_EXPECT_ISA") {
        assert_eq!(found.join(" "), want);
    }
}
