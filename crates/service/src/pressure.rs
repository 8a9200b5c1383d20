//! Reacts to memory pressure while serving: a thread watches and climbs the ladder, the compute thread gives up what
//! the step says.

use crate::ServiceError;
use crate::api::{PruneQuery, Readiness};
use crate::budget::Budget;
use crate::hints::MemoryPressure;
use crate::housekeeping::Housekeeping;
use crate::jobs::Origin;
use crate::options::PressureResponse;
use crate::shared::{Control, Shared};
use crate::worker::Worker;
use secateur_memory::{
    PressureLadder, PressureSample, PressureStep, PressureWake, PressureWatch, ProbeRoot, probe,
    wait_for_pressure,
};
use std::io::PipeReader;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks at the figures.
const INTERVAL: Duration = Duration::from_secs(2);
/// Seconds after which a refused client is asked to come back.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Starts the thread that watches; it ends at once when the service has stopped.
/// # Errors
/// [`ServiceError::Internal`] when the system gives no thread or no pipe.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    response: PressureResponse,
) -> Result<JoinHandle<()>, ServiceError> {
    let (end, alive) = std::io::pipe().map_err(|error| crate::convert::internal(&error))?;
    shared.keep_until_stopped(alive);
    let shared = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("pressure".to_owned()).stack_size(256 << 10);
    // systemd's way to say that nothing is to be watched.
    let is_off = std::env::var_os("MEMORY_PRESSURE_WATCH").is_some_and(|path| path == "/dev/null");
    let response = if is_off { PressureResponse::Ignore } else { response };
    thread.spawn(move || watch(&shared, &end, response)).map_err(|error| crate::convert::internal(&error))
}

/// Looks at the figures until the other side of `end` is closed.
fn watch(shared: &Weak<Shared>, end: &PipeReader, response: PressureResponse) {
    let (started, root) = (Instant::now(), ProbeRoot::host());
    let watch = if response == PressureResponse::GiveUp { PressureWatch::start() } else { None };
    let mut ladder = PressureLadder::default();
    let mut housekeeping = Housekeeping::default();
    loop {
        let alive = watch.as_ref().filter(|watch| watch.is_alive());
        let triggered = match wait_for_pressure(alive, end, INTERVAL) {
            PressureWake::Ended => return,
            PressureWake::Stalled => true,
            PressureWake::Elapsed => false,
        };
        let Some(shared) = shared.upgrade() else { return };
        let Ok(status) = probe(&root) else { continue };
        if response == PressureResponse::GiveUp {
            let before = ladder.step();
            let step = ladder.observe(started.elapsed(), PressureSample::of(&status, triggered));
            if step != before {
                tracing::warn!(from = before.name(), to = step.name(), "memory pressure");
                shared.set_pressure(step);
            }
        }
        housekeeping.look(&shared, &status.process);
        drop(shared);
        // The kernel speaks at most once in a window; more often is only noise.
        if triggered && wait_for_pressure(None, end, INTERVAL / 4) == PressureWake::Ended {
            return;
        }
    }
}

impl Shared {
    /// Stands on another step of the ladder from now on.
    pub(crate) fn set_pressure(&self, step: PressureStep) {
        self.store_pressure(step);
        // Nobody is left to act once the queue is closed.
        let _ = self.control(Control::Pressure);
    }
}

impl Worker {
    /// Gives up what the present step says, or takes back what is no longer to be given up.
    pub(crate) fn react_to_pressure(&mut self) {
        let step = self.shared.pressure();
        if let Some(loaded) = &mut self.loaded {
            loaded.give_up(step);
        }
        if PressureStep::Unload <= step && self.loaded.is_some() {
            self.shared.set_last_served(self.loaded.as_ref().map(|loaded| loaded.model_id()));
            self.retire();
            self.shared.set_readiness(Readiness::Released);
        }
        if step == PressureStep::Replan {
            self.replan();
        }
        let is_critical = self.shared.hints().memory() == MemoryPressure::Critical;
        if step < PressureStep::RefuseWork && self.loaded.is_none() && !is_critical {
            self.serve_again();
        }
    }

    /// Starts a job for a smaller model when the budget that is left would want one.
    fn replan(&mut self) {
        if self.shared.base().is_none() || self.shared.jobs().active().is_some() {
            return;
        }
        let Ok(budget) = Budget::resolve("auto") else { return };
        if self.shared.budget_bytes() <= budget.bytes() {
            return;
        }
        let query = PruneQuery {
            memory_budget: Some(budget.bytes().to_string()),
            activate: true,
            ..PruneQuery::default()
        };
        match self.shared.jobs().add(Origin::Service, query) {
            Ok(job) => {
                tracing::warn!(job = %job.id(), budget_bytes = budget.bytes(), "making a smaller model");
                if self.shared.control(Control::Prune(job.clone())).is_err() {
                    job.cancel();
                }
            }
            Err(error) => tracing::warn!(error = error.to_string(), "no smaller model can be made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CompletionRequest, FinishReason, GenerationEvent, GenerationParams, Prompt};
    use crate::{Service, ServiceHandle, ServiceOptions};
    use secateur_test_support::TinyModel;

    fn request(max_tokens: usize) -> CompletionRequest {
        let mut params = GenerationParams { max_tokens: Some(max_tokens), ..GenerationParams::default() };
        params.sampling.logit_bias = (0..3).map(|token| (token, -100.0)).collect();
        CompletionRequest { prompt: Prompt::Text("Once upon a time".into()), params }
    }

    async fn reach(handle: &ServiceHandle, wanted: impl Fn(&Readiness) -> bool) {
        handle.watch_readiness().wait_for(|readiness| wanted(readiness)).await.unwrap();
    }

    async fn end(handle: &ServiceHandle, max_tokens: usize) -> Option<FinishReason> {
        let mut stream = handle.complete(&request(max_tokens)).unwrap();
        let mut end = None;
        while let Some(event) = stream.next().await {
            if let GenerationEvent::Finished { reason, .. } = event {
                end = Some(reason);
            }
        }
        end
    }

    #[tokio::test]
    async fn the_watch_ends_with_the_service() {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(ServiceOptions::new(dir.path().join("state"))).unwrap();
        let shared = Arc::downgrade(service.handle().shared());
        service.handle().shutdown(Duration::ZERO).await;
        let stopped = Instant::now();
        service.join();
        assert!(stopped.elapsed() < INTERVAL / 4, "{:?}", stopped.elapsed());
        assert_eq!(shared.strong_count(), 0, "no thread has it");
    }

    #[tokio::test]
    async fn the_ladder_is_climbed_and_left_while_serving() {
        let dir = tempfile::tempdir().unwrap();
        let model = TinyModel::default().write_to(dir.path());
        let service = Service::start(ServiceOptions {
            model: Some(model.to_str().unwrap().to_owned()),
            memory_budget: "512MiB".into(),
            pressure: PressureResponse::Ignore,
            ..ServiceOptions::new(dir.path().join("state"))
        });
        let service = service.unwrap();
        let handle = service.handle();
        reach(&handle, Readiness::is_ready).await;
        let shared = handle.shared().clone();
        for step in [PressureStep::DropCaches, PressureStep::ShrinkCaches, PressureStep::GiveBackPages] {
            shared.set_pressure(step);
            assert_eq!(end(&handle, 8).await, Some(FinishReason::Length), "{step:?}: requests are answered");
            assert_eq!(handle.metrics().pressure_step, step.level() as u64);
        }
        // A request at work survives what comes next.
        let mut at_work = handle.complete(&request(40)).unwrap();
        assert!(matches!(at_work.next().await, Some(GenerationEvent::Started { .. })));
        shared.set_pressure(PressureStep::RefuseWork);
        let refused = handle.complete(&request(1)).unwrap_err();
        assert!(matches!(refused, ServiceError::Busy { retry_after, .. } if retry_after == RETRY_AFTER));
        shared.set_pressure(PressureStep::Unload);
        reach(&handle, |readiness| *readiness == Readiness::Released).await;
        let mut finished = false;
        while let Some(event) = at_work.next().await {
            finished |= matches!(event, GenerationEvent::Finished { .. });
        }
        assert!(finished, "it came to its end before the model left");
        assert!(handle.status().model.is_none());
        // The budget is far below what the machine gives, so there is nothing smaller to plan.
        shared.set_pressure(PressureStep::Replan);
        shared.set_pressure(PressureStep::Calm);
        reach(&handle, Readiness::is_ready).await;
        assert_eq!(end(&handle, 8).await, Some(FinishReason::Length));
        assert!(handle.jobs().is_empty());
        handle.shutdown(Duration::from_secs(5)).await;
        service.join();
    }
}
