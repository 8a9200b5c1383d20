//! From what users write to what the planner decides.

use crate::ServiceError;
use crate::api::{LimitView, MemoryView, PlanView};
use crate::convert::{data_error, invalid};
use secateur_memory::{
    MemoryBudget, MemoryStatus, PlanRequest, ProbeRoot, ResolvedBudget, Storage, WeightsSummary,
};
use secateur_model::{KvDType, PlanPolicy, PrunePlan, PruneRatio, WeightSource};
use secateur_model_file::ModelFile;
use secateur_tensor::DType;

/// A memory budget and the device it was resolved on.
#[derive(Clone, Debug)]
pub struct Budget {
    /// As written.
    pub budget: MemoryBudget,
    /// In bytes.
    pub resolved: ResolvedBudget,
    /// The device.
    pub status: MemoryStatus,
}

impl Budget {
    /// Reads a budget (`auto`, `128MiB`, `70%`) and asks the device what it means.
    /// # Errors
    /// [`ServiceError::Invalid`] when it is none of these.
    pub fn resolve(text: &str) -> Result<Self, ServiceError> {
        let budget: MemoryBudget = text.parse()?;
        let status = secateur_memory::probe(&ProbeRoot::host())?;
        let resolved = budget.resolve(&status);
        Ok(Self { budget, resolved, status })
    }

    /// The budget in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.resolved.budget_bytes
    }

    /// What the device can give and what we allow ourselves.
    #[must_use]
    pub fn view(&self) -> MemoryView {
        let status = &self.status;
        let pressure = status.pressure.first().map(|pressure| pressure.some.avg10);
        MemoryView {
            total_bytes: status.total_bytes,
            available_bytes: status.available_bytes,
            budget_bytes: self.resolved.budget_bytes,
            budget: self.budget.to_string(),
            rss_bytes: status.process.rss_bytes,
            rss_peak_bytes: status.process.rss_peak_bytes.unwrap_or(status.process.rss_bytes),
            limits: status
                .limits
                .iter()
                .map(|limit| LimitView {
                    source: limit.source.clone(),
                    available_bytes: limit.available_bytes,
                })
                .collect(),
            pressure_some_avg10: pressure,
        }
    }
}

/// Resident memory of this process and its peak; zeros where the system does not tell.
#[must_use]
pub fn resident_bytes() -> (u64, u64) {
    match secateur_memory::process_memory() {
        Ok(process) => (process.rss_bytes, process.rss_peak_bytes.unwrap_or(process.rss_bytes)),
        Err(_) => (0, 0),
    }
}

/// What is asked of a plan, in the users' words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanSettings {
    /// Share to remove, whatever the budget.
    pub ratio: Option<f64>,
    /// Context to plan for.
    pub context_len: Option<usize>,
    /// `quality` or `compatible`.
    pub policy: Option<String>,
    /// How all matrices are stored: `auto` (also when absent), `keep` or a dtype that can be written.
    pub dtype: Option<String>,
    /// How token table and output head are stored: `auto` (also when absent), `keep` or a dtype.
    pub table_dtype: Option<String>,
    /// `auto` (also when absent), `f32`, `f16` or `q8_0`.
    pub kv_dtype: Option<String>,
}

impl PlanSettings {
    /// The planner's words for these.
    /// # Errors
    /// [`ServiceError::Invalid`] naming the setting and what is allowed.
    pub fn request(&self) -> Result<PlanRequest, ServiceError> {
        let policy = self.policy.as_deref().map(|name| {
            let unknown =
                || invalid("policy", format!("`{name}` is not known, allowed are quality, compatible"));
            PlanPolicy::from_name(name).ok_or_else(unknown)
        });
        let dtype = parse_storage("dtype", self.dtype.as_deref())?;
        Ok(PlanRequest {
            context_len: self.context_len,
            policy: policy.transpose()?.unwrap_or_default(),
            dtype,
            tables: self.tables(dtype)?,
            kv_dtype: parse_kv_dtype(self.kv_dtype.as_deref())?,
            ..PlanRequest::default()
        })
    }

    /// What may happen to the tables when the matrices are stored as `dtype` says.
    fn tables(&self, dtype: Storage) -> Result<Storage, ServiceError> {
        let follows = dtype.covers_tables();
        match parse_storage("table_dtype", self.table_dtype.as_deref())? {
            Storage::Auto if follows => Ok(Storage::Keep),
            Storage::As(_) if follows => Err(invalid(
                "table_dtype",
                "goes with dtype auto, keep, q4_0 or q4_1; others are for the tables too",
            )),
            tables => Ok(tables),
        }
    }

    /// The share to remove, checked.
    /// # Errors
    /// [`ServiceError::Invalid`] outside `0.0..1.0`.
    pub fn prune_ratio(&self) -> Result<Option<PruneRatio>, ServiceError> {
        let ratio = self.ratio.map(|ratio| {
            let wrong =
                |_| invalid("ratio", format!("{ratio} is not a share: give a number from 0 to below 1"));
            PruneRatio::new(ratio).map_err(wrong)
        });
        ratio.transpose()
    }
}

/// `auto` (also when absent), `keep` or a dtype.
fn parse_storage(param: &'static str, name: Option<&str>) -> Result<Storage, ServiceError> {
    let name = name.unwrap_or("auto");
    if name.eq_ignore_ascii_case("auto") {
        return Ok(Storage::Auto);
    }
    if name.eq_ignore_ascii_case("keep") {
        return Ok(Storage::Keep);
    }
    let allowed = "allowed are auto, keep, f32, f16, bf16, q8_0, q4_0, q4_1";
    let unknown = || invalid(param, format!("`{name}` is not known, {allowed}"));
    DType::from_name(name).map(Storage::As).ok_or_else(unknown)
}

/// A plan for a model file, by ratio when there is one and else by budget.
/// # Errors
/// [`ServiceError::Refused`] when nothing fits; [`ServiceError::Invalid`].
pub(crate) fn plan_file(
    file: &ModelFile,
    budget_bytes: u64,
    settings: &PlanSettings,
) -> Result<PrunePlan, ServiceError> {
    let request = settings.request()?;
    let summary = summarize(file)?;
    let config = file.config();
    let plan = match settings.prune_ratio()? {
        Some(ratio) => secateur_memory::plan_ratio(config, &summary, ratio, &request)?,
        None => secateur_memory::plan(config, &summary, budget_bytes, &request)?,
    };
    Ok(plan)
}

/// How the weights of a file are stored.
pub(crate) fn summarize(file: &ModelFile) -> Result<WeightsSummary, ServiceError> {
    WeightsSummary::from_source(file, file.file_bytes()).map_err(|error| data_error(file.path(), &error))
}

/// Mirrors a plan; the budget belongs to it only when it decided.
#[must_use]
pub(crate) fn plan_view(plan: &PrunePlan, budget_bytes: u64, settings: &PlanSettings) -> PlanView {
    PlanView::new(plan, settings.ratio.is_none().then_some(budget_bytes))
}

/// How keys and values are kept; `None` for `auto`, and where nothing is asked for.
/// # Errors
/// [`ServiceError::Invalid`] for another name.
pub(crate) fn parse_kv_dtype(asked: Option<&str>) -> Result<Option<KvDType>, ServiceError> {
    let Some(name) = asked.filter(|name| !name.eq_ignore_ascii_case("auto")) else { return Ok(None) };
    let allowed = KvDType::ALL.map(KvDType::name).join(", ");
    let unknown = || invalid("kv_dtype", format!("`{name}` is not known, allowed are auto, {allowed}"));
    KvDType::from_name(name).map(Some).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_named_with_what_is_allowed() {
        let base = PlanSettings::default;
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (PlanSettings { policy: text("fast"), ..base() }, "policy", "compatible"),
            (PlanSettings { dtype: text("int3"), ..base() }, "dtype", "q4_0"),
            (PlanSettings { kv_dtype: text("q8"), ..base() }, "kv_dtype", "f16"),
            (PlanSettings { table_dtype: text("int3"), ..base() }, "table_dtype", "q4_0"),
            (
                PlanSettings { table_dtype: text("q4_0"), dtype: text("f16"), ..base() },
                "table_dtype",
                "dtype auto, keep",
            ),
            (PlanSettings { ratio: Some(1.0), ..base() }, "ratio", "below 1"),
            (PlanSettings { ratio: Some(f64::NAN), ..base() }, "ratio", "below 1"),
        ];
        for (settings, want_param, want) in cases {
            let result = settings.request().and_then(|_| settings.prune_ratio());
            let Err(ServiceError::Invalid { param, message }) = result else { panic!("{settings:?}") };
            assert_eq!(param, want_param);
            assert!(message.contains(want), "{message}");
        }
        let keep = PlanSettings { dtype: text("keep"), policy: text("compatible"), ..base() };
        let request = keep.request().unwrap();
        assert_eq!((request.dtype, request.policy), (Storage::Keep, PlanPolicy::Compatible));
        assert_eq!(base().request().unwrap().dtype, Storage::Auto);
        assert_eq!(request.tables, Storage::Auto);
        let tables = |dtype: &str, table: Option<&str>| {
            let table_dtype = table.map(str::to_owned);
            PlanSettings { dtype: text(dtype), table_dtype, ..base() }.request().unwrap().tables
        };
        assert_eq!(tables("f16", None), Storage::Keep);
        assert_eq!(tables("q4_0", Some("keep")), Storage::Keep);
        assert_eq!(tables("keep", Some("q4_1")), Storage::As(DType::Q4_1));
    }

    #[test]
    fn budgets_resolve_on_this_machine() {
        let budget = Budget::resolve("64MiB").unwrap();
        assert_eq!(budget.bytes(), 64 << 20);
        let view = budget.view();
        assert!(0 < view.rss_bytes && view.rss_bytes <= view.rss_peak_bytes);
        assert!(view.available_bytes <= view.total_bytes);
        assert!(
            matches!(Budget::resolve("many"), Err(ServiceError::Invalid { param, .. }) if param == "memory_budget")
        );
    }
}
