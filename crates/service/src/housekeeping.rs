//! Gives back memory that is held for nothing: free blocks inside of the heap, which would else look like a leak over
//! months, and the pages of a program that has nothing to do.

use crate::api::Readiness;
use crate::shared::Shared;
use secateur_memory::{ProcessMemory, process_memory};
use secateur_tensor::kernels::heap::{release_free_heap, release_program_pages};

/// Growth of the heap that is worth a look for free blocks.
const HEAP_GROWTH_BYTES: u64 = 64 << 10;
/// Resident memory that a service without a model may keep.
const IDLE_BYTES: u64 = 8 << 20;
/// Growth beyond what was left last time that is worth doing it again.
const IDLE_GROWTH_BYTES: u64 = 2 << 20;

/// What was left the last time.
#[derive(Debug, Default)]
pub(crate) struct Housekeeping {
    heap_bytes: u64,
    idle_bytes: u64,
}

impl Housekeeping {
    /// Gives back what there is; takes about a millisecond when it does. Called every few seconds.
    pub(crate) fn look(&mut self, shared: &Shared, process: &ProcessMemory) {
        let heap_bytes = process.rss_anon_bytes.unwrap_or(0);
        // A job's large blocks come and go, and it gives back what is left itself.
        if self.heap_bytes + HEAP_GROWTH_BYTES < heap_bytes && shared.jobs().active().is_none() {
            release_free_heap();
            self.heap_bytes =
                process_memory().ok().and_then(|left| left.rss_anon_bytes).unwrap_or(heap_bytes);
        }
        if is_without_work(shared) && IDLE_BYTES.max(self.idle_bytes + IDLE_GROWTH_BYTES) < process.rss_bytes
        {
            release_free_heap();
            release_program_pages();
            self.idle_bytes = process_memory().map_or(process.rss_bytes, |left| left.rss_bytes);
        }
    }
}

/// True when there is no model, and nothing that makes one.
fn is_without_work(shared: &Shared) -> bool {
    let may_work = matches!(
        shared.readiness(),
        Readiness::Starting | Readiness::Loading | Readiness::Ready | Readiness::Pruning { .. }
    );
    !may_work && shared.heartbeat().idle
}
