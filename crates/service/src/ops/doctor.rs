//! What this host can do for us and what stands in the way, with the way out.

use crate::ServiceError;
use crate::api::MemoryView;
use crate::budget::{Budget, PlanSettings, plan_file};
use secateur_memory::format_bytes;
use secateur_store::Store;
use secateur_tensor::kernels::active_isa;
use serde::Serialize;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;

/// Budget below which no useful model can be served.
const SMALL_BUDGET_BYTES: u64 = 64 << 20;
/// Free disk below which a result may not fit.
const SMALL_DISK_BYTES: u64 = 512 << 20;
/// Share of time (percent) tasks wait for memory from which the device is called short of it.
const HIGH_PRESSURE: f64 = 10.0;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct DoctorRequest {
    /// Budget as written.
    pub memory_budget: String,
    /// State folder.
    pub state_dir: PathBuf,
    /// Address to serve on.
    pub address: (IpAddr, u16),
    /// A model to plan for.
    pub model: Option<PathBuf>,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// Version of the program.
    pub version: &'static str,
    /// Worst level.
    pub level: Level,
    /// Memory.
    pub memory: MemoryView,
    /// Threads that would compute.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Size of a page.
    pub page_bytes: u64,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

fn finding(level: Level, name: &'static str, message: String, advice: Option<&str>) -> Finding {
    Finding { level, name, message, advice: advice.map(str::to_owned) }
}

/// Looks at the host.
/// # Errors
/// [`ServiceError::Invalid`] for a budget that is none; what is wrong with the host is in the report.
pub fn doctor(request: &DoctorRequest) -> Result<DoctorReport, ServiceError> {
    let budget = Budget::resolve(&request.memory_budget)?;
    let isa = active_isa();
    let mut findings = vec![memory_finding(&budget), pressure_finding(&budget), cpu_finding(&budget)];
    findings.push(match isa.isa {
        "portable" => finding(
            Level::Warning,
            "kernels",
            "no vector instructions this program knows".into(),
            Some("expect a tenth of the usual speed; AVX2 or NEON would be used when present"),
        ),
        name => finding(Level::Ok, "kernels", format!("{name}, {} values at once", isa.f32_lanes), None),
    });
    findings.extend(store_findings(request));
    findings.push(port_finding(request.address));
    findings.extend(request.model.as_ref().map(|model| model_finding(model, &budget)));
    findings.extend(budget.status.notes.iter().map(|note| {
        finding(
            Level::Warning,
            "probe",
            note.clone(),
            Some("the figure is left out; a fixed --memory-budget helps"),
        )
    }));
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Ok(DoctorReport {
        version: env!("CARGO_PKG_VERSION"),
        level,
        memory: budget.view(),
        threads: budget.status.cpu.usable_cores,
        isa: isa.isa,
        page_bytes: budget.status.page_bytes,
        findings,
    })
}

fn memory_finding(budget: &Budget) -> Finding {
    let bytes = budget.bytes();
    let message = format!(
        "{} may be used ({}); the device has {}",
        format_bytes(bytes),
        budget.resolved.explanation,
        format_bytes(budget.status.total_bytes)
    );
    if let Some(warning) = &budget.resolved.warning {
        return finding(
            Level::Warning,
            "memory",
            warning.clone(),
            Some("give a smaller --memory-budget, or auto"),
        );
    }
    if bytes < SMALL_BUDGET_BYTES {
        let advice = "stop other programs, or raise the limit of the control group named above";
        return finding(Level::Error, "memory", message, Some(advice));
    }
    finding(Level::Ok, "memory", message, None)
}

fn pressure_finding(budget: &Budget) -> Finding {
    let Some(pressure) = budget.status.pressure.first() else {
        let message = "the kernel keeps no memory pressure figures".to_owned();
        return finding(Level::Ok, "pressure", message, None);
    };
    let avg10 = pressure.some.avg10;
    let message = format!("tasks waited for memory {avg10:.1} % of the last 10 s ({})", pressure.source);
    if avg10 < HIGH_PRESSURE {
        return finding(Level::Ok, "pressure", message, None);
    }
    finding(Level::Warning, "pressure", message, Some("the device is short of memory; give a smaller budget"))
}

fn cpu_finding(budget: &Budget) -> Finding {
    let cpu = &budget.status.cpu;
    let allowed = cpu.allowed_cpus.map_or("unknown".to_owned(), |cpus| cpus.to_string());
    match (&cpu.quota_source, cpu.quota_cores) {
        (Some(source), Some(cores)) => {
            let message = format!(
                "{} threads: a quota of {cores:.2} processors ({source}), {allowed} allowed",
                cpu.usable_cores
            );
            let level = if cores < 1.0 { Level::Warning } else { Level::Ok };
            let advice =
                (cores < 1.0).then_some("less than one processor: raise the quota of the control group");
            finding(level, "processors", message, advice)
        }
        _ => finding(
            Level::Ok,
            "processors",
            format!("{} threads, {allowed} processors allowed", cpu.usable_cores),
            None,
        ),
    }
}

fn store_findings(request: &DoctorRequest) -> Vec<Finding> {
    let dir = &request.state_dir;
    let store = match Store::open(dir) {
        Ok(store) => store,
        Err(error) => {
            let message = crate::convert::error_chain(&error);
            return vec![finding(
                Level::Error,
                "state",
                message,
                Some("give a folder you may write to with --state-dir"),
            )];
        }
    };
    let mut findings = Vec::new();
    match rustix::fs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let message = format!("{} free for {}", format_bytes(free), dir.display());
            let small = free < SMALL_DISK_BYTES;
            let advice =
                small.then_some("a pruned model may not fit; free some space or use another --state-dir");
            findings.push(finding(if small { Level::Warning } else { Level::Ok }, "disk", message, advice));
        }
        Err(error) => {
            let message = format!("{}: {error}", dir.display());
            findings.push(finding(Level::Warning, "disk", message, None));
        }
    }
    match store.list() {
        Ok(listing) => {
            let n = listing.entries.len();
            findings.push(finding(
                Level::Ok,
                "store",
                format!("{n} pruned models in {}", dir.display()),
                None,
            ));
            findings.extend(listing.damaged.iter().map(|damaged| {
                let message =
                    format!("{}: {}", damaged.path.display(), crate::convert::error_chain(&damaged.error));
                finding(Level::Warning, "store", message, Some("remove it with `secateur models remove`"))
            }));
        }
        Err(error) => {
            findings.push(finding(Level::Error, "store", crate::convert::error_chain(&error), None));
        }
    }
    findings
}

fn port_finding(address: (IpAddr, u16)) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => finding(Level::Ok, "port", format!("{}:{} is free", address.0, address.1), None),
        Err(error) => finding(
            Level::Warning,
            "port",
            format!("{}:{}: {error}", address.0, address.1),
            Some("something listens there already (a running service?); give another --port"),
        ),
    }
}

fn model_finding(model: &std::path::Path, budget: &Budget) -> Finding {
    let planned = crate::opened::open_file(model)
        .and_then(|file| plan_file(&file, budget.bytes(), &PlanSettings::default()));
    match planned {
        Ok(plan) => finding(Level::Ok, "model", plan.reason, None),
        Err(error) => finding(
            Level::Error,
            "model",
            crate::convert::error_chain(&error),
            Some("give a larger --memory-budget or another model"),
        ),
    }
}
