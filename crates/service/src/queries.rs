//! Questions that are answered at once, on the caller's thread: models, memory, plans.

use crate::ServiceError;
use crate::api::{MemoryView, ModelView, PlanQuery, PlanView, PruneQuery};
use crate::budget::{Budget, PlanSettings, plan_file, plan_view};
use crate::catalog::{Known, all_models, base_model, find_model, resolve_model};
use crate::convert::error_chain;
use crate::opened::open_file;
use crate::pruning::check_method;
use crate::shared::Shared;
use crate::work::{prune_settings, sweep_work_dirs};
use std::path::Path;

impl Shared {
    pub(crate) fn memory(&self) -> Result<MemoryView, ServiceError> {
        let budget = Budget::resolve(&self.options().memory_budget)?;
        // The budget was fixed at the start; only the device's figures are new.
        Ok(MemoryView { budget_bytes: self.budget_bytes(), ..budget.view() })
    }

    pub(crate) fn models(&self) -> Result<Vec<ModelView>, ServiceError> {
        let active = self.status().model.map(|served| served.model.id);
        let known = all_models(self.base(), self.store())?;
        let view = |known: Known| {
            let active = active.as_ref() == Some(&known.view.id);
            ModelView { active, ..known.view }
        };
        Ok(known.into_iter().map(view).collect())
    }

    /// The model that a query names; the base model, or else the only one there is, when it names none.
    pub(crate) fn model_or_base(&self, name: Option<&str>) -> Result<Known, ServiceError> {
        let models = all_models(self.base(), self.store())?;
        if let Some(name) = name {
            return find_model(&models, name);
        }
        let message = "there is no base model; start the service with --model, or name one".to_owned();
        self.base().cloned().ok_or(ServiceError::Conflict { message })
    }

    pub(crate) fn budget_or_own(&self, text: Option<&str>) -> Result<u64, ServiceError> {
        text.map_or(Ok(self.budget_bytes()), |text| Budget::resolve(text).map(|budget| budget.bytes()))
    }

    pub(crate) fn plan(&self, query: &PlanQuery) -> Result<PlanView, ServiceError> {
        let known = self.model_or_base(query.model.as_deref())?;
        let budget_bytes = self.budget_or_own(query.memory_budget.as_deref())?;
        let own = &self.options().prune.plan;
        let settings = PlanSettings {
            ratio: query.ratio,
            context_len: query.context_len.or(own.context_len),
            policy: query.policy.clone().or(own.policy.clone()),
            dtype: query.dtype.clone().or(own.dtype.clone()),
            table_dtype: query.table_dtype.clone().or(own.table_dtype.clone()),
            kv_dtype: own.kv_dtype.clone(),
        };
        let plan = plan_file(&open_file(&known.path)?, budget_bytes, &settings)?;
        Ok(plan_view(&plan, budget_bytes, &settings))
    }

    /// Refuses at once what a job could only fail with.
    pub(crate) fn check_prune(&self, query: &PruneQuery) -> Result<(), ServiceError> {
        let settings = prune_settings(&self.options().prune, query);
        settings.plan.request()?;
        settings.plan.prune_ratio()?;
        settings.calibration.fit_tokens()?;
        check_method(&settings.method)?;
        self.budget_or_own(query.memory_budget.as_deref())?;
        self.model_or_base(query.model.as_deref()).map(drop)
    }

    pub(crate) fn delete_model(&self, id: &str) -> Result<(), ServiceError> {
        let models = all_models(self.base(), self.store())?;
        let known = find_model(&models, id)?;
        let Some(entry) = known.entry else {
            let message = "the base model is the user's file, which the service does not delete".to_owned();
            return Err(ServiceError::Conflict { message });
        };
        if self.status().model.is_some_and(|served| served.model.id == entry.as_str()) {
            let message = "the model is being served; activate another one first".to_owned();
            return Err(ServiceError::Conflict { message });
        }
        Ok(self.store().remove(&entry)?)
    }

    /// The model to begin with: that of the options, or else the newest one of the store.
    pub(crate) fn first_model(&self) -> Result<Option<Known>, ServiceError> {
        let Some(text) = &self.options().model else {
            return Ok(all_models(None, self.store())?.pop());
        };
        let path = resolve_model(text, &self.options().state_dir)?;
        let stored = all_models(None, self.store())?.into_iter().find(|known| known.path == path);
        if stored.is_some() {
            return Ok(stored);
        }
        let known = base_model(&path)?;
        self.set_base(known.clone());
        Ok(Some(known))
    }

    /// Sweeps up what killed processes left.
    pub(crate) fn sweep(&self) {
        match self.store().collect_garbage() {
            Ok(garbage) if 0 < garbage.folders => {
                tracing::info!(
                    folders = garbage.folders,
                    bytes = garbage.bytes,
                    "swept up half-done entries"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "half-done entries could not be swept up")
            }
        }
        let jobs_dir = self.jobs_dir();
        if let Err(error) = make_dir(&jobs_dir).and_then(|()| sweep_work_dirs(&jobs_dir)) {
            tracing::warn!(error = error_chain(&error), "old work folders could not be swept up");
        }
    }
}

fn make_dir(path: &Path) -> Result<(), ServiceError> {
    std::fs::create_dir_all(path).map_err(|error| crate::convert::io_error(path, error))
}
