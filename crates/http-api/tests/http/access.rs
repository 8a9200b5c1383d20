//! Who may ask: Host, Origin, keys, request ids, and how much at once.

use crate::fake::{Answer, Fake, MODEL, app, get, options, post, post_json, request, send};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use secateur_http_api::{Access, ApiKeys, App, HttpOptions};
use serde_json::json;

/// Every route of the table.
const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/page.js"),
    ("GET", "/page.css"),
    ("GET", "/docs"),
    ("GET", "/docs.js"),
    ("GET", "/openapi.json"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/memory"),
    ("POST", "/api/v1/plan"),
    ("POST", "/api/v1/prune"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/1"),
    ("DELETE", "/api/v1/jobs/1"),
    ("GET", "/api/v1/jobs/1/events"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/models/tiny"),
    ("DELETE", "/api/v1/models/tiny"),
    ("POST", "/api/v1/models/tiny/activate"),
    ("GET", "/nowhere"),
    ("GET", "/api/v1/nowhere"),
];

async fn ask(app: &App, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut builder = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    send(app, builder.body(Body::from("{}")).unwrap()).await
}

#[tokio::test]
async fn foreign_hosts_are_refused_on_every_route() {
    let fake = Fake::new();
    let app = app(&fake);
    for (method, path) in ROUTES {
        for headers in [
            &[("host", "evil.com")][..],
            &[("host", "evil.com:8712")],
            &[("host", "127.0.0.1.evil.com")],
            &[("host", "192.168.0.5:8712")],
            &[("host", "")],
            &[],
            &[("host", "localhost"), ("host", "evil.com")],
            &[("host", "localhost"), ("origin", "https://evil.com")],
            &[("host", "localhost"), ("origin", "null")],
            &[("host", "localhost"), ("origin", "file://")],
        ] {
            let answer = ask(&app, method, path, headers).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path} {headers:?}");
            let native = answer.header("content-type") == "application/problem+json";
            assert_eq!(native, path.starts_with("/api/"), "{method} {path}");
        }
    }
    let asked = fake.with(|script| script.prunes.len() + script.deleted.len() + script.activated.len());
    assert_eq!(asked, 0, "nothing reached the service");
    let absolute = Request::builder().uri("http://evil.com/livez").header("host", "localhost");
    assert_eq!(send(&app, absolute.body(Body::empty()).unwrap()).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn this_machine_and_configured_names_are_answered() {
    let allowed_hosts = vec!["pi.local".to_owned()];
    let app = App::new(Fake::new(), HttpOptions { allowed_hosts, ..options() });
    for headers in [
        &[("host", "localhost")][..],
        &[("host", "127.0.0.1:8712")],
        &[("host", "[::1]:8712")],
        &[("host", "pi.local:80")],
        &[("host", "localhost:8712"), ("origin", "http://localhost:8712")],
    ] {
        let answer = ask(&app, "GET", "/api/v1/status", headers).await;
        assert_eq!(answer.status, StatusCode::OK, "{headers:?}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "CORS is off");
    }
    let preflight = [
        ("host", "localhost"),
        ("origin", "http://localhost:3000"),
        ("access-control-request-method", "POST"),
    ];
    let answer = ask(&app, "OPTIONS", "/v1/chat/completions", &preflight).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn pages_are_allowed_by_exact_origin_only() {
    let cors_origins = vec!["https://app.example:8443".to_owned(), "null".to_owned()];
    let keys = ApiKeys { user: vec!["user-key".to_owned()], admin: Vec::new() };
    let app = App::new(Fake::new(), HttpOptions { cors_origins, keys, ..options() });
    let with = async |method: &str, origin: &str, more: &[(&str, &str)]| {
        let headers = [&[("host", "localhost"), ("origin", origin)], more].concat();
        ask(&app, method, "/v1/models", &headers).await
    };
    let key = [("authorization", "Bearer user-key")];
    let answer = with("GET", "https://app.example:8443", &key).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example:8443");
    assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    let preflight =
        [("access-control-request-method", "POST"), ("access-control-request-private-network", "true")];
    let answer = with("OPTIONS", "https://app.example:8443", &preflight).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "a preflight carries no key");
    assert_eq!(answer.header("access-control-allow-private-network"), "true");
    assert!(answer.header("access-control-allow-headers").contains("authorization"));
    let answer = with("GET", "https://app.example:8443", &[]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "the origin is no key");
    for origin in
        ["https://app.example", "http://app.example:8443", "https://app.example:8443.evil.com", "null", "*"]
    {
        let answer = with("GET", origin, &key).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{origin}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    // Settings that are read again take effect at once.
    app.access_control().set(&Access::default());
    assert_eq!(with("GET", "https://app.example:8443", &key).await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask(&app, "GET", "/v1/models", &[("host", "localhost")]).await.status, StatusCode::OK);
}

fn keyed() -> App {
    let keys = ApiKeys { user: vec!["user-key".to_owned()], admin: vec!["admin-key".to_owned()] };
    App::new(Fake::new(), HttpOptions { keys, ..options() })
}

#[tokio::test]
async fn keys_open_what_they_should() {
    let app = keyed();
    let is_public = |path: &str| {
        matches!(path, "/" | "/page.js" | "/page.css" | "/docs" | "/docs.js" | "/openapi.json")
            || matches!(path, "/livez" | "/readyz" | "/health")
    };
    let is_admin =
        |method: &str, path: &str| method != "GET" && path.starts_with("/api/") && path != "/api/v1/plan";
    for (method, path) in ROUTES {
        let with = async |header: Option<(&str, &str)>| {
            let mut headers = vec![("host", "localhost")];
            headers.extend(header);
            ask(&app, method, path, &headers).await.status
        };
        let refused = |status: StatusCode| matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        for wrong in [
            None,
            Some(("authorization", "Bearer wrong")),
            Some(("authorization", "Bearer user-ke")),
            Some(("authorization", "Bearer user-key2")),
            Some(("authorization", "Bearer ")),
            Some(("authorization", "Basic user-key")),
            Some(("authorization", "user-key")),
            Some(("x-api-key", "")),
        ] {
            let status = with(wrong).await;
            let want = if is_public(path) { !refused(status) } else { status == StatusCode::UNAUTHORIZED };
            assert!(want, "{method} {path} {wrong:?}: {status}");
        }
        let as_user = with(Some(("authorization", "Bearer user-key"))).await;
        if is_admin(method, path) {
            assert_eq!(as_user, StatusCode::FORBIDDEN, "{method} {path}");
        } else {
            assert!(!refused(as_user), "{method} {path}: {as_user}");
        }
        for header in [("authorization", "bearer admin-key"), ("x-api-key", "admin-key")] {
            let status = with(Some(header)).await;
            assert!(!refused(status), "{method} {path} {header:?}: {status}");
        }
    }
    let answer = ask(&app, "GET", "/v1/models", &[("host", "localhost")]).await;
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    assert_eq!(answer.json()["error"]["type"], "authentication_error");
    assert!(!format!("{app:?}").contains("user-key"), "keys do not get into logs");
}

#[tokio::test]
async fn without_an_admin_key_nobody_is_admin() {
    let keys = ApiKeys { user: vec!["k".to_owned()], admin: Vec::new() };
    let app = App::new(Fake::new(), HttpOptions { keys, ..options() });
    let headers = [("host", "localhost"), ("authorization", "Bearer k")];
    assert_eq!(ask(&app, "POST", "/api/v1/prune", &headers).await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask(&app, "POST", "/api/v1/plan", &headers).await.status, StatusCode::OK);
}

#[tokio::test]
async fn request_ids_come_back_or_are_made() {
    let app = app(&Fake::new());
    let id_of = async |given: Option<&str>| {
        let mut builder = request("GET", "/livez");
        if let Some(given) = given {
            builder = builder.header("x-request-id", given);
        }
        send(&app, builder.body(Body::empty()).unwrap()).await.header("x-request-id").to_owned()
    };
    assert_eq!(id_of(Some("trace-1.2:3_x")).await, "trace-1.2:3_x");
    let made = id_of(None).await;
    assert!(made.starts_with("req-"));
    assert_ne!(id_of(None).await, made);
    let long = "a".repeat(200);
    for harmful in ["", "a b", "a\tb", "<script>", &long] {
        assert!(id_of(Some(harmful)).await.starts_with("req-"), "{harmful}");
    }
    assert!(get(&app, "/nowhere").await.header("x-request-id").starts_with("req-"));
}

#[tokio::test]
async fn more_requests_than_places_are_told_to_come_back() {
    let fake = Fake::new();
    let app = App::new(fake, HttpOptions { max_requests: 0, ..options() });
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let answer = post_json(&app, "/v1/chat/completions", &chat).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((answer.header("retry-after"), &answer.json()["error"]["code"]), ("1", &json!("busy")));
    let answer = get(&app, "/api/v1/memory").await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("busy")));
    for path in ["/livez", "/readyz", "/health", "/metrics", "/api/v1/status", "/v1/models"] {
        assert_eq!(get(&app, path).await.status, StatusCode::OK, "{path} must answer a full server");
    }
}

#[tokio::test]
async fn answers_carry_safe_headers() {
    let app = app(&Fake::new());
    for path in ["/", "/livez", "/v1/models", "/api/v1/status", "/nowhere"] {
        let answer = get(&app, path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    for path in ["/", "/page.js", "/page.css", "/docs", "/docs.js"] {
        let page = get(&app, path).await;
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}");
        assert!(
            !page.text.contains("http://") && !page.text.contains("https://"),
            "{path} needs nothing from elsewhere"
        );
    }
    let answer = post(&app, &format!("/api/v1/models/{MODEL}/activate"), "").await;
    assert_eq!(answer.status, StatusCode::OK);
}
