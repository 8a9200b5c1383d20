//! A fork-join pool of threads for kernels.
//!
//! [`ThreadPool::run`] hands out task numbers `0..n_tasks`; the caller takes part. Workers that find
//! nothing to do spin for [`SPIN`] and then park, so that back-to-back kernels pay about a microsecond
//! and an idle process pays nothing. `run` never allocates.
//!
//! Invariants: the job is published before `open` is set and not touched again until `open` is clear and
//! `inside` is zero. A worker raises `inside` before it looks at `open`; both are sequentially consistent,
//! so either the worker sees a closed job or the caller sees the worker and waits for it.

use super::buffer::sized;
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const SPIN: Duration = Duration::from_micros(80);

/// The most threads a pool has; larger requests are cut to it.
pub const MAX_THREADS: usize = 64;

/// Spins between two looks at the clock.
const SPINS_PER_CLOCK: usize = 64;

/// Spins of the caller before it offers its core to the worker it waits for.
const CALLER_SPINS: usize = 4096;

/// A value on cache lines of its own: 128 bytes because prefetchers fetch lines in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// What [`ThreadPool::run_indexed`] calls: worker index, task index.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The job on offer. The lifetime of `task` is erased: the pointer is read only inside the `run` that set it.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    n_tasks: usize,
}

struct Shared {
    job: UnsafeCell<Option<Job>>,
    open: Padded<AtomicBool>,
    /// Rises by one with each job, so that a worker takes each job at most once.
    epoch: Padded<AtomicUsize>,
    next_task: Padded<AtomicUsize>,
    inside: Padded<AtomicUsize>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    park: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is the only part that is not Sync by itself. It is written by the thread that holds the
// pool's `running` lock while `open` is false and `inside` is zero, and read by workers between a raise of
// `inside` with `open` seen true and the matching drop of `inside` (see the module's invariants).
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer in `job` is not used after the `run` that set it has returned.
unsafe impl Send for Shared {}

/// A fixed set of threads that run the tasks of one kernel at a time.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
    /// Packed operands of the products that run on this pool.
    panels: Mutex<Vec<f32>>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("n_threads", &self.n_threads()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values stay whole when a holder panics: nothing is half-written under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// Starts `n_threads - 1` workers; the caller of [`Self::run`] is the last thread.
    ///
    /// Zero means one; requests above [`MAX_THREADS`] are cut to it. When the system refuses a thread the
    /// pool has fewer: [`Self::n_threads`] tells. Results of kernels do not depend on the number.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        let n_workers = n_threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            open: Padded(AtomicBool::new(false)),
            epoch: Padded(AtomicUsize::new(0)),
            next_task: Padded(AtomicUsize::new(0)),
            inside: Padded(AtomicUsize::new(0)),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            park: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut workers = Vec::with_capacity(n_workers);
        for worker_idx in 1..=n_workers {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("kernel-{worker_idx}"));
            let Ok(handle) = thread.spawn(move || work(&shared, worker_idx)) else { break };
            workers.push(handle);
        }
        Self { shared, workers, running: Mutex::new(()), panels: Mutex::default() }
    }

    /// Threads that take part in a job, the caller included.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, ..., `task(n_tasks - 1)`, each once, on all threads, and returns when all are done.
    ///
    /// While another thread's job holds the pool, or from inside a task, the caller runs its tasks alone.
    /// # Panics
    /// When a task panics, with that panic; tasks not started by then are skipped.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_indexed(n_tasks, &|_, task_idx| task(task_idx));
    }

    /// As [`Self::run`]; `task` also gets the index of its thread, below [`Self::n_threads`], which no other
    /// task of this call has at the same time.
    /// # Panics
    /// As [`Self::run`].
    pub fn run_indexed(&self, n_tasks: usize, task: &Task<'_>) {
        let guard = if n_tasks > 1 && !self.workers.is_empty() { self.try_hold() } else { None };
        let Some(_guard) = guard else {
            for task_idx in 0..n_tasks {
                task(0, task_idx);
            }
            return;
        };
        self.publish(n_tasks, task);
        let outcome = catch_unwind(AssertUnwindSafe(|| take_tasks(&self.shared, task, n_tasks, 0)));
        if outcome.is_err() {
            self.shared.next_task.0.store(n_tasks, Ordering::Relaxed);
        }
        self.close();
        let from_worker = lock(&self.shared.panic).take();
        if let Err(payload) = outcome {
            resume_unwind(payload);
        }
        if let Some(payload) = from_worker {
            resume_unwind(payload);
        }
    }

    /// Hands `run` a buffer of `len` values, which stays for the next call; what it holds is left open.
    pub(crate) fn with_panels<T>(&self, len: usize, run: impl FnOnce(&mut [f32]) -> T) -> T {
        let mut own = Vec::new();
        let mut held = self.panels.try_lock().ok();
        run(sized(held.as_deref_mut().unwrap_or(&mut own), len))
    }

    /// Frees the memory that products on this pool have left for the next one.
    pub fn release_panels(&self) {
        *lock(&self.panels) = Vec::new();
    }

    fn try_hold(&self) -> Option<MutexGuard<'_, ()>> {
        match self.running.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    fn publish(&self, n_tasks: usize, task: &Task<'_>) {
        // SAFETY: only the lifetime changes. `close` makes sure that no worker holds the pointer when
        // `run_indexed` returns or unwinds.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let shared = &*self.shared;
        // SAFETY: `running` is held, `open` is false and `inside` is zero: nobody reads the job.
        unsafe { *shared.job.get() = Some(Job { task, n_tasks }) };
        shared.next_task.0.store(0, Ordering::Relaxed);
        shared.open.0.store(true, Ordering::SeqCst);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.park));
            shared.wake.notify_all();
        }
    }

    /// Closes the job and waits until no worker is inside it.
    fn close(&self) {
        self.shared.open.0.store(false, Ordering::SeqCst);
        let mut n_spins = 0;
        while self.shared.inside.0.load(Ordering::SeqCst) != 0 {
            n_spins += 1;
            if n_spins < CALLER_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.park));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks, so this join cannot fail in a way worth telling.
            let _ = worker.join();
        }
    }
}

fn take_tasks(shared: &Shared, task: &Task<'_>, n_tasks: usize, worker_idx: usize) {
    loop {
        let task_idx = shared.next_task.0.fetch_add(1, Ordering::Relaxed);
        if task_idx >= n_tasks {
            return;
        }
        task(worker_idx, task_idx);
    }
}

fn work(shared: &Shared, worker_idx: usize) {
    let mut seen_epoch = 0;
    loop {
        seen_epoch = wait_for_epoch(shared, seen_epoch);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        shared.inside.0.fetch_add(1, Ordering::SeqCst);
        if shared.open.0.load(Ordering::SeqCst) {
            work_inside(shared, worker_idx);
        }
        shared.inside.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn work_inside(shared: &Shared, worker_idx: usize) {
    // SAFETY: `inside` was raised and `open` seen true after it, so the job is published and stays until
    // `inside` drops again.
    let job = unsafe { *shared.job.get() };
    let Some(Job { task, n_tasks }) = job else { return };
    // SAFETY: the caller's `run_indexed`, which owns the task, waits for `inside` to be zero.
    let task = unsafe { &*task };
    let outcome = catch_unwind(AssertUnwindSafe(|| take_tasks(shared, task, n_tasks, worker_idx)));
    if let Err(payload) = outcome {
        shared.next_task.0.store(n_tasks, Ordering::Relaxed);
        lock(&shared.panic).get_or_insert(payload);
    }
}

/// Returns the epoch when it differs from `seen_epoch`: spins first, then parks.
fn wait_for_epoch(shared: &Shared, seen_epoch: usize) -> usize {
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_PER_CLOCK {
            let epoch = shared.epoch.0.load(Ordering::SeqCst);
            if epoch != seen_epoch {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if SPIN <= start.elapsed() {
            break;
        }
    }
    let mut guard = lock(&shared.park);
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    while shared.epoch.0.load(Ordering::SeqCst) == seen_epoch {
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
    drop(guard);
    shared.epoch.0.load(Ordering::SeqCst)
}
