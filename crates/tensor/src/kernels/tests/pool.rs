use crate::kernels::ThreadPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn runs_each_task_once_with_its_own_worker_index() {
    for n_threads in [0, 1, 2, 3, 8] {
        let pool = ThreadPool::new(n_threads);
        assert_eq!(pool.n_threads(), n_threads.max(1));
        for n_tasks in [0, 1, 2, 7, 100, 1000] {
            let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
            let busy: Vec<AtomicUsize> = (0..pool.n_threads()).map(|_| AtomicUsize::new(0)).collect();
            pool.run_indexed(n_tasks, &|worker_idx, task_idx| {
                assert_eq!(
                    busy[worker_idx].fetch_add(1, Ordering::SeqCst),
                    0,
                    "a worker index is in use twice"
                );
                counts[task_idx].fetch_add(1, Ordering::SeqCst);
                busy[worker_idx].fetch_sub(1, Ordering::SeqCst);
            });
            assert!(
                counts.iter().all(|count| count.load(Ordering::SeqCst) == 1),
                "{n_threads} threads, {n_tasks}"
            );
        }
    }
}

#[test]
fn wakes_parked_workers() {
    let pool = ThreadPool::new(2);
    for _ in 0..20 {
        std::thread::park_timeout(Duration::from_millis(2));
        // Both tasks wait for each other, so this ends only when the parked worker has come.
        let arrived = AtomicUsize::new(0);
        pool.run(2, &|_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3);
    for bad in [0, 1, 50, 99] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|task_idx| assert_ne!(task_idx, bad, "task {bad}"));
        }));
        let payload = outcome.expect_err("the panic is passed on");
        let text = payload.downcast_ref::<String>().expect("an assertion's message");
        assert!(text.contains(&format!("task {bad}")), "{text}");
        let count = AtomicUsize::new(0);
        pool.run(10, &|_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(count.load(Ordering::SeqCst), 10);
    }
}

#[test]
fn nested_and_concurrent_runs_finish() {
    let pool = ThreadPool::new(2);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    pool.run(3, &|_| {
                        pool.run(5, &|_| {
                            count.fetch_add(1, Ordering::SeqCst);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::SeqCst), 4 * 50 * 3 * 5);
}
