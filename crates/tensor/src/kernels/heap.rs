//! How the C heap treats large blocks: they must leave the process when they are freed.
//!
//! glibc raises its mapping threshold to the size of the largest block freed so far; later matrices of a few
//! megabytes then come from the heap proper, where one small block above them keeps their pages resident. A
//! fixed threshold hands every large block back to the system at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a count of the blocks it gave out: for tests of what must not allocate.
#[derive(Debug, Default)]
pub struct CountingAllocator {
    n_blocks: AtomicUsize,
}

impl CountingAllocator {
    /// A counter at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { n_blocks: AtomicUsize::new(0) }
    }

    /// Blocks given out or moved since the start, by all threads.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.n_blocks.load(Ordering::Relaxed)
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the count touches no memory of the blocks.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.n_blocks.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.n_blocks.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.n_blocks.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Blocks from this size on are mappings of their own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD_BYTES: libc::c_int = 256 << 10;
/// Free bytes at the end of the heap that are kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD_BYTES: libc::c_int = 1 << 20;
/// Heaps that threads share.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 2;

/// Makes freed large blocks leave the process. Call once, before threads start; does nothing where the system's
/// allocator needs no such help.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        // SAFETY: mallopt takes two integers and touches only the allocator's own settings, under its lock; an
        // unknown parameter is refused by its return value and changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives the free pages inside of the heap back to the system: small blocks that stay alive keep the blocks below
/// them from being returned one by one. Takes about a millisecond; call it between pieces of work.
pub fn release_free_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim takes the allocator's own locks and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the resident pages of the program's and its libraries' own files back to the system: code and constants that
/// were needed once, at the start, say. They are read again, mostly from the page cache, when they are touched, so this
/// is for a process that has nothing to do. Does nothing on systems other than 64-bit Linux with glibc.
pub fn release_program_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    // SAFETY: the callback has the signature that is asked for, unwinds never, and is handed no data.
    unsafe {
        libc::dl_iterate_phdr(Some(program::release_segments), std::ptr::null_mut());
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod program {
    use std::slice::from_raw_parts;

    /// An entry of a dynamic section, as in the ELF specification.
    #[repr(C)]
    struct Dynamic {
        tag: u64,
        value: u64,
    }
    const DT_NULL: u64 = 0;
    const DT_TEXTREL: u64 = 22;
    const DT_FLAGS: u64 = 30;
    const DF_TEXTREL: u64 = 4;

    /// Gives back the segments of one loaded object that are never written.
    ///
    /// # Safety
    /// `info` is what `dl_iterate_phdr` hands to its callback: the object stays loaded until this returns.
    pub(super) unsafe extern "C" fn release_segments(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        _data: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the caller's promise.
        let info = unsafe { &*info };
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the loader's own table, which it promises to be this long.
        let headers = unsafe { from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        // SAFETY: as above.
        if headers.iter().any(|header| unsafe { has_text_relocations(info, header) }) {
            return 0;
        }
        // SAFETY: sysconf has no preconditions.
        let page_bytes = match unsafe { libc::sysconf(libc::_SC_PAGESIZE) } {
            bytes if 0 < bytes => bytes as u64,
            _ => return 0,
        };
        for header in headers {
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr) / page_bytes * page_bytes;
            let end = info.dlpi_addr.wrapping_add(header.p_vaddr).wrapping_add(header.p_filesz);
            // SAFETY: the pages from the one with the segment's first byte to the one with its last are a private
            // mapping of the object's file, which was not writable since it was made: the object asks for no
            // relocations of its text, and what is made read-only after relocation lies in a writable segment. So no
            // page differs from the file, and dropping them changes no byte that anybody reads. The loader's lock is
            // held, so the object is not unloaded meanwhile.
            unsafe {
                libc::madvise(
                    start as *mut libc::c_void,
                    end.saturating_sub(start) as usize,
                    libc::MADV_DONTNEED,
                );
            }
        }
        0
    }

    /// Whether the header is of a dynamic section that has the loader write into read-only segments.
    ///
    /// # Safety
    /// The object is loaded, and the header is one of its own.
    unsafe fn has_text_relocations(info: &libc::dl_phdr_info, header: &libc::Elf64_Phdr) -> bool {
        if header.p_type != libc::PT_DYNAMIC {
            return false;
        }
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr) as *const Dynamic;
        let n_entries = header.p_memsz as usize / size_of::<Dynamic>();
        // SAFETY: the section is loaded, aligned as its entries are, and this long; the loader has done its writing
        // to it before it listed the object.
        let entries = unsafe { from_raw_parts(start, n_entries) };
        let mut entries = entries.iter().take_while(|entry| entry.tag != DT_NULL);
        entries
            .any(|entry| entry.tag == DT_TEXTREL || (entry.tag == DT_FLAGS && entry.value & DF_TEXTREL != 0))
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod tests {
    use super::*;

    /// Constants and code are what they were, also while other threads run through them.
    #[test]
    fn a_program_goes_on_without_its_pages() {
        static TABLE: [u64; 4096] = {
            let mut table = [0; 4096];
            let mut idx = 0;
            while idx < table.len() {
                table[idx] = idx as u64 * 0x9e37_79b9;
                idx += 1;
            }
            table
        };
        let sum = || std::hint::black_box(&TABLE).iter().fold(0u64, |sum, value| sum.rotate_left(5) ^ value);
        let want = sum();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(sum(), want);
                        assert_eq!(format!("{:.3}", std::hint::black_box(2.5_f64).sqrt()), "1.581");
                    }
                });
            }
            for _ in 0..20 {
                release_program_pages();
            }
        });
        assert_eq!(sum(), want);
    }
}
