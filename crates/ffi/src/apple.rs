//! What iOS says about this app's memory.
//!
//! No machine of ours runs it; `tests/arm/phones` checks its types.

use secateur_service::{AppleFigures, AppleProbe, set_platform_probe};

/// Flavour and structure of `task_info(TASK_VM_INFO)`, up to `phys_footprint` (mach/task_info.h).
const TASK_VM_INFO: u32 = 22;

#[repr(C)]
#[derive(Default)]
struct TaskVmInfo {
    virtual_size: u64,
    region_count: i32,
    page_size: i32,
    resident_size: u64,
    resident_size_peak: u64,
    device: u64,
    device_peak: u64,
    internal: u64,
    internal_peak: u64,
    external: u64,
    external_peak: u64,
    reusable: u64,
    reusable_peak: u64,
    purgeable_volatile_pmap: u64,
    purgeable_volatile_resident: u64,
    purgeable_volatile_virtual: u64,
    compressed: u64,
    compressed_peak: u64,
    compressed_lifetime: u64,
    phys_footprint: u64,
}

unsafe extern "C" {
    static mach_task_self_: u32;
    fn task_info(task: u32, flavor: u32, out: *mut TaskVmInfo, count: *mut u32) -> i32;
    fn os_proc_available_memory() -> usize;
}

fn figures() -> Option<AppleFigures> {
    let mut info = TaskVmInfo::default();
    let mut count = (size_of::<TaskVmInfo>() / size_of::<u32>()) as u32;
    // SAFETY: `info` has room for `count` words, which is what the kernel is told; it fills no more than that.
    let result = unsafe { task_info(mach_task_self_, TASK_VM_INFO, &raw mut info, &raw mut count) };
    if result != 0 {
        return None;
    }
    // SAFETY: takes nothing and returns a number; there since iOS 13.
    let available = unsafe { os_proc_available_memory() };
    Some(AppleFigures {
        available_bytes: available as u64,
        footprint_bytes: info.phys_footprint,
        resident_bytes: info.resident_size,
        resident_peak_bytes: info.resident_size_peak,
    })
}

/// Makes budgets follow the limit of this app.
pub(crate) fn install_probe() {
    // A second instance finds it in place.
    let _ = set_platform_probe(Box::new(AppleProbe::new(figures)));
}
