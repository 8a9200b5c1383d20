//! Reads and writes that wait for those of everybody else.

/// The calling thread, and threads that it starts, use the disk only when nobody else does; until this is dropped.
///
/// Linux knows this as the idle class of I/O priorities. Elsewhere, and where a sandbox forbids it, nothing changes. Not
/// on Android: what an app may ask of its kernel differs from version to version, and asking can end the app.
#[derive(Debug)]
#[must_use = "the disk is shared as before once this is dropped"]
pub struct IdleDisk {
    /// What was in force, where it was changed.
    #[cfg(target_os = "linux")]
    before: Option<libc::c_long>,
    /// The priority belongs to the thread that asked.
    _thread: std::marker::PhantomData<*const ()>,
}

/// The target of the calls below is a thread; number 0 is the calling one.
#[cfg(target_os = "linux")]
const THREAD: (libc::c_int, libc::c_int) = (1, 0);
/// The idle class, in the upper three of sixteen bits.
#[cfg(target_os = "linux")]
const IDLE: libc::c_long = 3 << 13;

impl IdleDisk {
    /// Steps back.
    pub fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            before: priority().filter(|_| set_priority(IDLE)),
            _thread: std::marker::PhantomData,
        }
    }

    /// Whether anything changed.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.before.is_some();
        #[cfg(not(target_os = "linux"))]
        false
    }
}

impl Default for IdleDisk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(target_os = "linux")]
impl Drop for IdleDisk {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set_priority(before);
        }
    }
}

#[cfg(target_os = "linux")]
fn priority() -> Option<libc::c_long> {
    // SAFETY: the call takes two integers and touches no memory of the process.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, THREAD.0, THREAD.1) };
    (0 <= priority).then_some(priority)
}

#[cfg(target_os = "linux")]
fn set_priority(priority: libc::c_long) -> bool {
    // SAFETY: the call takes three integers and touches no memory of the process; a wrong one is refused.
    unsafe { libc::syscall(libc::SYS_ioprio_set, THREAD.0, THREAD.1, priority) == 0 }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_those_it_starts_step_back_and_return() {
        let before = priority();
        let idle = IdleDisk::new();
        if !idle.is_in_force() {
            eprintln!("skipped: this kernel or sandbox has no I/O priorities");
            return;
        }
        assert_eq!(priority(), Some(IDLE));
        assert_eq!(std::thread::spawn(priority).join().unwrap(), Some(IDLE));
        drop(idle);
        assert_eq!(priority(), before);
    }
}
