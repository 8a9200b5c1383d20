//! Starting a service.

use crate::ServiceError;
use crate::budget::{Budget, plan_file};
use crate::catalog::resolve_model;
use crate::drafting::check_precision;
use crate::handle::ServiceHandle;
use crate::opened::open_file;
use crate::ops::{precision, threads};
use crate::options::ServiceOptions;
use crate::pressure;
use crate::pruning::check_method;
use crate::shared::Shared;
use crate::worker;
use secateur_engine::Precision;
use secateur_store::Store;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running service: its threads, one that computes and one that watches memory, and the way to them.
#[derive(Debug)]
pub struct Service {
    handle: ServiceHandle,
    threads: [JoinHandle<()>; 2],
}

impl Service {
    /// Starts the compute thread, which opens the model, prunes it if it must, and then answers.
    ///
    /// What cannot work is refused here: a model that is none, a budget too small for it, wrong settings.
    /// # Errors
    /// [`ServiceError::Invalid`], [`ServiceError::Io`], [`ServiceError::Data`], [`ServiceError::Refused`].
    pub fn start(options: ServiceOptions) -> Result<Self, ServiceError> {
        let budget = Budget::resolve(&options.memory_budget)?;
        if let Some(warning) = &budget.resolved.warning {
            tracing::warn!("{warning}");
        }
        let n_threads = threads(options.n_threads, &budget)?;
        let precision = precision(options.precision.as_deref(), Precision::Int8)?;
        check_method(&options.prune.method)?;
        options.prune.plan.request()?;
        options.prune.calibration.fit_tokens()?;
        let store = Store::open(&options.state_dir)?;
        if let Some(text) = &options.model {
            let path = resolve_model(text, &options.state_dir)?;
            plan_file(&open_file(&path)?, budget.bytes(), &options.prune.plan)?;
        }
        if let Some(text) = &options.draft {
            check_precision(precision)?;
            open_file(&resolve_model(text, &options.state_dir)?)?;
        }
        let response = options.pressure;
        let shared = Arc::new(Shared::new(options, store, budget.bytes(), n_threads));
        // The watch ends by itself when there is nothing to watch.
        let watch = pressure::spawn(&shared, response)?;
        let compute = worker::spawn(&shared)?;
        Ok(Self { handle: ServiceHandle::new(shared), threads: [compute, watch] })
    }

    /// The way to the service.
    #[must_use]
    pub fn handle(&self) -> ServiceHandle {
        self.handle.clone()
    }

    /// Waits for the threads to end, after [`ServiceHandle::shutdown`] was asked for.
    pub fn join(self) {
        for thread in self.threads {
            // A panic has been caught and logged in the thread.
            let _ = thread.join();
        }
    }
}
