//! Link arguments of the shared library.

fn main() {
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "linux" || os == "android" {
        // Devices with pages of 16 KiB (Android 15 and later, Raspberry Pi 5) load nothing that is aligned to less.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
        // A stable name in the dynamic section, whatever the file is called.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsecateur_ffi.so");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
