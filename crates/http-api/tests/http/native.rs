//! `/api/v1`, health and metrics.

use crate::fake::{Fake, MODEL, app, get, post, post_json, request, send};
use axum::body::Body;
use axum::http::StatusCode;
use secateur_service::ServiceError;
use secateur_service::api::{JobId, Readiness};
use serde_json::json;
use std::collections::BTreeSet;

#[tokio::test]
async fn looking_around() {
    let app = app(&Fake::new());
    let status = get(&app, "/api/v1/status").await.json();
    assert_eq!(status["readiness"]["state"], "ready");
    assert_eq!(status["model"]["model"]["id"], MODEL);
    assert_eq!(get(&app, "/api/v1/memory").await.json()["budget_bytes"], 40);
    assert_eq!(get(&app, "/api/v1/models").await.json()["models"][0]["id"], MODEL);
    assert_eq!(get(&app, "/api/v1/models/tiny").await.json()["ratio"], 0.2);
    assert_eq!(get(&app, "/api/v1/jobs").await.json()["jobs"][0]["state"], "running");
    assert_eq!(get(&app, "/api/v1/jobs/1").await.json()["kind"], "prune");
}

#[tokio::test]
async fn plans_are_asked_for_field_by_field() {
    let fake = Fake::new();
    let app = app(&fake);
    let body = json!({"model": "tiny", "memory_budget": "70%", "context_len": 256, "policy": "compatible", "dtype": "q8_0"});
    let plan = post_json(&app, "/api/v1/plan", &body).await;
    assert_eq!((plan.status, &plan.json()["ratio"]), (StatusCode::OK, &json!(0.25)));
    for (body, budget, ratio) in [
        (json!({}), None, None),
        (json!({"memory_budget": 134_217_728}), Some("134217728"), None),
        (json!({"memory_budget": "128MiB"}), Some("128MiB"), None),
        (json!({"ratio": 0.3}), None, Some(0.3)),
    ] {
        fake.with(|script| script.plans.clear());
        assert_eq!(post_json(&app, "/api/v1/plan", &body).await.status, StatusCode::OK);
        fake.with(|script| {
            assert_eq!(script.plans[0].memory_budget.as_deref(), budget);
            assert_eq!(script.plans[0].ratio, ratio);
        });
    }
    for body in [json!({"memory_budgt": "1GiB"}), json!({"ratio": 0.1, "Ratio": 0.2})] {
        let answer = post_json(&app, "/api/v1/plan", &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "a misspelt setting is no default: {body}");
    }
}

#[tokio::test]
async fn refusals_are_problem_details() {
    let fake = Fake::new();
    fake.with(|script| {
        script.refusal = Some(|| ServiceError::Refused {
            message: "nothing fits into 1 MiB".to_owned(),
            smallest_budget_bytes: Some(99),
        });
    });
    let answer = post_json(&app(&fake), "/api/v1/plan", &json!({"memory_budget": "1MiB"})).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(
        answer.json(),
        json!({
            "type": "about:blank", "title": "Refused", "status": 422, "detail": "nothing fits into 1 MiB",
            "code": "refused", "smallest_budget_bytes": 99,
        })
    );
    fake.with(|script| {
        script.refusal = Some(|| ServiceError::Conflict { message: "too many jobs".to_owned() })
    });
    let answer = post_json(&app(&fake), "/api/v1/prune", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["detail"]), (StatusCode::CONFLICT, &json!("too many jobs")));
}

#[tokio::test]
async fn pruning_makes_a_job() {
    let fake = Fake::new();
    let app = app(&fake);
    let body = json!({
        "ratio": 0.2, "method": "comp", "seed": 7, "calibration_tokens": 4096, "calibration_text": "Text.",
        "activate": true,
    });
    let answer = post_json(&app, "/api/v1/prune", &body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.header("location"), "/api/v1/jobs/1");
    assert_eq!(answer.json()["id"], 1);
    fake.with(|script| {
        let query = &script.prunes[0];
        assert_eq!((query.ratio, query.seed, query.calibration_tokens), (Some(0.2), Some(7), Some(4096)));
        assert_eq!(query.calibration_text.as_deref(), Some("Text."));
        assert!(query.activate);
    });
    let cancel = send(&app, request("DELETE", "/api/v1/jobs/1").body(Body::empty()).unwrap()).await;
    assert_eq!((cancel.status, &cancel.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    assert_eq!(fake.with(|script| script.cancelled_jobs.clone()), [1]);
}

#[tokio::test]
async fn job_events_have_numbers_and_go_on_where_the_client_was() {
    let app = app(&Fake::new());
    let answer = get(&app, "/api/v1/jobs/1/events").await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let lines = |prefix: &str| -> Vec<String> {
        answer.text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    assert_eq!(lines("id: "), ["1", "2", "3"]);
    assert_eq!(lines("event: "), ["progress", "planned", "state"]);
    let first: serde_json::Value = serde_json::from_str(&answer.data()[0]).unwrap();
    assert_eq!((&first["stage"], &first["layer_idx"]), (&json!("prune"), &json!(0)));
    for (seen, n_left) in [("0", 3), ("2", 1), ("3", 0), ("99", 0), ("x", 3), ("-1", 3)] {
        let request = request("GET", "/api/v1/jobs/1/events").header("last-event-id", seen);
        let answer = send(&app, request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.data().len(), n_left, "after {seen}");
    }
}

#[tokio::test]
async fn models_are_activated_and_deleted() {
    let fake = Fake::new();
    let app = app(&fake);
    let answer = post(&app, &format!("/api/v1/models/{MODEL}/activate"), "").await;
    assert_eq!((answer.status, &answer.json()["id"]), (StatusCode::OK, &json!(MODEL)));
    let delete = async |id: &str| {
        send(&app, request("DELETE", &format!("/api/v1/models/{id}")).body(Body::empty()).unwrap())
            .await
            .status
    };
    assert_eq!(delete(MODEL).await, StatusCode::NO_CONTENT);
    assert_eq!(delete("other").await, StatusCode::NOT_FOUND);
    for id in ["..", "%2e%2e%2fx", ".x", "a%2fb"] {
        assert_eq!(delete(id).await, StatusCode::NOT_FOUND);
    }
    assert_eq!(fake.with(|script| script.deleted.clone()), [MODEL, "other"], "no path reaches the service");
}

#[tokio::test]
async fn health_says_ready_or_why_not() {
    let fake = Fake::new();
    let app = app(&fake);
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(get(&app, path).await.status, StatusCode::OK);
    }
    assert_eq!(get(&app, "/health").await.json(), json!({"status": "ok"}));
    for (readiness, words) in [
        (Readiness::Starting, "starting"),
        (Readiness::Loading, "loading"),
        (Readiness::Pruning { job: JobId(1), progress: None }, "pruned"),
        (Readiness::NoModel, "no model"),
        (Readiness::Failed { message: "budget too small".to_owned() }, "budget too small"),
        (Readiness::ShuttingDown, "shutting down"),
    ] {
        fake.with(|script| script.readiness = readiness);
        assert_eq!(get(&app, "/livez").await.status, StatusCode::OK);
        assert_eq!(get(&app, "/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
        let answer = get(&app, "/health").await;
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "5"));
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(words), "{}", answer.text);
        let chat = json!({"messages": [{"role": "user", "content": "x"}]});
        let answer = post_json(&app, "/v1/chat/completions", &chat).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.text.contains(words), "{}", answer.text);
    }
}

#[tokio::test]
async fn metrics_are_prometheus_text_with_bounded_labels() {
    let app = app(&Fake::new());
    get(&app, "/v1/models/some-name").await;
    get(&app, "/made/up/path").await;
    let chat = json!({"messages": [{"role": "user", "content": "a secret prompt"}], "stream": true});
    post_json(&app, "/v1/chat/completions", &chat).await;
    let page = get(&app, "/metrics").await;
    assert!(page.header("content-type").starts_with("text/plain; version=0.0.4"));
    for line in [
        "secateur_ready 1",
        "secateur_requests_total 5",
        "secateur_generated_tokens_total 42",
        "secateur_resident_memory_bytes 77",
        "secateur_queue_places 16",
        "secateur_jobs_running 1",
        "secateur_memory_pressure_step 2",
        "secateur_memory_stalled_seconds_total 1.5",
        "# TYPE secateur_http_requests_total counter",
        "secateur_http_requests_total{method=\"GET\",route=\"/v1/models/{id}\",status=\"404\"} 1",
        "secateur_http_requests_total{method=\"GET\",route=\"other\",status=\"404\"} 1",
        "secateur_time_to_first_token_seconds_count 1",
        "secateur_time_to_first_token_seconds_bucket{le=\"0.025\"} 1",
    ] {
        assert!(page.text.lines().any(|found| found == line), "{line} in\n{}", page.text);
    }
    assert!(!page.text.contains("some-name") && !page.text.contains("made") && !page.text.contains("secret"));
    let faults = metric_faults(&page.text);
    assert!(faults.is_empty(), "{faults:#?} in\n{}", page.text);
    for family in ["requests", "queue", "tokens", "memory", "pressure", "jobs", "http", "token_seconds"] {
        let is_there = page.text.lines().any(|line| line.starts_with("# TYPE") && line.contains(family));
        assert!(is_there, "{family} in\n{}", page.text);
    }
}

/// What a linter of Prometheus' text format would say: each family is described before its series and whole, its name
/// has the form its type wants, no series comes twice, values are numbers.
fn metric_faults(page: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut helped, mut family, mut seen) =
        (String::new(), (String::new(), String::new()), BTreeSet::<String>::new());
    for line in page.lines() {
        let mut fault = |what: &str| faults.push(format!("{what}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            helped = name.to_owned();
            if help.is_empty() {
                fault("no help");
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            if name != helped || !name.starts_with("secateur_") || !name.chars().all(is_plain) {
                fault("name");
            }
            let fits = match kind {
                "counter" => name.ends_with("_total"),
                "gauge" => !name.ends_with("_total"),
                "histogram" => name.ends_with("_seconds"),
                _ => false,
            };
            if !fits || !seen.insert(rest.to_owned()) {
                fault("type");
            }
            family = (name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            let name = series.split('{').next().unwrap_or_default();
            let suffixes: &[&str] =
                if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !suffixes.iter().any(|suffix| name == format!("{}{suffix}", family.0)) {
                fault("not of the family above");
            }
            if value.parse::<f64>().is_err() || !seen.insert(series.to_owned()) {
                fault("value or double series");
            }
        }
    }
    faults
}
