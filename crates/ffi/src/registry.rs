//! Handles are numbers, never addresses: one that was freed is not found, whatever has been made since.

use crate::error::{FfiError, SecateurCode};
use crate::instance::Instance;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Registry {
    next: u64,
    instances: BTreeMap<u64, Arc<Instance>>,
}

// The first handle is no small number, so that a mistaken argument is not one by accident.
static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next: 0x5ec0_0001, instances: BTreeMap::new() });

fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives an instance a handle.
pub(crate) fn insert(instance: Instance) -> u64 {
    let mut registry = lock();
    let handle = registry.next;
    registry.next += 1;
    registry.instances.insert(handle, Arc::new(instance));
    handle
}

/// # Errors
/// `InvalidHandle`.
pub(crate) fn get(handle: u64) -> Result<Arc<Instance>, FfiError> {
    lock().instances.get(&handle).cloned().ok_or_else(|| invalid(handle))
}

/// Forgets a handle; calls at work keep the instance until they end.
/// # Errors
/// `InvalidHandle`.
pub(crate) fn remove(handle: u64) -> Result<Arc<Instance>, FfiError> {
    lock().instances.remove(&handle).ok_or_else(|| invalid(handle))
}

fn invalid(handle: u64) -> FfiError {
    let message = match handle {
        0 => "the handle is null".to_owned(),
        _ => format!("{handle:#x} is not a handle, or it has been freed"),
    };
    FfiError::new(SecateurCode::InvalidHandle, message)
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Runs a callback of the app, marked as such for [`check_may_wait`].
pub(crate) fn in_callback<T>(call: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            IN_CALLBACK.set(false);
        }
    }
    IN_CALLBACK.set(true);
    let _leave = Leave;
    call()
}

/// # Errors
/// `Reentrant` inside a callback: what waits there would hold up the call that is waiting for the callback.
pub(crate) fn check_may_wait() -> Result<(), FfiError> {
    if IN_CALLBACK.get() {
        let message = "this call waits, so it must not be made from inside a callback: return first, or use \
                       another thread";
        return Err(FfiError::new(SecateurCode::Reentrant, message));
    }
    Ok(())
}
