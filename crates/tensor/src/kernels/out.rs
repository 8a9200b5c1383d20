//! A pointer that tasks of one kernel share to write disjoint parts of one slice.

/// The start of a slice whose parts are written by several tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutPtr(*mut f32);

// SAFETY: the pointer is only an address; whoever writes through it vouches, in an `unsafe` block of its own,
// that its part is inside the slice and belongs to its task alone.
unsafe impl Send for OutPtr {}
// SAFETY: as above.
unsafe impl Sync for OutPtr {}

impl OutPtr {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The start of a part of a slice.
    pub(crate) fn from_ptr(start: *mut f32) -> Self {
        Self(start)
    }

    /// The address of value `idx`.
    /// # Safety
    /// The slice has it, or it is the end of the slice.
    #[inline(always)]
    pub(crate) unsafe fn at(self, idx: usize) -> *mut f32 {
        // SAFETY: the caller vouches for the index.
        unsafe { self.0.add(idx) }
    }

    /// `len` values from `start` on, for one task.
    /// # Safety
    /// The slice outlives `'a` and has these values, and nobody else touches them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller vouches for all of it.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
