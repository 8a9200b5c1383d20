//! What every request passes before its route: who asks (Host, Origin, key), what it is called (request id), and what
//! is noted about it (one log line without any text, counters).
//!
//! A page of another site can make a browser send requests here. Its `Origin` gives it away, and after DNS rebinding
//! its `Host`; both must name this machine.

use crate::app::{Access, Shared};
use crate::error::{ApiError, Dialect};
use crate::metrics::HttpMetrics;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Header that names a request, in and out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Keys that clients must show. Without any, everybody who reaches the port may do everything.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// Keys for asking the model and looking at the service.
    pub user: Vec<String>,
    /// Keys that may also prune, activate, delete and cancel.
    pub admin: Vec<String>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} user, {} admin)", self.user.len(), self.admin.len())
    }
}

impl ApiKeys {
    /// True when no key is needed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.user.is_empty() && self.admin.is_empty()
    }

    fn check(&self, headers: &HeaderMap, scope: Scope) -> Result<(), ApiError> {
        if self.is_open() || scope == Scope::Public {
            return Ok(());
        }
        let Some(key) = shown_key(headers) else {
            return Err(ApiError::Unauthorized("an API key is needed: `Authorization: Bearer KEY`"));
        };
        // All keys are compared, so that time tells nothing about which one matched.
        let is_admin = any_equal(&self.admin, key);
        let is_user = any_equal(&self.user, key);
        match scope {
            _ if is_admin => Ok(()),
            Scope::User if is_user => Ok(()),
            Scope::Admin if is_user => Err(ApiError::Forbidden("this needs an admin key")),
            _ => Err(ApiError::Unauthorized("the API key is not known")),
        }
    }
}

fn shown_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes))
}

fn any_equal(keys: &[String], shown: &[u8]) -> bool {
    keys.iter().fold(false, |found, key| equal_in_constant_time(key.as_bytes(), shown) | found)
}

/// Compares without stopping at the first difference; only the length shown can be read off the time.
fn equal_in_constant_time(key: &[u8], shown: &[u8]) -> bool {
    let mut difference = u8::from(key.len() != shown.len());
    for (idx, byte) in shown.iter().enumerate() {
        let expected = key.get(idx).copied().unwrap_or(!byte);
        difference = black_box(difference | (expected ^ byte));
    }
    difference == 0 && !key.is_empty()
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Public,
    User,
    Admin,
}

impl Scope {
    fn of(method: &Method, path: &str) -> Self {
        match path {
            // The page and the documentation are static; watchdogs and load balancers have no keys.
            "/" | "/page.js" | "/page.css" | "/docs" | "/docs.js" | "/openapi.json" => Self::Public,
            "/livez" | "/readyz" | "/health" => Self::Public,
            // The dry run changes nothing.
            "/api/v1/plan" => Self::User,
            _ if Dialect::of_path(path) == Dialect::Native && !method.is_safe() => Self::Admin,
            _ => Self::User,
        }
    }
}

/// Marks requests that came through the UNIX socket, whose file says who may use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalPeer;

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    names: Vec<String>,
    origins: Vec<String>,
    keys: ApiKeys,
}

impl Gate {
    pub(crate) fn new(access: &Access) -> Self {
        let name = |name: &String| name.trim_matches(['[', ']']).to_ascii_lowercase();
        Self {
            names: access.allowed_hosts.iter().map(name).collect(),
            origins: access.cors_origins.clone(),
            keys: access.keys.clone(),
        }
    }

    /// The `Origin` of a request from a page that is allowed by name.
    fn named_origin<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        // `null` is what any sandboxed page sends.
        (text != "null" && self.origins.iter().any(|known| known == text)).then_some(origin)
    }

    /// True for `localhost`, loopback addresses and configured names, with or without a port.
    fn allows(&self, host: &str) -> bool {
        let Some(name) = host_name(host) else { return false };
        let loopback = match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => address.is_loopback(),
            Ok(IpAddr::V6(address)) => address == Ipv6Addr::LOCALHOST || is_mapped_loopback(address),
            Err(_) => false,
        };
        loopback || name.eq_ignore_ascii_case("localhost") || self.names.contains(&name.to_ascii_lowercase())
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        const FOREIGN_HOST: ApiError = ApiError::Forbidden("this host name is not served here");
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()).ok_or(FOREIGN_HOST)?;
        let target = request.uri().authority().map(|authority| authority.as_str());
        if hosts.next().is_some() || !self.allows(host) || target.is_some_and(|target| !self.allows(target)) {
            return Err(FOREIGN_HOST);
        }
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        if origins.next().is_some()
            && origins.next().is_none()
            && self.named_origin(request.headers()).is_some()
        {
            return Ok(());
        }
        for origin in request.headers().get_all(header::ORIGIN) {
            let host = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
            if !host.is_some_and(|host| self.allows(host)) {
                return Err(ApiError::Forbidden("requests from pages of other sites are not answered"));
            }
        }
        Ok(())
    }
}

fn is_mapped_loopback(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some_and(|address: Ipv4Addr| address.is_loopback())
}

/// The name in `name`, `name:port`, `[v6]` or `[v6]:port`; `None` for anything else.
fn host_name(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']')?;
            name.parse::<Ipv6Addr>().ok()?;
            (name, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("0"))?)
        }
        None => host.split_once(':').unwrap_or((host, "0")),
    };
    let is_port = port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_port && !name.is_empty()).then_some(name)
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Takes the client's request id over when it is harmless, or makes one.
fn request_id(headers: &HeaderMap, process: u64) -> HeaderValue {
    let harmless = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(is_plain)
    };
    if let Some(given) = headers.get(&REQUEST_ID).filter(harmless) {
        return given.clone();
    }
    let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let id = format!("req-{:08x}-{number:x}", process & 0xffff_ffff);
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("req"))
}

/// The answer to a browser that asks whether a page may ask.
fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    let allowed =
        HeaderValue::from_static("authorization, content-type, x-api-key, x-request-id, last-event-id");
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    // Chrome asks this before a public page may reach a private address.
    let private = HeaderName::from_static("access-control-allow-private-network");
    headers.insert(private, HeaderValue::from_static("true"));
    response
}

/// The middleware: checks, then the route, then headers, log and counters.
pub(crate) async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers(), shared.process_id);
    let method = request.method().clone();
    // The pattern of the route, so that nobody can fill metrics or logs with paths of his own.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let dialect = Dialect::of_path(request.uri().path());
    let gate = shared.gate();
    let is_local_peer = request.extensions().get::<LocalPeer>().is_some();
    let is_preflight =
        method == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let origin = gate.named_origin(request.headers()).cloned();
    let checked = gate.check(&request).and_then(|()| match is_local_peer || is_preflight {
        true => Ok(()),
        false => gate.keys.check(request.headers(), Scope::of(&method, request.uri().path())),
    });
    let mut response = match checked {
        // A preflight carries no key; it only asks whether the page may ask.
        Ok(()) if is_preflight && origin.is_some() => preflight(),
        Ok(()) => next.run(request).await,
        Err(error) => error.render(dialect),
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-request-id, retry-after"),
        );
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    let status = response.status();
    let seconds = started.elapsed().as_secs_f64();
    HttpMetrics::count(&shared.metrics, &method, &route, status, seconds);
    let id_text = id.to_str().unwrap_or_default();
    tracing::info!(request_id = id_text, %method, route, status = status.as_u16(), seconds, "request");
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_configured_names_are_hosts() {
        let allowed_hosts = vec!["Pi.Local".to_owned(), "[fd00::7]".to_owned()];
        let hosts = Gate::new(&Access { allowed_hosts, ..Access::default() });
        let allowed = [
            "localhost",
            "LOCALHOST:8712",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.8.7:80",
            "[::1]",
            "[::1]:8712",
            "pi.local",
            "PI.local:8712",
            "[::ffff:127.0.0.1]:80",
            "[fd00::7]:80",
        ];
        let refused = [
            "",
            ":80",
            "evil.com",
            "localhost.evil.com",
            "evil.com:8712",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:+80",
            "127.0.0.1.evil.com",
            "127.0.0.1:80:80",
            "[::2]",
            "::1",
            "[::1",
            "[::1]x",
            "[localhost]",
            "192.168.1.2",
            "0.0.0.0",
            "2130706433",
            "localhost.",
            "user@localhost",
            "localhost/",
            "127.1",
        ];
        for host in allowed {
            assert!(hosts.allows(host), "{host}");
        }
        for host in refused {
            assert!(!hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn keys_compare_whole() {
        for (key, shown, want) in [
            ("abc", "abc", true),
            ("abc", "abd", false),
            ("abc", "ab", false),
            ("abc", "abcd", false),
            ("", "", false),
        ] {
            assert_eq!(equal_in_constant_time(key.as_bytes(), shown.as_bytes()), want, "{key} {shown}");
        }
        assert!(!equal_in_constant_time(b"a", b""));
    }
}
